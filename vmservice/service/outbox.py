"""What the VMM says to journald and to the service manager, sent from a thread of its own: nobody waits for either.

systemd-python sends it, and holds the interpreter's lock while libsystemd waits for room in the receiver's socket: with a
receiver that reads nothing, that would stop every vCPU. So the thread asks the kernel first, for a datagram socket that is
connected is writable when its receiver has room. What others fill up between that and the call, a timer ends: see
`signals.Interrupting`.

systemd-python is imported by that thread, once the guest runs. What was said before has waited in its queue.
"""

from __future__ import annotations

import _socket  # not `socket`, which costs milliseconds before the guest runs
import _thread
import errno
import os
import time

from vmservice.host.poll import wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Item = dict[str, str]

# How soon a receiver that is not there is looked for again, while something waits for it.
_RETRY_SEC = 1.0

# How long the end of the process waits for a receiver that takes nothing.
_PATIENCE_SEC = 1.0

# The receiver is there and takes nothing now, after the kernel had said that it would.
_BUSY = (errno.EAGAIN, errno.ENOBUFS, errno.EINTR)

# The item can never be sent.
_UNSENDABLE = (errno.EMSGSIZE, errno.EINVAL)


class Channel:
    """One receiver's queue. An item is one datagram: fields with their values.

    `deliver` sends one; it is called in the outbox's thread and raises OSError. At most `limit` items with `limit_chars` in all
    wait; what comes then is dropped, and `missing` makes the item that says how many were. `merge` may make one item of two
    that follow each other. `on_trouble` is called once, in that thread, with the first item that could not be sent and why.
    `settle` is called there at the end, when all has been sent: it waits until that has been read, so many seconds at most.
    """

    def __init__(
        self,
        address: str,
        deliver: Callable[[Item], None],
        *,
        limit: int,
        limit_chars: int,
        missing: Callable[[int], Item] | None = None,
        merge: Callable[[Item, Item], Item | None] | None = None,
        on_trouble: Callable[[Item, str], None] | None = None,
        settle: Callable[[float], None] | None = None,
    ) -> None:
        self.wake: Callable[[], None] | None = None
        self.settle = settle
        self._address = address
        self._deliver = deliver
        self._limit = limit
        self._limit_chars = limit_chars
        self._missing = missing
        self._merge = merge
        self._on_trouble = on_trouble
        self._lock = _thread.allocate_lock()
        self._items: list[Item] = []
        self._chars = 0
        self._dropped = 0

    def put(self, item: Item) -> None:
        """From any thread, at once."""
        with self._lock:
            self._say_missing()
            if self._has_room():
                self._append(item)
            else:
                self._dropped += 1
        if self.wake is not None:
            self.wake()

    @property
    def is_empty(self) -> bool:
        return not self._items and not self._dropped

    def take_left(self) -> list[Item]:
        """What was not sent, once the outbox is closed."""
        with self._lock:
            left, self._items, self._chars = self._items, [], 0
            self._say_missing()
            return left + self._items

    def move(self) -> _socket.socket | None:
        """Send what the receiver takes; OSError if it is not there. If it takes no more now, a socket to be polled for room."""
        while (item := self._take()) is not None:
            try:
                gauge = _connected(self._address)
                try:
                    sent = _is_writable(gauge) and self._send(item)
                except BaseException:
                    gauge.close()
                    raise
            except OSError as error:
                self._put_back(item, error.strerror or str(error))
                raise
            if not sent:
                self._put_back(item, "its socket is full")
                return gauge
            gauge.close()
        return None

    def _send(self, item: Item) -> bool:
        """Whether it is done with."""
        try:
            self._deliver(item)
        except OSError as error:
            if error.errno in _BUSY:
                return False
            if error.errno not in _UNSENDABLE:
                raise
            with self._lock:
                self._dropped += 1
        return True

    def _take(self) -> Item | None:
        with self._lock:
            if not self._items:
                self._say_missing()
            if not self._items:
                return None
            item = self._items.pop(0)
            self._chars -= _size(item)
            return item

    def _put_back(self, item: Item, why: str) -> None:
        with self._lock:
            self._items.insert(0, item)
            self._chars += _size(item)
        on_trouble, self._on_trouble = self._on_trouble, None
        if on_trouble is not None:
            on_trouble(item, why)

    def _has_room(self) -> bool:
        return len(self._items) < self._limit and self._chars < self._limit_chars

    def _say_missing(self) -> None:
        if self._dropped and self._missing is not None and self._has_room():
            self._append(self._missing(self._dropped))
            self._dropped = 0

    def _append(self, item: Item) -> None:
        merged = self._merge(self._items[-1], item) if self._merge is not None and self._items else None
        if merged is not None:
            self._chars -= _size(self._items.pop())
            item = merged
        self._items.append(item)
        self._chars += _size(item)


