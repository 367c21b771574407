"""Messages of the guest's service manager, taken in the event loop: a connection each, as systemd makes them.

systemd in the guest sends a message, says that it was all, and waits in recv(2) until the connection is closed, its whole boot
with it: a connection is closed as soon as its end is seen, before anything is done with what it said.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from vmservice.host.guest_listener import Stranger
from vmservice.service.guest_notify import MESSAGE_MAX_BYTES, GuestMessage, parse

if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable

    from vmservice.host.guest_listener import GuestListener

# What a guest, or another one of this host, can cost the loop. systemd has one connection at a time, and dozens at its boot.
MESSAGE_SEC = 5.0
CONNECTIONS_MAX = 8
ACCEPTS_A_TURN = 16
ACCEPTS_A_SEC = 200


class GuestLink:
    """Calls `on_message` with each whole message. `start` within the running loop; owns the listener."""

    def __init__(self, listener: GuestListener, on_message: Callable[[GuestMessage], None]) -> None:
        self._listener = listener
        self._on_message = on_message
        self._open: dict[_Connection, None] = {}
        self._accepts = 0
        self._second_ends = 0.0
        self._waiting: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._listen()

    def close(self) -> None:
        self._loop.remove_reader(self._listener.fd)
        if self._waiting is not None:
            self._waiting.cancel()
        self.hang_up()
        self._listener.close()

    def hang_up(self) -> None:
        """What is still being said comes from a guest that is gone."""
        while self._open:
            self._open.popitem()[0].close()

    def _listen(self) -> None:
        self._waiting = None
        self._loop.add_reader(self._listener.fd, self._on_connections)

    def _on_connections(self) -> None:
        for _ in range(ACCEPTS_A_TURN):
            if self._is_too_much():
                return
            try:
                connection = self._listener.accept()
            except (Stranger, ConnectionError):
                continue
            except BlockingIOError:  # nobody is left
                return
            except OSError:  # out of descriptors, or of memory: who waits would be told of again at once
                self._rest()
                return
            self._open[_Connection(connection, self._loop, self._on_end)] = None

    def _is_too_much(self) -> bool:
        """Whether nobody more is taken now. Who comes waits in the kernel, in a queue of its bound."""
        if len(self._open) >= CONNECTIONS_MAX:
            self._loop.remove_reader(self._listener.fd)
            return True
        now = self._loop.time()
        if now >= self._second_ends:
            self._accepts, self._second_ends = 0, now + 1
        self._accepts += 1
        if self._accepts > ACCEPTS_A_SEC:
            self._rest()
            return True
        return False

    def _rest(self) -> None:
        """Until the second is over."""
        self._loop.remove_reader(self._listener.fd)
        if self._waiting is None:
            self._waiting = self._loop.call_at(self._second_ends, self._listen)

    def _on_end(self, connection: _Connection, data: bytes | None) -> None:
        """It is closed, and has sent `data`, or nothing that counts."""
        del self._open[connection]
        if self._waiting is None:
            self._listen()
        if data is not None:
            self._on_message(parse(data))


class _Connection:
    """Reads to the end, within MESSAGE_SEC and MESSAGE_MAX_BYTES; then `on_end` is told."""

    def __init__(
        self,
        connection: _socket.socket,
        loop: asyncio.AbstractEventLoop,
        on_end: Callable[[_Connection, bytes | None], None],
    ) -> None:
        self._connection = connection
        self._loop = loop
        self._on_end = on_end
        self._data = bytearray()
        self._deadline = loop.call_later(MESSAGE_SEC, self._end, None)
        loop.add_reader(connection.fileno(), self._read)

    def close(self) -> None:
        self._deadline.cancel()
        self._loop.remove_reader(self._connection.fileno())
        self._connection.close()

    def _read(self) -> None:
        try:
            data = self._connection.recv(MESSAGE_MAX_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._end(None)
            return
        self._data += data
        if not data:
            self._end(bytes(self._data) or None)
        elif len(self._data) > MESSAGE_MAX_BYTES:
            self._end(None)

    def _end(self, data: bytes | None) -> None:
        self.close()
        self._on_end(self, data)
