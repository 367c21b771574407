"""A console at a UNIX stream socket: who connects has it, one at a time, until they go; made here or passed by systemd.

While nobody is there, a console keeps the last of what the guest printed for who comes next, and a stream has no room for it:
the guest waits, and the next client begins a conversation of its own. A further client is turned away, at a console with a
sentence.
"""

from __future__ import annotations

import _socket  # not `socket`, which costs milliseconds before the guest runs
import _thread
import errno
import fcntl
import os
import select
import stat
import time

from vmservice.errors import ConfigError, HostError
from vmservice.host.consoles.base import WAITING_LIMIT_BYTES, tell
from vmservice.host.consoles.stream import StreamConsole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.host.consoles.base import Log
    from vmservice.host.consoles.mover import Waits, Wakes

BUSY = b"vmservice: somebody else is at this console\r\n"
SOCKET_MODE = 0o660
ADDRESS_MAX_BYTES = 107  # unix(7): 108 with the NUL

_BACKLOG = 8
_RETRY_SEC = 1.0
_FIONREAD = 0x541B  # <asm-generic/ioctls.h>


class SocketConsole(StreamConsole):
    """Owns `listener`, and its `path` if `is_own`.

    Who comes and who goes is seen by the event loop, when it reads what a client types, and by the mover, since a guest that
    takes no input has the loop read nothing. Of a console the last WAITING_LIMIT_BYTES wait for a client who does not read, and
    for who comes next. Of a stream nothing is lost: whoever writes looks at `has_room` before, and there is none for nobody.
    """

    keeps_input = True

    def __init__(
        self,
        listener: _socket.socket,
        path: str,
        log: Log,
        mover: Wakes,
        label: str = "serial",
        *,
        is_stream: bool = False,
        is_own: bool = True,
    ) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._log = log
        self._path = path
        self._is_own = is_own
        self._is_stream = is_stream
        self._door = _thread.allocate_lock()  # held while somebody is let in or shown out
        self._client = -1
        self._socket: _socket.socket | None = None  # the client's
        self._told = (False, 0)
        self._has_been_told = False  # that nobody can come now
        self._has_hung_up = False  # the client is gone, and what it typed before is not read yet
        self._listens_again_at = 0.0  # on the monotonic clock; 0 while it listens
        self._poll = select.epoll()
        super().__init__(label, mover, -1, self._poll.fileno())
        self._poll.register(listener.fileno(), select.EPOLLIN)
        log.info(f"the {label} console is at the socket {path}")
        mover.add(self)

    @property
    def is_attached(self) -> bool:
        return self._fd >= 0

    def has_room(self) -> bool:
        return not self._is_stream or (self._fd >= 0 and len(self._waiting) < WAITING_LIMIT_BYTES)

    def move(self) -> Waits:
        if self._poll.closed:
            return [], None
        with self._door:
            self._look_at_client()
            self._admit()
            has_changed = self._has_changed()
            watches = [(self._listener.fileno(), select.POLLIN)] if not self._listens_again_at else []
            if self._client >= 0 and not self._has_hung_up:
                watches.append((self._client, 0))  # POLLHUP comes unasked
            due = self._listens_again_at or None
        more, _due = super().move()
        self._tell(has_changed)
        return merge_watches(watches + more), due

    def read(self, size_bytes: int) -> bytes:
        """What the client has typed. It stays in the client's socket, and goes with the client, until the guest `took` it."""
        with self._door:
            data = self._peek(size_bytes)
            if not data:
                self._admit()
            has_changed = self._has_changed()
        if has_changed:  # the mover has another one to watch
            self._mover.wake(self)
        self._tell(has_changed)
        if not data:
            raise BlockingIOError
        return data

    def took(self, size_bytes: int, visit: int) -> None:
        with self._door:
            if size_bytes and self._socket is not None and visit == self.visit:
                self._socket.recv(size_bytes)

    def fds(self) -> dict[str, int]:
        return {"listener": self._listener.fileno(), "client": self._client}

    def details(self) -> dict[str, str | int | bool]:
        return {"mode": "socket", "path": self._path}

    def close(self) -> None:
        self._mover.remove(self)
        with self._lock:
            self._pass_on()
        with self._door:
            if self._client >= 0:
                self._show_out()
        self.input_fd = -1
        if not self._poll.closed:
            self._poll.close()
            self._listener.close()
            if self._is_own and os.path.lexists(self._path):
                os.unlink(self._path)

    # With the door's lock held

    def _look_at_client(self) -> None:
        """One that has hung up makes room, at once where it has left nothing to read."""
        if self._client < 0 or self._has_hung_up:
            return
        poll = select.poll()
        poll.register(self._client, select.POLLIN)
        events = dict(poll.poll(0)).get(self._client, 0)
        if events & (select.POLLHUP | select.POLLERR):
            with self._lock:
                self._fd = -1  # nobody reads any more: what the guest prints waits for who comes next
            self._has_hung_up = True
            if not _unread_bytes(self._client):
                self._show_out()

    def _peek(self, size_bytes: int) -> bytes:
        if self._socket is None:
            return b""
        try:
            data = self._socket.recv(size_bytes, _socket.MSG_PEEK)
        except BlockingIOError:
            return b""
        except OSError:  # ECONNRESET: it left what we wrote unread
            self._has_hung_up = True
            data = b""
        if not data:
            self._look_at_client()
            if self._has_hung_up and self._client >= 0:
                self._show_out()
            elif self._client >= 0:  # it types no more, and may still read
                self._poll.modify(self._client, 0)
        return data

    def _admit(self) -> None:
        """Everybody who waits: the first where the place is free, the others are turned away."""
        if self._listens_again_at and not self._listen_again():
            return
        while True:
            try:
                client, _ = self._listener._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ECONNABORTED:
                    continue
                self._stop_listening(error)
                return
            self._has_been_told = False
            os.set_blocking(client, False)
            self._look_at_client()
            if self._has_hung_up and self._client >= 0:
                self._show_out()  # what it has typed, and nobody read, goes with it
            if self._client >= 0:
                _turn_away(client, b"" if self._is_stream else BUSY)
                continue
            self._poll.register(client, select.EPOLLIN)
            self._client, self._socket = client, _socket.socket(fileno=client)
            self.visit += 1
            with self._lock:
                self._fd = client

    def _show_out(self) -> None:
        with self._lock:
            self._fd = -1
            if self._is_stream:  # of that conversation, and nobody else's business
                self._waiting.clear()
        client, self._socket, self._client, self._has_hung_up = self._socket, None, -1, False
        assert client is not None
        self._poll.unregister(client.fileno())
        client.close()

    def _stop_listening(self, error: OSError) -> None:
        """No descriptor is left, say. Whoever waits for us would be woken up for it again and again."""
        if not self._listens_again_at:
            self._poll.unregister(self._listener.fileno())
        self._listens_again_at = time.monotonic() + _RETRY_SEC
        if not self._has_been_told:
            self._has_been_told = True
            self._log.warning(f"nobody can come to the {self.label} console now: {error.strerror}")

    def _listen_again(self) -> bool:
        if time.monotonic() < self._listens_again_at:
            return False
        self._listens_again_at = 0.0
        self._poll.register(self._listener.fileno(), select.EPOLLIN)
        return True

    def _has_changed(self) -> bool:
        """Whether somebody has come or gone since the last time."""
        before, self._told = self._told, (self.is_attached, self.visit)
        return before != self._told

    # With no lock held

    def _tell(self, has_changed: bool) -> None:
        if has_changed:
            tell(self.on_attached)
            tell(self.on_visit)

    # With the lock for what waits held

    def _forget_oldest(self) -> None:
        """Nothing of a stream's, but what is said to a client who has gone in that moment."""
        if not self._is_stream:
            super()._forget_oldest()
        elif self._fd < 0:
            self._waiting.clear()

    def _reader_gone(self) -> None:
        """What it has not read waits for who comes next; a stream's next client begins a conversation of its own."""
        self._fd = -1
        if self._is_stream:
            self._waiting.clear()


