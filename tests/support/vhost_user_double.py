"""A back end of vhost-user in a thread of the test's own: a disk in memory, which can be told to break in many ways.

What it is to the front end is written down from QEMU's docs/interop/vhost-user.rst once more; rings are worked by `Queue`.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from vmservice.devices.virtio.queue import Chain, Queue, QueueState
from vmservice.memory.guest_memory import GuestMemory, Region

SECTOR = 512
TIMEOUT_SEC = 60.0
# VERSION_1, EVENT_IDX, INDIRECT_DESC, protocol features; of the disk's SEG_MAX, BLK_SIZE, FLUSH, CONFIG_WCE, MQ
FEATURES = 1 << 32 | 1 << 29 | 1 << 28 | 1 << 30 | 1 << 2 | 1 << 6 | 1 << 9 | 1 << 11 | 1 << 12
PROTOCOL = 1 << 0 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 15  # MQ, REPLY_ACK, BACKEND_REQ, CONFIG, CONFIGURE_MEM_SLOTS
CONFIG_BYTES = 60
IN, OUT, GET_ID = 0, 1, 8


class Gone(Exception):
    """The connection is at its end."""


class DiskBackEnd:
    """Listens at `path`, or has the other end of `connection`.

    `received` are the requests by number, of all connections. `answers` replaces the answer to a request by bytes, of a whole
    message. At a request in `dies_at` the connection is closed instead of an answer, at one in `silent_at` nothing is said.
    `connections` have begun, and `ended` of them have ended.
    Where `gate` is closed, what the driver asks for is taken and done when it is opened by `open_gate`.
    """

    def __init__(
        self, path: Path | None = None, connection: socket.socket | None = None, *, sectors: int = 64, queues: int = 2
    ) -> None:
        self.features = FEATURES
        self.protocol = PROTOCOL
        self.queues = queues
        self.slots = 32
        self.disk = bytearray(sectors * SECTOR)
        self.capacity = sectors
        self.received: list[int] = []
        self.payloads: dict[int, bytes] = {}
        self.answers: dict[int, bytes] = {}
        self.puts_back = False
        self.dies_at: set[int] = set()
        self.silent_at: set[int] = set()
        self.gate_is_open = True
        self.connections = 0
        self.ended = 0
        self.requests = 0
        self.errors: list[BaseException] = []
        self._path = path
        self._connection = connection
        self._listener = _listen(path) if path is not None else None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._ending = False
        self._visit: _Visit | None = None
        self._thread = threading.Thread(target=self._main, name="vhost-user double")
        self._thread.start()

    def cut(self) -> None:
        """Die, as a process does; what listens, listens on."""
        if self._visit is not None:
            self._visit.is_cut = True
        os.eventfd_write(self._wake, 1)

    @property
    def taken_up(self) -> bool:
        """Whether every virtqueue is served."""
        visit = self._visit
        return visit is not None and sum(ring.is_running for ring in list(visit.rings.values())) == self.queues

    @property
    def is_idle(self) -> bool:
        """Whether a front end is there, and no virtqueue is served or was left with the descriptors of one that is."""
        visit = self._visit
        return visit is not None and all(ring.is_stopped for ring in list(visit.rings.values()))

    def taken(self, index: int = 0) -> int:
        """How many requests of a virtqueue wait for the gate."""
        visit = self._visit
        return len(visit.rings[index].taken) if visit is not None and index in visit.rings else 0

    def open_gate(self) -> None:
        self.gate_is_open = True
        os.eventfd_write(self._wake, 1)

    def change_capacity(self, sectors: int) -> None:
        """Grow, and say so."""
        self.capacity = sectors
        assert self._visit is not None and self._visit.channel is not None
        self._visit.channel.send(struct.pack("<III", 2, 1, 0))

    def say(self, message: bytes) -> None:
        """On the back end's own channel."""
        assert self._visit is not None and self._visit.channel is not None
        self._visit.channel.send(message)

    def close(self) -> None:
        self._ending = True
        self.cut()
        self._thread.join(TIMEOUT_SEC)
        assert not self._thread.is_alive()
        if self._listener is not None:
            self._listener.close()
        os.close(self._wake)
        assert self.errors == []

    def _main(self) -> None:
        try:
            if self._connection is not None:
                self._serve(self._connection)
            while self._listener is not None and not self._ending:
                _wait([self._listener.fileno(), self._wake])
                self._drain_wake()
                try:
                    connection = self._listener.accept()[0]
                except BlockingIOError:
                    continue
                connection.setblocking(True)
                self._serve(connection)
        except BaseException as error:
            self.errors.append(error)

    def _serve(self, connection: socket.socket) -> None:
        self.connections += 1
        self._visit = visit = _Visit(self, connection)
        try:
            while not visit.is_cut and not self._ending:
                self._turn(visit)
        except (Gone, ConnectionError):
            return
        finally:
            self._visit = None
            visit.close()
            self.ended += 1

    def _turn(self, visit: _Visit) -> None:
        kicks = {ring.kick: ring for ring in visit.rings.values() if ring.is_running}
        ready = _wait([visit.connection.fileno(), self._wake, *kicks])
        self._drain_wake()
        if visit.connection.fileno() in ready and not visit.is_cut:
            visit.message()
        for fd, ring in kicks.items():
            if fd in ready and ring.is_running:
                os.eventfd_read(fd)
                ring.take(self)
        if self.gate_is_open:
            for ring in visit.rings.values():
                ring.finish(self)

    def _drain_wake(self) -> None:
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            return

    def can_execute(self, chain: Chain) -> bool:
        return True

    def execute(self, chain: Chain) -> int:
        self.requests += 1
        kind, _, sector = struct.unpack("<IIQ", chain.read(16))
        size = chain.writable_bytes - 1
        data = b""
        if kind == IN:
            data = bytes(self.disk[sector * SECTOR : sector * SECTOR + size])
        elif kind == GET_ID:
            data = b"vhost_user_blk".ljust(size, b"\0")
        elif kind == OUT:
            written = chain.read(1 << 20)[16:]
            self.disk[sector * SECTOR : sector * SECTOR + len(written)] = written
        return chain.write(data + b"\0")


