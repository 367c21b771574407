"""vhost-user, the front end's side: one connection to a back end, a process that serves a virtio device's virtqueues.

The protocol is QEMU's docs/interop/vhost-user.rst, and the names of messages and features are that document's. What the back
end says is checked as a stranger's: it is another process, which a guest can have taken over. Addresses in messages are the
guest's own: to the back end the "user address" is a key only.
"""

from __future__ import annotations

import _socket  # not `socket`, which costs milliseconds before the guest runs
import errno
import os
import struct
import time

from vmservice.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol, TypeVar

    T = TypeVar("T")

    class Region(Protocol):
        """A piece of guest memory, at `offset` of the file `fd`; -1 where no other process can have it."""

        @property
        def gpa(self) -> int: ...

        @property
        def size_bytes(self) -> int: ...

        @property
        def fd(self) -> int: ...

        @property
        def offset(self) -> int: ...


# --- messages of the front end --------------------------------------------------------------------------------------------
GET_FEATURES, SET_FEATURES, SET_OWNER = 1, 2, 3
SET_MEM_TABLE = 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = 8, 9, 10, 11
SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR = 12, 13, 14
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES = 15, 16
GET_QUEUE_NUM, SET_VRING_ENABLE = 17, 18
SET_BACKEND_REQ_FD = 21
GET_CONFIG, SET_CONFIG = 24, 25
RESET_DEVICE = 34
GET_MAX_MEM_SLOTS, ADD_MEM_REG, REM_MEM_REG = 36, 37, 38

# --- messages of the back end, on a channel of their own ------------------------------------------------------------------
BACKEND_CONFIG_CHANGE = 2

# --- a message ------------------------------------------------------------------------------------------------------------
HEADER = struct.Struct("<III")  # request, flags, bytes behind it
VERSION = 1
_VERSION_MASK = 3
REPLY = 1 << 2
NEED_REPLY = 1 << 3
_U64 = struct.Struct("<Q")
_VRING_STATE = struct.Struct("<II")  # index, number
_VRING_ADDR = struct.Struct("<IIQQQQ")  # index, flags, descriptors, used ring, available ring, log
_REGION = struct.Struct("<QQQQ")  # gpa, size, user address, offset in the file
_CONFIG = struct.Struct("<III")  # offset, size, flags; the bytes behind it
NO_FD = 1 << 8  # of the messages that bring an eventfd
_CHANNEL_MAX_BYTES = 4096  # of one message of the back end

# --- features -------------------------------------------------------------------------------------------------------------
PROTOCOL_FEATURES = 1 << 30  # a bit of GET_FEATURES; never the guest's
MQ = 1 << 0
REPLY_ACK = 1 << 3
BACKEND_REQ = 1 << 5
CONFIG = 1 << 9
RESET = 1 << 13
CONFIGURE_MEM_SLOTS = 1 << 15
_KNOWN = MQ | REPLY_ACK | BACKEND_REQ | CONFIG | RESET | CONFIGURE_MEM_SLOTS

CONFIG_MAX_BYTES = 256
TABLE_MAX_REGIONS = 8  # in SET_MEM_TABLE
# Each answer is waited for at most so long; those that wait for requests in flight, longer.
REPLY_SEC = 5.0
DRAIN_SEC = 60.0


