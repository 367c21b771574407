"""The kernel's vhost for tests, behind ioctl(2): where the modules are not at hand, and for faults that the real one never
shows.

What <linux/vhost.h> says is written down once more. Guest memory is reached by the addresses in the memory table alone; rings
are worked by `Queue`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
import threading
from collections.abc import Callable

from vmservice.devices.virtio.queue import Queue, QueueState
from vmservice.errors import GuestError

TIMEOUT_SEC = 60.0
# VERSION_1, EVENT_IDX, INDIRECT_DESC, LOG_ALL, ACCESS_PLATFORM
COMMON = 1 << 32 | 1 << 29 | 1 << 28 | 1 << 26 | 1 << 33
FEATURES = {"vhost-net": COMMON | 1 << 15 | 1 << 27 | 1 << 40, "vhost-vsock": COMMON | 1 << 1}
RECEIVE, SEND = 0, 1

GET_FEATURES, SET_FEATURES, SET_OWNER, SET_MEM_TABLE = 0x8008AF00, 0x4008AF00, 0xAF01, 0x4008AF03
SET_NUM, SET_ADDR, SET_BASE, GET_BASE = 0x4008AF10, 0x4028AF11, 0x4008AF12, 0xC008AF12
SET_KICK, SET_CALL, SET_ERR = 0x4008AF20, 0x4008AF21, 0x4008AF22
SET_BACKEND, SET_CID, SET_RUNNING = 0x4008AF30, 0x4008AF60, 0x4004AF61


class VhostKernel:
    """`open` is a /dev/vhost-*, `ioctl` what is asked of it. `refuse` has errors, errno by request: each is given once."""

    def __init__(self) -> None:
        self.devices: list[VhostDevice] = []
        self.asked: list[int] = []
        self.refuse: dict[int, int] = {}

    def open(self, kind: str) -> int:
        device = VhostDevice(self, kind)
        self.devices.append(device)
        return device.fd

    def ioctl(self, fd: int, request: int, argument: bytearray) -> int:
        self.asked.append(request)
        if request in self.refuse:
            raise OSError(self.refuse.pop(request), "")
        device = next(device for device in reversed(self.devices) if device.fd == fd and device.is_open)
        device.handle(request, argument)
        return 0

    def has_cid(self, cid: int) -> bool:
        return any(device.cid == cid for device in self.devices if device.is_open)

    def close(self) -> None:
        for device in self.devices:
            device.end()


class VhostDevice:
    """`sent` is what the driver has sent; `deliver` has something received."""

    def __init__(self, kernel: VhostKernel, kind: str) -> None:
        self.kind = kind
        self.fd = os.memfd_create(kind)
        self._inode = os.fstat(self.fd).st_ino
        self._kernel = kernel
        self.features = 0
        self.is_owned = False
        self.memory = _Memory()
        self.rings = [_Ring(), _Ring()]
        self.cid = 0
        self.sent: list[bytes] = []
        self._to_deliver: list[bytes] = []
        self._lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._ending = False
        self._thread: threading.Thread | None = None
        self.errors: list[BaseException] = []

    @property
    def is_open(self) -> bool:
        try:
            return os.fstat(self.fd).st_ino == self._inode
        except OSError:
            return False

    @property
    def regions(self) -> list[tuple[int, int, int]]:
        """gpa, size and address of each."""
        return self.memory.regions

    def deliver(self, data: bytes) -> None:
        with self._lock:
            self._to_deliver.append(data)
        os.eventfd_write(self._wake, 1)

    def end(self) -> None:
        self._ending = True
        os.eventfd_write(self._wake, 1)
        if self._thread is not None:
            self._thread.join(TIMEOUT_SEC)
            assert not self._thread.is_alive()
        for ring in self.rings:
            ring.halt()
            ring.forget()
        os.close(self._wake)
        assert self.errors == []

    # Requests

    def handle(self, request: int, argument: bytearray) -> None:
        if request == GET_FEATURES:
            argument[:] = struct.pack("<Q", FEATURES[self.kind])
            return
        if request == SET_CID:
            self._set_cid(struct.unpack("<Q", argument)[0])
            return
        if request == SET_OWNER:
            _refuse_if(self.is_owned, errno.EBUSY)
            self.is_owned = True
            self._thread = threading.Thread(target=self._main, name=f"{self.kind} double")
            self._thread.start()
            return
        _refuse_if(not self.is_owned, errno.EPERM)
        with self._lock:
            self._handle_owned(request, argument)
        os.eventfd_write(self._wake, 1)

    def _set_cid(self, cid: int) -> None:
        _refuse_if(cid <= 2 or cid >= 0xFFFF_FFFF, errno.EINVAL)
        _refuse_if(self.cid != cid and self._kernel.has_cid(cid), errno.EADDRINUSE)
        self.cid = cid

    def _handle_owned(self, request: int, argument: bytearray) -> None:
        if request == SET_FEATURES:
            (features,) = struct.unpack("<Q", argument)
            _refuse_if(features & ~FEATURES[self.kind], errno.EOPNOTSUPP)
            self.features = features
        elif request == SET_MEM_TABLE:
            self._set_memory(argument)
        elif request == SET_RUNNING:
            self._set_running(struct.unpack("<i", argument)[0])
        else:
            index = struct.unpack_from("<I", argument)[0]
            _refuse_if(index >= len(self.rings), errno.ENOBUFS)
            self._handle_ring(self.rings[index], request, argument)

    def _set_memory(self, argument: bytearray) -> None:
        (count, _) = struct.unpack_from("<II", argument)
        assert len(argument) == 8 + 32 * count
        regions = []
        for number in range(count):
            gpa, size, address, zero = struct.unpack_from("<QQQQ", argument, 8 + 32 * number)
            assert not zero
            regions.append((gpa, size, address))
        _refuse_if(any(ring.is_running and not ring.is_within(regions) for ring in self.rings), errno.EFAULT)
        self.memory.regions = regions

    def _set_running(self, running: int) -> None:
        assert self.kind == "vhost-vsock"
        if running:
            _refuse_if(not all(ring.is_within(self.regions) for ring in self.rings), errno.EFAULT)
        for ring in self.rings:
            if running:
                ring.run(self.memory, self.features)
            else:
                ring.halt()

    def _handle_ring(self, ring: _Ring, request: int, argument: bytearray) -> None:
        number, value = struct.unpack_from("<Ii", argument)
        if request == SET_NUM:
            _refuse_if(ring.is_running, errno.EBUSY)
            ring.size = value
        elif request == SET_BASE:
            _refuse_if(ring.is_running, errno.EBUSY)
            ring.base = value
        elif request == GET_BASE:
            argument[:] = struct.pack("<II", number, ring.base)
        elif request == SET_ADDR:
            _, flags, descriptors, used, available, _ = struct.unpack("<IIQQQQ", argument)
            assert not flags
            ring.addresses = (descriptors, available, used)
            _refuse_if(not ring.is_within(self.regions), errno.EFAULT)
        elif request in (SET_KICK, SET_CALL, SET_ERR):
            ring.set_fd(request, value)
        elif request == SET_BACKEND:
            assert self.kind == "vhost-net"
            _refuse_if(value >= 0 and not ring.is_within(self.regions), errno.EFAULT)
            if value >= 0:
                os.fstat(value)
                ring.run(self.memory, self.features)
            else:
                ring.halt()
        else:
            raise OSError(errno.ENOTTY, "")

    # The worker

    def _main(self) -> None:
        try:
            while not self._ending:
                with self._lock:
                    kicks = [ring.fds[SET_KICK] for ring in self.rings if ring.is_running and SET_KICK in ring.fds]
                select.select([self._wake, *kicks], [], [])
                with self._lock:
                    for fd in (self._wake, *kicks):
                        _drain(fd)
                    self._work()
        except BaseException as error:
            self.errors.append(error)

    def _work(self) -> None:
        sending, receiving = self.rings[SEND], self.rings[RECEIVE]
        sending.work(lambda queue: self._take(queue, sending))
        receiving.work(self._give)

    def _take(self, queue: Queue, ring: _Ring) -> None:
        while (chain := queue.pop()) is not None:
            self.sent.append(chain.read(1 << 20))
            queue.add_used(chain.head, 0)

    def _give(self, queue: Queue) -> None:
        while self._to_deliver and (chain := queue.pop()) is not None:
            queue.add_used(chain.head, chain.write(self._to_deliver.pop(0)))


class _Ring:
    def __init__(self) -> None:
        self.size = 0
        self.base = 0
        self.addresses = (0, 0, 0)
        self.fds: dict[int, int] = {}
        self.is_running = False
        self._queue: Queue | None = None
        self._is_bad = False

    def is_within(self, regions: list[tuple[int, int, int]]) -> bool:
        sizes = (16 * self.size, 6 + 2 * self.size, 6 + 8 * self.size)
        return all(_gpa(address, size, regions) is not None for address, size in zip(self.addresses, sizes, strict=True))

    def set_fd(self, request: int, fd: int) -> None:
        """The kernel holds the file, whatever becomes of the descriptor."""
        if request in self.fds:
            os.close(self.fds.pop(request))
        if fd >= 0:
            self.fds[request] = os.dup(fd)

    def run(self, memory: _Memory, features: int) -> None:
        self.halt()
        state = QueueState(self.size)
        state.addresses = [_gpa(address, 1, memory.regions) or 0 for address in self.addresses]
        state.next_available = self.base
        state.next_used = state.published_used = struct.unpack("<H", memory.view(state.addresses[2] + 2, 2))[0]
        state.ready = True
        self._queue = Queue(memory, state, features)
        self.is_running, self._is_bad = True, False

    def work(self, serve: Callable[[Queue], None]) -> None:
        if self._queue is None or self._is_bad:
            return
        try:
            serve(self._queue)
        except GuestError:
            self._is_bad = True
            os.eventfd_write(self.fds[SET_ERR], 1)
        if self._queue.publish() and SET_CALL in self.fds:
            os.eventfd_write(self.fds[SET_CALL], 1)

    def halt(self) -> None:
        if self._queue is not None:
            self.base = self._queue.state.next_available
            self._queue.close()
        self._queue, self.is_running = None, False

    def forget(self) -> None:
        while self.fds:
            os.close(self.fds.popitem()[1])


class _Memory:
    """Guest memory by the memory table, as it was told last."""

    def __init__(self) -> None:
        self.regions: list[tuple[int, int, int]] = []

    def view(self, gpa: int, size_bytes: int) -> memoryview:
        for start, size, address in self.regions:
            if start <= gpa and gpa + size_bytes <= start + size:
                return memoryview((ctypes.c_char * size_bytes).from_address(address + gpa - start)).cast("B")
        raise GuestError("EFAULT")

    def contains(self, gpa: int, size_bytes: int) -> bool:
        return any(start <= gpa and gpa + size_bytes <= start + size for start, size, _ in self.regions)


def _gpa(address: int, size_bytes: int, regions: list[tuple[int, int, int]]) -> int | None:
    for gpa, size, start in regions:
        if start <= address and address + size_bytes <= start + size:
            return gpa + address - start
    return None


def _refuse_if(refused: object, number: int) -> None:
    if refused:
        raise OSError(number, "")


def _drain(fd: int) -> None:
    try:
        os.eventfd_read(fd)
    except BlockingIOError:
        return