class _Ring:
    def __init__(self) -> None:
        self.size = 0
        self.base = 0
        self.addresses = (0, 0, 0)
        self.kick = self.call = -1
        self.is_enabled = False
        self.queue: Queue | None = None
        self.taken: list[Chain] = []

    @property
    def is_running(self) -> bool:
        return self.queue is not None and self.is_enabled

    @property
    def is_stopped(self) -> bool:
        return self.kick == self.call == -1

    def start(self, memory: GuestMemory, features: int) -> None:
        state = QueueState(self.size)
        state.addresses = list(self.addresses)
        state.next_available = self.base
        (used,) = struct.unpack("<H", memory.read(self.addresses[2] + 2, 2))
        state.next_used = state.published_used = used
        state.ready = True
        self.queue = Queue(memory, state, features)

    def take(self, disk: DiskBackEnd) -> None:
        while self.queue is not None and self.is_enabled and (chain := self.queue.pop()) is not None:
            self.taken.append(chain)
        if disk.gate_is_open:
            self.finish(disk)

    def finish(self, disk: DiskBackEnd) -> None:
        if self.queue is None:
            return
        while self.taken and disk.can_execute(self.taken[0]):
            chain = self.taken.pop(0)
            self.queue.add_used(chain.head, disk.execute(chain))
        if self.queue.publish() and self.call >= 0:
            os.eventfd_write(self.call, 1)

    def stop(self) -> int:
        """Requests in flight stay: a back end need not wait for them."""
        base = self.queue.state.next_available if self.queue is not None else self.base
        self.is_enabled = False
        for fd in (self.kick, self.call):
            if fd >= 0:
                os.close(fd)
        self.kick = self.call = -1
        return base

    def put_back(self) -> int:
        """What was taken and not used is taken anew after the next start; how much."""
        count, self.taken = len(self.taken), []
        if self.queue is not None:
            self.queue.close()
            self.queue = None
        return count

    def forget(self) -> None:
        self.stop()
        self.taken = []
        if self.queue is not None:
            self.queue.close()
            self.queue = None


