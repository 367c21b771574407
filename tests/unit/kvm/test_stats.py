"""Counters of KVM as their files have them: struct kvm_stats_header and struct kvm_stats_desc of <linux/kvm.h>."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator

import pytest

from vmservice.kvm.stats import total_exits

NAME_BYTES = 48
MakeFile = Callable[..., int]


@pytest.fixture
def make_file() -> Iterator[MakeFile]:
    """A file of counters with these values, each behind one of many values that nobody asks for."""
    fds = []

    def make(**counters: int) -> int:
        descriptors, data = b"", b""
        for name, value in counters.items():
            for one, values in (("halt_wait_hist", [7] * 32), (name, [value])):
                descriptors += struct.pack("<IhHII48s", 0, -9, len(values), len(data), 0, one.encode())
                data += struct.pack(f"<{len(values)}Q", *values)
        id_bytes = b"kvm-1/vcpu-0".ljust(NAME_BYTES, b"\0")
        start = 24 + len(id_bytes)
        header = struct.pack("<6I", 0, NAME_BYTES, 2 * len(counters), 24, start, start + len(descriptors))
        fds.append(os.memfd_create("stats"))
        os.write(fds[-1], header + id_bytes + descriptors + data)
        return fds[-1]

    yield make
    for fd in fds:
        os.close(fd)


def test_the_counters_of_all_vcpus_are_added_up(make_file: MakeFile) -> None:
    first = make_file(exits=1 << 40, pf_taken=5, io_exits=20, mmio_exits=0, halt_exits=3)
    second = make_file(exits=7, pf_taken=6, io_exits=1, mmio_exits=2, halt_exits=4)
    assert total_exits([first, second]) == {"exits": (1 << 40) + 7, "io_exits": 21, "mmio_exits": 2, "halt_exits": 7}


def test_what_a_kvm_does_not_count_is_not_there(make_file: MakeFile) -> None:
    assert total_exits([make_file(exits=3)]) == {"exits": 3}
    assert total_exits([]) == {}