class VhostUser:
    """Owns `connection`, a connected stream socket. `name` reads as the back end in a sentence.

    Every method raises HostError, with one sentence, when the back end does not answer in time, answers what cannot be, or is
    gone; `is_lost` is true from then on, and nothing but `close` is of use any more. HostError also says that it refused
    a request, where it can say so (REPLY_ACK).

    `open` comes first. `features` are the device's, `queues` the most virtqueues that it has, `channel` the socket that
    `take_config_changed` reads, -1 without one. Each answer may take `reply_sec`.
    """

    def __init__(self, connection: _socket.socket, name: str, reply_sec: float = REPLY_SEC) -> None:
        self.features = 0
        self.protocol_features = 0
        self.queues = 1
        self.memory_slots = TABLE_MAX_REGIONS
        self.is_lost = False
        self._name = name
        self.reply_sec = reply_sec
        self._socket = connection
        self._channel: _socket.socket | None = None
        self._channel_bytes = b""

    @property
    def fd(self) -> int:
        """The connection: readable when it is at its end, for a back end says nothing unasked on it."""
        return self._socket.fileno()

    @property
    def channel(self) -> int:
        return self._channel.fileno() if self._channel is not None else -1

    def cut(self) -> None:
        """End the connection, from any thread: a call that waits in another one ends too."""
        try:
            self._socket.shutdown(_socket.SHUT_RDWR)
        except OSError:  # it has ended by itself
            return

    def close(self) -> None:
        self.is_lost = True
        self._socket.close()
        self._close_channel()

    def _close_channel(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    # The start of a connection

    def open(self) -> None:
        """Agree on what both know, and take the device."""
        features = self._ask_u64(GET_FEATURES)
        if not features & PROTOCOL_FEATURES:
            raise self._lost("has no VHOST_USER_F_PROTOCOL_FEATURES; a back end of 2016 or later is expected")
        self.features = features & ~PROTOCOL_FEATURES
        chosen = self._ask_u64(GET_PROTOCOL_FEATURES) & _KNOWN
        self._tell(SET_PROTOCOL_FEATURES, _U64.pack(chosen))
        self.protocol_features = chosen  # from here on, and so with acknowledgements
        self._tell(SET_OWNER)
        if chosen & MQ:
            self.queues = self._ask_u64(GET_QUEUE_NUM)
            if not 0 < self.queues <= 0xFF + 1:  # an index has 8 bits where it comes with an eventfd
                raise self._lost(f"says that it has {self.queues} virtqueues; 1 to 256 are possible")
        if chosen & CONFIGURE_MEM_SLOTS:
            self.memory_slots = min(self._ask_u64(GET_MAX_MEM_SLOTS), 0xFFFF)
        if chosen & BACKEND_REQ:
            self._open_channel()

    def _open_channel(self) -> None:
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            ours.setblocking(False)
            self._tell(SET_BACKEND_REQ_FD, fds=[theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._channel = ours

    # The device

    def set_features(self, features: int) -> None:
        """What the driver has chosen."""
        self._tell(SET_FEATURES, _U64.pack(features | PROTOCOL_FEATURES))

    def read_config(self, size_bytes: int) -> bytes:
        """The first bytes of the configuration space. HostError without the feature CONFIG."""
        if not self.protocol_features & CONFIG:
            raise self._lost("has no configuration space (VHOST_USER_PROTOCOL_F_CONFIG)")
        head = _CONFIG.pack(0, size_bytes, 0)
        reply = self._ask(GET_CONFIG, head + bytes(size_bytes), (0, len(head) + size_bytes))
        if not reply:
            raise self._lost(f"does not show the first {size_bytes} bytes of its configuration space")
        if _CONFIG.unpack_from(reply)[:2] != (0, size_bytes):
            raise self._lost("answers with another part of its configuration space than the one that was asked for")
        return reply[len(head) :]

    def reset(self) -> None:
        """The driver has reset the device. Where the back end has no such message, stopped virtqueues are all of it."""
        if self.protocol_features & RESET:
            self._tell(RESET_DEVICE)

    # Guest memory

    def set_memory(self, regions: Sequence[Region]) -> None:
        """All of it. HostError where a region has no file that another process can map, or there are too many."""
        for region in regions:
            if region.fd < 0:
                raise HostError(f"the guest's memory at {region.gpa:#x} is private, so {self._name} cannot have it")
        if not 0 < len(regions) <= self.memory_slots:
            raise HostError(f"{self._name} takes {self.memory_slots} regions of guest memory, and there are {len(regions)}")
        first, more = regions[:TABLE_MAX_REGIONS], regions[TABLE_MAX_REGIONS:]
        table = struct.pack("<II", len(first), 0) + b"".join(map(_region, first))
        self._tell(SET_MEM_TABLE, table, [region.fd for region in first])
        for region in more:
            self.add_region(region)

    @property
    def can_add_regions(self) -> bool:
        """While virtqueues are served."""
        return bool(self.protocol_features & CONFIGURE_MEM_SLOTS)

    def add_region(self, region: Region) -> None:
        self._tell(ADD_MEM_REG, bytes(8) + _region(region), [region.fd])

    def remove_region(self, region: Region) -> None:
        self._tell(REM_MEM_REG, bytes(8) + _region(region))

    # Virtqueues

    def start_ring(
        self, index: int, size: int, next_available: int, addresses: Sequence[int], *, kick: int, call: int, error: int = -1
    ) -> None:
        """Have virtqueue `index` served: its next chain is that at `next_available`; `addresses` in QueueState's order."""
        descriptors, available, used = addresses
        self._tell(SET_VRING_NUM, _VRING_STATE.pack(index, size))
        self._tell(SET_VRING_BASE, _VRING_STATE.pack(index, next_available))
        self._tell(SET_VRING_ADDR, _VRING_ADDR.pack(index, 0, descriptors, used, available, 0))
        self._tell_fd(SET_VRING_CALL, index, call)
        self._tell_fd(SET_VRING_ERR, index, error)
        self._tell_fd(SET_VRING_KICK, index, kick)
        self._tell(SET_VRING_ENABLE, _VRING_STATE.pack(index, 1))

    def stop_ring(self, index: int, timeout_sec: float = DRAIN_SEC) -> int:
        """Where virtqueue `index` would have gone on. Nothing is taken from it any more."""
        sent = _VRING_STATE.pack(index, 0)
        stopped, base = _VRING_STATE.unpack(self._ask(GET_VRING_BASE, sent, (_VRING_STATE.size,), timeout_sec))
        if stopped != index or base > 0xFFFF:
            raise self._lost(f"stops virtqueue {index}, but answers for virtqueue {stopped} at index {base}")
        return int(base)

    def _tell_fd(self, request: int, index: int, fd: int) -> None:
        if fd < 0:
            self._tell(request, _U64.pack(index | NO_FD))
        else:
            self._tell(request, _U64.pack(index), [fd])

    # What the back end says by itself

    def take_config_changed(self) -> bool:
        """Whether it has said that the configuration space has changed. Waits for nothing; HostError for what is no message.

        A back end that closes the channel only has no more to say.
        """
        changed = False
        while self._channel is not None:
            try:
                more = self._channel.recv(_CHANNEL_MAX_BYTES)  # descriptors that come along are closed by the kernel
            except BlockingIOError:
                return changed
            except OSError:
                more = b""
            if not more:
                self._close_channel()
                return changed
            self._channel_bytes += more
            changed |= self._take_messages()
        return changed

    def _take_messages(self) -> bool:
        changed = False
        while len(self._channel_bytes) >= HEADER.size:
            request, flags, size = HEADER.unpack_from(self._channel_bytes)
            if flags & _VERSION_MASK != VERSION or size > _CHANNEL_MAX_BYTES - HEADER.size:
                raise self._lost(f"sends a message of {size} bytes with the flags {flags:#x} on its own channel")
            if len(self._channel_bytes) < HEADER.size + size:
                return changed
            self._channel_bytes = self._channel_bytes[HEADER.size + size :]
            changed |= request == BACKEND_CONFIG_CHANGE
            if flags & NEED_REPLY and self._channel is not None:
                self._answer(self._channel, request)
        return changed

    def _answer(self, channel: _socket.socket, request: int) -> None:
        known = request == BACKEND_CONFIG_CHANGE
        try:
            channel.send(HEADER.pack(request, VERSION | REPLY, _U64.size) + _U64.pack(0 if known else 1))
        except OSError:  # it does not read its answers
            self._close_channel()

    # Messages

    def _ask_u64(self, request: int) -> int:
        return int(_U64.unpack(self._ask(request, b"", (_U64.size,)))[0])

    def _tell(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send what has no answer; where both know acknowledgements, wait for one."""
        if not self.protocol_features & REPLY_ACK:
            self._send(request, VERSION, payload, fds, self._deadline())
            return
        deadline = self._deadline()
        self._send(request, VERSION | NEED_REPLY, payload, fds, deadline)
        if any(self._receive(request, (_U64.size,), deadline)):
            raise HostError(f"{self._name} refuses message {request} of vhost-user; its own log may say why")

    def _ask(self, request: int, payload: bytes, sizes: Sequence[int], timeout_sec: float | None = None) -> bytes:
        """The answer, of one of those `sizes`."""
        deadline = self._deadline(timeout_sec)
        self._send(request, VERSION, payload, (), deadline)
        return self._receive(request, sizes, deadline)

    def _deadline(self, timeout_sec: float | None = None) -> float:
        return time.monotonic() + (self.reply_sec if timeout_sec is None else timeout_sec)

    def _send(self, request: int, flags: int, payload: bytes, fds: Sequence[int], deadline: float) -> None:
        message = HEADER.pack(request, flags, len(payload)) + payload
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
        sent = self._within(deadline, self._socket.sendmsg, [message], rights, _socket.MSG_NOSIGNAL)
        while sent < len(message):
            sent += self._within(deadline, self._socket.send, message[sent:], _socket.MSG_NOSIGNAL)

    def _receive(self, request: int, sizes: Sequence[int], deadline: float) -> bytes:
        answered, flags, size = HEADER.unpack(self._receive_bytes(HEADER.size, deadline))
        if answered != request or flags & _VERSION_MASK != VERSION or not flags & REPLY or size not in sizes:
            raise self._lost(f"answers message {request} with message {answered}, flags {flags:#x}, of {size} bytes")
        return self._receive_bytes(size, deadline)

    def _receive_bytes(self, size_bytes: int, deadline: float) -> bytes:
        data = b""
        while len(data) < size_bytes:
            part = self._within(deadline, self._socket.recv, size_bytes - len(data))
            if not part:
                raise self._lost("has closed the connection")
            data += part
        return data

    def _within(self, deadline: float, call: Callable[..., T], *arguments: object) -> T:
        """What the socket's method `call` returns, before the deadline."""
        if self.is_lost:
            raise self._lost("is gone")
        try:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            return call(*arguments)
        except TimeoutError:
            raise self._lost("does not answer in time", errno.ETIMEDOUT) from None
        except ConnectionError as error:  # a reset too, where it has not read all that it was sent
            raise self._lost("has closed the connection", error.errno or 0) from None
        except OSError as error:
            raise self._lost(f"is gone: {os.strerror(error.errno or 0)}", error.errno or 0) from None

    def _lost(self, what: str, number: int = 0) -> HostError:
        """The connection is of no use any more: `what` of the back end is why."""
        self.is_lost = True
        return HostError(f"{self._name} {what}", number)


def _region(region: Region) -> bytes:
    return _REGION.pack(region.gpa, region.size_bytes, region.gpa, region.offset)


def connect(path: str, timeout_sec: float) -> _socket.socket:
    """A connection to the socket at `path`. OSError when there is nobody, also where the queue of a busy listener is full."""
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(timeout_sec)
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    return connection