def merge_watches(watches: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Each descriptor once: poll(2) takes the last word for a descriptor only."""
    merged: dict[int, int] = {}
    for fd, events in watches:
        merged[fd] = merged.get(fd, 0) | events
    return list(merged.items())


def _unread_bytes(fd: int) -> int:
    return int.from_bytes(fcntl.ioctl(fd, _FIONREAD, bytes(4)), "little")


def open_socket_console(
    log: Log, mover: Wakes, label: str, *, directory: str | None, passed_fd: int, is_stream: bool
) -> SocketConsole:
    """At the socket that systemd passed as `passed_fd`; without one, -1, at one of our own in `directory`."""
    if passed_fd >= 0:
        listener = check_listener(passed_fd, label)
        path = os.fsdecode(listener.getsockname())
    else:
        listener = bind_listener(directory, label)
        path = socket_path(directory or "", label)
    return SocketConsole(listener, path, log, mover, label, is_stream=is_stream, is_own=passed_fd < 0)


def bind_listener(directory: str | None, label: str) -> _socket.socket:
    """A listening socket at `directory`/`label`.sock, in place of one of before. ConfigError without a directory, HostError."""
    if not directory:
        raise ConfigError(
            f'{label}: mode "socket" needs a directory for the socket: start the VM by systemctl, whose unit has one '
            "(RuntimeDirectory=), or set RUNTIME_DIRECTORY to one"
        )
    path = socket_path(directory, label)
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK)
    folder = -1
    try:
        folder = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if os.path.lexists(path) and not os.path.isdir(path):
            os.unlink(path)
        # A long one by way of its folder's descriptor.
        listener.bind(path if len(os.fsencode(path)) <= ADDRESS_MAX_BYTES else f"/proc/self/fd/{folder}/{label}.sock")
        os.chmod(path, SOCKET_MODE)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise HostError.from_os(f"cannot listen at {path} for the {label} console", error) from None
    finally:
        if folder >= 0:
            os.close(folder)
    return listener


def socket_path(directory: str, label: str) -> str:
    return f"{directory}/{label}.sock"


def check_listener(fd: int, label: str) -> _socket.socket:
    """The socket that systemd passed as `fd`, to be owned; ConfigError, with `fd` closed, for another kind than is wanted."""
    if stat.S_ISSOCK(os.fstat(fd).st_mode):
        listener = _socket.socket(fileno=fd)
        accepts = listener.getsockopt(_socket.SOL_SOCKET, _socket.SO_ACCEPTCONN)
        if (listener.family, listener.type, accepts) == (_socket.AF_UNIX, _socket.SOCK_STREAM, 1):
            return listener
        listener.close()
    else:
        os.close(fd)
    raise ConfigError(
        f"{label}: what systemd passed under this name is no listening UNIX stream socket; its unit needs ListenStream= with "
        "a path, and Accept=no"
    )


def _turn_away(client: int, sentence: bytes) -> None:
    try:
        if sentence:
            os.write(client, sentence)
    except OSError:  # gone already
        pass
    finally:
        os.close(client)
