"""Counters that KVM keeps of each vCPU anyway, read while the guest runs (Documentation/virt/kvm/api.rst, KVM_GET_STATS_FD)."""

from __future__ import annotations

import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_HEADER = struct.Struct("<6I")  # struct kvm_stats_header: flags, bytes of a name, number, and offsets of id, descriptors, data
_DESCRIPTOR = struct.Struct("<IhHI4x")  # struct kvm_stats_desc: flags, exponent, values, offset; the name follows
_VALUE = struct.Struct("<Q")

# What is told of them: all VM exits, and those for an IN or OUT, for memory that is no RAM, and for a HLT.
EXITS = ("exits", "io_exits", "mmio_exits", "halt_exits")


def total_exits(fds: Iterable[int]) -> dict[str, int]:
    """EXITS, as far as this KVM has them, of all vCPUs together; `fds` are what KVM_GET_STATS_FD gave for each."""
    places: dict[str, int] | None = None
    totals: dict[str, int] = {}
    for fd in fds:
        if places is None:  # the same for every vCPU
            places = {name: place for name, place in _places(fd).items() if name in EXITS}
        for name, place in places.items():
            totals[name] = totals.get(name, 0) + _VALUE.unpack(os.pread(fd, _VALUE.size, place))[0]
    return totals


def _places(fd: int) -> dict[str, int]:
    """Where in the file the value of each counter is."""
    _flags, name_bytes, number, _id, descriptors, data = _HEADER.unpack(os.pread(fd, _HEADER.size, 0))
    step = _DESCRIPTOR.size + name_bytes
    block = os.pread(fd, number * step, descriptors)
    places = {}
    for start in range(0, len(block), step):
        _flags, _exponent, _values, offset = _DESCRIPTOR.unpack_from(block, start)
        name = block[start + _DESCRIPTOR.size : start + step].split(b"\0", 1)[0].decode()
        places[name] = data + offset
    return places