class _Visit:
    """One connection."""

    def __init__(self, disk: DiskBackEnd, connection: socket.socket) -> None:
        self.disk = disk
        self.connection = connection
        self.channel: socket.socket | None = None
        self.memory: GuestMemory | None = None
        self.features = 0
        self.protocol = 0
        self.rings: dict[int, _Ring] = {}
        self.is_cut = False

    def close(self) -> None:
        for ring in self.rings.values():
            ring.forget()
        if self.memory is not None:
            self.memory.close()
        if self.channel is not None:
            self.channel.close()
        self.connection.close()

    def message(self) -> None:
        header, fds, _, _ = socket.recv_fds(self.connection, 12, 8)
        if len(header) < 12:
            raise Gone
        request, flags, size = struct.unpack("<III", header)
        payload = self.connection.recv(size, socket.MSG_WAITALL) if size else b""
        disk = self.disk
        disk.received.append(request)
        disk.payloads[request] = payload
        if request in disk.dies_at:
            for fd in fds:
                os.close(fd)
            raise Gone
        reply = self.handle(request, payload, fds)
        if request in disk.silent_at:
            return
        if request in disk.answers:
            self.connection.send(disk.answers[request])
        elif reply is not None or flags & 8:
            body = reply if reply is not None else struct.pack("<Q", 0)
            self.connection.send(struct.pack("<III", request, 1 | 4, len(body)) + body)

    def handle(self, request: int, payload: bytes, fds: list[int]) -> bytes | None:
        disk = self.disk
        asked: dict[int, Callable[[], int]] = {
            1: lambda: disk.features,
            15: lambda: disk.protocol,
            17: lambda: disk.queues,
            36: lambda: disk.slots,
        }
        if request in asked:
            return struct.pack("<Q", asked[request]())
        if request == 24:
            offset, size, _ = struct.unpack_from("<III", payload)
            return payload[:12] + self.config()[offset : offset + size] if size <= CONFIG_BYTES else b""
        if request == 2:
            (self.features,) = struct.unpack("<Q", payload)
        elif request == 16:
            (self.protocol,) = struct.unpack("<Q", payload)
        elif request == 21:
            self.channel = socket.socket(fileno=fds[0])
        elif request == 5:
            self.set_memory(payload, fds)
        elif request in (37, 38):
            self.change_memory(request, payload, fds)
        elif request in (12, 13, 14):
            self.set_fd(request, payload, fds)
        elif request in (8, 9, 10, 11, 18):
            return self.set_ring(request, payload)
        return None

    def config(self) -> bytes:
        config = struct.pack("<QII", self.disk.capacity, 0, 126).ljust(34, b"\0") + struct.pack("<H", self.disk.queues)
        return config.ljust(CONFIG_BYTES, b"\0")

    def set_memory(self, payload: bytes, fds: list[int]) -> None:
        (count, _) = struct.unpack_from("<II", payload)
        assert count == len(fds)
        regions = [_map(struct.unpack_from("<QQQQ", payload, 8 + 32 * number), fd) for number, fd in enumerate(fds)]
        for ring in self.rings.values():
            ring.forget()
        if self.memory is not None:
            self.memory.close()
        self.memory = GuestMemory(regions)

    def change_memory(self, request: int, payload: bytes, fds: list[int]) -> None:
        assert self.memory is not None
        region = struct.unpack_from("<QQQQ", payload, 8)
        if request == 37:
            self.memory.add(_map(region, fds[0]))
        else:
            removed = self.memory.remove(region[0])
            removed.view.release()
            removed.mapping.close()

    def set_fd(self, request: int, payload: bytes, fds: list[int]) -> None:
        (index,) = struct.unpack("<Q", payload)
        assert bool(index & 1 << 8) == (not fds)
        ring = self.rings.setdefault(index & 0xFF, _Ring())
        if request == 12:
            ring.kick = fds[0]
            assert self.memory is not None
            if ring.queue is not None and not ring.taken:
                ring.queue.close()
                ring.queue = None
            if ring.queue is None:
                ring.start(self.memory, self.features)
            ring.take(self.disk)
        elif request == 13:
            ring.call = fds[0]
        else:
            for fd in fds:
                os.close(fd)

    def set_ring(self, request: int, payload: bytes) -> bytes | None:
        index, value = struct.unpack_from("<II", payload)
        ring = self.rings.setdefault(index, _Ring())
        if request == 8:
            ring.size = value
        elif request == 10:
            ring.base = value
        elif request == 9:
            _, _, descriptors, used, available, _ = struct.unpack("<IIQQQQ", payload)
            ring.addresses = (descriptors, available, used)
        elif request == 18:
            ring.is_enabled = bool(value)
            ring.take(self.disk)
        else:
            base = ring.stop()
            if self.disk.puts_back:
                base = (base - ring.put_back()) & 0xFFFF
            return struct.pack("<II", index, base)
        return None


def _wait(fds: list[int]) -> list[int]:
    return select.select(fds, [], [])[0]


def _map(region: tuple[int, ...], fd: int) -> Region:
    gpa, size, address, offset = region
    assert address == gpa
    mapping = mmap.mmap(fd, size, mmap.MAP_SHARED, offset=offset)
    os.close(fd)
    return Region(gpa, mapping)


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    listener.setblocking(False)
    return listener