class Outbox:
    """The thread that empties the channels. `start` it when the guest runs; `close` sends what is left, started or not."""

    def __init__(self) -> None:
        self._channels: list[Channel] = []
        self._wake_fd = -1
        self._closing_at: float | None = None  # on the monotonic clock: when patience ends
        self._ended = _thread.allocate_lock()  # held by the thread for as long as it lives
        self._on_bug: Callable[[Exception], None] | None = None

    def add(self, channel: Channel) -> None:
        """Before `start`."""
        self._channels.append(channel)
        channel.wake = self._wake

    def start(self) -> None:
        if self._wake_fd < 0 and self._channels:
            self._wake_fd = os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._ended.acquire()
            _thread.start_new_thread(self._main, ())

    def on_bug(self, report: Callable[[Exception], None] | None) -> None:
        """Whom the thread tells of an exception that nobody expected, before it ends."""
        self._on_bug = report

    def close(self) -> None:
        """Wait _PATIENCE_SEC at most for receivers that take nothing; the channels have what is left then."""
        if self._wake_fd < 0 and all(channel.is_empty for channel in self._channels):
            return
        self._closing_at = time.monotonic() + _PATIENCE_SEC
        self.start()
        self._wake()
        with self._ended:
            fd, self._wake_fd = self._wake_fd, -1
        if fd >= 0:
            os.close(fd)

    def _wake(self) -> None:
        if self._wake_fd >= 0:
            os.eventfd_write(self._wake_fd, 1)

    def _main(self) -> None:
        try:
            while self._turn():
                pass
            self._settle()
        except Exception as error:
            if self._on_bug is None:
                raise
            self._on_bug(error)
        finally:
            self._ended.release()

    def _turn(self) -> bool:
        """Send what can be sent, and sleep until there is more to do; False when it is time to end."""
        import select

        poll = select.poll()
        poll.register(self._wake_fd, select.POLLIN)
        _clear(self._wake_fd)
        full: list[_socket.socket] = []
        absent = False
        for channel in self._channels:
            try:
                gauge = channel.move()
            except OSError:
                absent = True
                continue
            if gauge is not None:
                full.append(gauge)
                poll.register(gauge, select.POLLOUT)
        timeout_sec = _RETRY_SEC if absent else None
        if self._closing_at is not None:
            timeout_sec = self._closing_at - time.monotonic()
        ends = self._closing_at is not None and (not full or (timeout_sec is not None and timeout_sec <= 0))
        if not ends:
            wait(poll, None if timeout_sec is None else timeout_sec * 1000)
        for gauge in full:
            gauge.close()
        return not ends

    def _settle(self) -> None:
        for channel in self._channels:
            if channel.settle is not None and channel.is_empty and self._closing_at is not None:
                channel.settle(max(self._closing_at - time.monotonic(), 0.0))


def _connected(address: str) -> _socket.socket:
    """A socket that sends to `address`, a path or @ and an abstract name. OSError if nobody listens there."""
    gauge = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        gauge.connect(b"\0" + os.fsencode(address[1:]) if address[0] == "@" else address)
    except BaseException:
        gauge.close()
        raise
    return gauge


def _is_writable(gauge: _socket.socket) -> bool:
    import select

    poll = select.poll()
    poll.register(gauge, select.POLLOUT)
    return bool(poll.poll(0))


def _clear(fd: int) -> None:
    try:
        os.eventfd_read(fd)
    except BlockingIOError:
        return


def _size(item: Item) -> int:
    return sum(len(value) for value in item.values())
