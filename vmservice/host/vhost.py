"""vhost: virtqueues that the kernel serves, by the ioctls of <linux/vhost.h> on an open /dev/vhost-net or /dev/vhost-vsock.

Constants are spelled as in the header. The kernel reaches guest memory by this process' own addresses of it, so what it was
told of must stay mapped while virtqueues run.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from fcntl import ioctl

from vmservice.errors import HostError, HostFacilityMissing, NotPermitted

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from collections.abc import Sequence
    from typing import Protocol

    class Region(Protocol):
        """A piece of guest memory, all of `mapping`."""

        @property
        def gpa(self) -> int: ...

        @property
        def end(self) -> int: ...

        @property
        def mapping(self) -> mmap.mmap: ...


_VHOST_VIRTIO = 0xAF
_WRITE, _READ = 1 << 30, 2 << 30  # directions of <asm-generic/ioctl.h>, as user space sees them


def _io(number: int) -> int:
    return _VHOST_VIRTIO << 8 | number


def _iow(number: int, size_bytes: int) -> int:
    return _WRITE | size_bytes << 16 | _io(number)


def _ior(number: int, size_bytes: int) -> int:
    return _READ | size_bytes << 16 | _io(number)


# --- structs --------------------------------------------------------------------------------------------------------------
U64 = struct.Struct("<Q")
INT = struct.Struct("<i")
VRING_STATE = struct.Struct("<II")  # index, number
VRING_FILE = struct.Struct("<Ii")  # index, descriptor
VRING_ADDR = struct.Struct("<IIQQQQ")  # index, flags; addresses of descriptors, used ring, available ring; log
MEMORY = struct.Struct("<II")  # regions, 0; the regions behind it
MEMORY_REGION = struct.Struct("<QQQQ")  # gpa, bytes, our address, 0

# --- requests -------------------------------------------------------------------------------------------------------------
VHOST_GET_FEATURES = _ior(0x00, U64.size)
VHOST_SET_FEATURES = _iow(0x00, U64.size)
VHOST_SET_OWNER = _io(0x01)
VHOST_SET_MEM_TABLE = _iow(0x03, MEMORY.size)
VHOST_SET_VRING_NUM = _iow(0x10, VRING_STATE.size)
VHOST_SET_VRING_ADDR = _iow(0x11, VRING_ADDR.size)
VHOST_SET_VRING_BASE = _iow(0x12, VRING_STATE.size)
VHOST_GET_VRING_BASE = _WRITE | _ior(0x12, VRING_STATE.size)
VHOST_SET_VRING_KICK = _iow(0x20, VRING_FILE.size)
VHOST_SET_VRING_CALL = _iow(0x21, VRING_FILE.size)
VHOST_SET_VRING_ERR = _iow(0x22, VRING_FILE.size)
VHOST_NET_SET_BACKEND = _iow(0x30, VRING_FILE.size)
VHOST_VSOCK_SET_GUEST_CID = _iow(0x60, U64.size)
VHOST_VSOCK_SET_RUNNING = _iow(0x61, INT.size)

VHOST_FILE_UNBIND = -1

# --- features that no driver may have ---------------------------------------------------------------------------------------
LOG_ALL = 1 << 26  # for whoever moves the guest
NET_HDR = 1 << 27  # VHOST_NET_F_VIRTIO_NET_HDR: vhost-net makes the header itself; ours comes from the tap
ACCESS_PLATFORM = 1 << 33  # addresses of an IOMMU, which the kernel would ask us for
RING_RESET = 1 << 40
_NOT_FOR_DRIVERS = LOG_ALL | NET_HDR | ACCESS_PLATFORM | RING_RESET

# How many virtqueues one descriptor serves, of either kind.
RINGS = 2

_ADVICE = {
    "vhost-net": "`modprobe vhost_net` loads its module, and a line in /etc/modules-load.d does at each start of the host",
    "vhost-vsock": "`modprobe vhost_vsock` loads its module, and a line in /etc/modules-load.d does at each start of the host",
}


def open_device(kind: str, wanted_by: str) -> int:
    """A descriptor of /dev/`kind`, vhost-net or vhost-vsock. `wanted_by` reads as what of the configuration needs it.

    HostFacilityMissing where the kernel has it not, NotPermitted where this account may not use it.
    """
    path = f"/dev/{kind}"
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        number = error.errno or 0
        if number in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
            text = f"{wanted_by} needs {path}, which this host does not have ({os.strerror(number)}); {_ADVICE[kind]}"
            raise HostFacilityMissing(text, number) from error
        if number in (errno.EACCES, errno.EPERM):
            text = f"{wanted_by} needs {path}, which this account may not open ({os.strerror(number)})"
            raise NotPermitted(f"{text}; its group may, which is kvm on most hosts", number) from error
        raise HostError.from_os(f"{wanted_by} needs {path}, which cannot be opened", error) from error


class Vhost:
    """Owns `fd`, with RINGS virtqueues. `name` reads as it in a sentence. Every method raises HostError with one such.

    Virtqueues are set up by `own`, `set_features`, `set_memory`, and `set_ring` for each; then `run` has them served. After
    `halt` the kernel touches none of them any more, and `base` says where it would have gone on.
    """

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name
        self._is_owned = False
        self.features = 0

    def look(self) -> None:
        """Learn `features`, those of them that a driver may have."""
        data = bytearray(U64.size)
        self._call("VHOST_GET_FEATURES", VHOST_GET_FEATURES, data)
        self.features = int(U64.unpack(data)[0]) & ~_NOT_FOR_DRIVERS

    def own(self) -> None:
        """Make this process the one whose memory the kernel reaches. Nothing when it is already."""
        if not self._is_owned:
            self._call("VHOST_SET_OWNER", VHOST_SET_OWNER)
            self._is_owned = True

    def set_features(self, features: int) -> None:
        """What the driver has chosen, of which this takes what is the kernel's."""
        self._call("VHOST_SET_FEATURES", VHOST_SET_FEATURES, U64.pack(features & self.features))

    def set_memory(self, regions: Sequence[Region]) -> None:
        """All of guest memory, also while virtqueues run."""
        table = MEMORY.pack(len(regions), 0)
        for region in regions:
            table += MEMORY_REGION.pack(region.gpa, len(region.mapping), _address(region.mapping), 0)
        self._call("VHOST_SET_MEM_TABLE", VHOST_SET_MEM_TABLE, table)

    def set_ring(
        self,
        index: int,
        size: int,
        next_available: int,
        addresses: Sequence[int],
        regions: Sequence[Region],
        *,
        kick: int,
        call: int,
        error: int,
    ) -> None:
        """Virtqueue `index` of this descriptor; `addresses` are the guest's, in QueueState's order, each in one of `regions`.

        `error` is an eventfd that is written to when the kernel cannot make sense of what the driver has put there.
        """
        descriptors, available, used = (own_address(gpa, regions) for gpa in addresses)
        self._call("VHOST_SET_VRING_NUM", VHOST_SET_VRING_NUM, VRING_STATE.pack(index, size))
        self._call("VHOST_SET_VRING_BASE", VHOST_SET_VRING_BASE, VRING_STATE.pack(index, next_available))
        packed = VRING_ADDR.pack(index, 0, descriptors, used, available, 0)
        self._call("VHOST_SET_VRING_ADDR", VHOST_SET_VRING_ADDR, packed)
        self._call("VHOST_SET_VRING_CALL", VHOST_SET_VRING_CALL, VRING_FILE.pack(index, call))
        self._call("VHOST_SET_VRING_ERR", VHOST_SET_VRING_ERR, VRING_FILE.pack(index, error))
        self._call("VHOST_SET_VRING_KICK", VHOST_SET_VRING_KICK, VRING_FILE.pack(index, kick))

    def run(self, rings: Sequence[int]) -> None:
        """Serve those virtqueues from now on."""
        raise NotImplementedError

    def halt(self) -> None:
        """Serve none, and wait until the kernel has let go of them: some milliseconds."""
        raise NotImplementedError

    def base(self, index: int) -> int:
        data = bytearray(VRING_STATE.pack(index, 0))
        self._call("VHOST_GET_VRING_BASE", VHOST_GET_VRING_BASE, data)
        return int(VRING_STATE.unpack(data)[1]) & 0xFFFF

    def close(self) -> None:
        """The kernel serves nothing any more, and has let go of guest memory."""
        fd, self.fd = self.fd, -1
        self._is_owned = False
        if fd >= 0:
            os.close(fd)

    def _call(self, name: str, request: int, argument: bytes | bytearray = b"") -> None:
        try:
            # A bytearray is not limited to 1,024 bytes, and takes what the kernel writes.
            ioctl(self.fd, request, argument if isinstance(argument, bytearray) else bytearray(argument or bytes(U64.size)))
        except OSError as error:
            raise HostError.from_os(f"{name} for {self.name} failed", error) from error


class VhostNet(Vhost):
    """A pair of virtqueues of a network, receiving and sending, at one queue of the tap `tap_fd`, which the caller owns."""

    def __init__(self, fd: int, name: str, tap_fd: int) -> None:
        super().__init__(fd, name)
        self._tap_fd = tap_fd
        self._running: list[int] = []

    def run(self, rings: Sequence[int]) -> None:
        for index in rings:
            self._running.append(index)
            self._set_backend(index, self._tap_fd)

    def halt(self) -> None:
        while self._running:
            self._set_backend(self._running[-1], VHOST_FILE_UNBIND)
            self._running.pop()

    def _set_backend(self, index: int, fd: int) -> None:
        self._call("VHOST_NET_SET_BACKEND", VHOST_NET_SET_BACKEND, VRING_FILE.pack(index, fd))

    def close(self) -> None:
        self._running = []
        super().close()


class VhostVsock(Vhost):
    """The virtqueues of a socket device in which packets come and go. `set_cid` comes before `run`."""

    def set_cid(self, cid: int) -> None:
        """HostError with EADDRINUSE where another guest of this host has it."""
        self._call("VHOST_VSOCK_SET_GUEST_CID", VHOST_VSOCK_SET_GUEST_CID, U64.pack(cid))

    def run(self, rings: Sequence[int]) -> None:
        """Both, or none: packets that cannot be answered are of no use."""
        if len(rings) == RINGS:
            self._call("VHOST_VSOCK_SET_RUNNING", VHOST_VSOCK_SET_RUNNING, INT.pack(1))

    def halt(self) -> None:
        self._call("VHOST_VSOCK_SET_RUNNING", VHOST_VSOCK_SET_RUNNING, INT.pack(0))


def own_address(gpa: int, regions: Sequence[Region]) -> int:
    """The address in this process of what the guest has at `gpa`, which is in one of `regions`."""
    for region in regions:
        if region.gpa <= gpa < region.end:
            return _address(region.mapping) + gpa - region.gpa
    raise ValueError(f"guest address {gpa:#x} is not in guest memory")


def _address(mapping: mmap.mmap) -> int:
    # What gives the address is let go at once: while it is there, the mapping cannot be closed.
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))
