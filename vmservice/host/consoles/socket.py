"""A console at a UNIX stream socket: who connects has it, one at a time, until they go; made here or passed by systemd.

While nobody is there, a console keeps the last of what the guest printed for who comes next, and a stream keeps nothing: its
next client begins a conversation of its own. A further client is turned away, at a console with a sentence.
"""

from __future__ import annotations

import _socket  # not `socket`, which costs milliseconds before the guest runs
import errno
import os
import select
import stat

from vmservice.errors import ConfigError, HostError
from vmservice.host.consoles.base import WAITING_LIMIT_BYTES
from vmservice.host.consoles.stream import StreamConsole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.host.consoles.base import Log

BUSY = b"vmservice: somebody else is at this console\r\n"
SOCKET_MODE = 0o660
ADDRESS_MAX_BYTES = 107  # unix(7): 108 with the NUL

_BACKLOG = 8


class SocketConsole(StreamConsole):
    """Owns `listener`, and its `path` if `is_own`. `read` and `flush`, in the event loop's thread, take in who comes and notice
    who goes.

    Of a console the last WAITING_LIMIT_BYTES wait for a client who does not read, as with a pseudoterminal. Of a stream nothing
    is lost: whoever writes looks at `has_room` before.
    """

    def __init__(
        self,
        listener: _socket.socket,
        path: str,
        log: Log,
        label: str = "serial",
        *,
        is_stream: bool = False,
        is_own: bool = True,
    ) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._log = log
        self._own_path = path if is_own else ""
        self._is_stream = is_stream
        self._listening = False
        self._poll = select.epoll()
        super().__init__(label, -1, self._poll.fileno())
        self._listen()
        log.info(f"the {label} console is at the socket {path}")

    @property
    def is_attached(self) -> bool:  # type: ignore[override]
        return self._fd >= 0

    def has_room(self) -> bool:
        return len(self._waiting) < WAITING_LIMIT_BYTES

    def write(self, data: bytes) -> None:
        if not self._is_stream:
            super().write(data)
            return
        with self._lock:
            if self._fd >= 0:
                self._waiting += data
                self._pass_on()

    def flush(self) -> None:
        """Also with a guest that takes no input, so that nobody reads: a client who is gone makes room for the next."""
        super().flush()
        if not self._listening:
            self._listen()
        events = dict(self._poll.poll(0))
        if self._listener.fileno() in events:
            if events.get(self._fd, 0) & select.EPOLLHUP:
                self._detach()
            self._accept()

    def read(self, size_bytes: int) -> bytes:
        events = dict(self._poll.poll(0))
        data = self._read_client(events.get(self._fd, 0), size_bytes)
        if self._listener.fileno() in events:
            self._accept()
        if not data:
            raise BlockingIOError
        return data

    def close(self) -> None:
        super().close()
        self.input_fd = -1
        if not self._poll.closed:
            self._poll.close()
            self._listener.close()
            if self._own_path and os.path.lexists(self._own_path):
                os.unlink(self._own_path)

    def _read_client(self, event: int, size_bytes: int) -> bytes:
        if not event:
            return b""
        data = b""
        if event & select.EPOLLIN:
            try:
                data = os.read(self._fd, size_bytes)
            except OSError:  # ECONNRESET: it left what we wrote unread
                event |= select.EPOLLHUP
        if not data:
            if event & (select.EPOLLHUP | select.EPOLLERR):
                self._detach()
            else:  # it types no more, and may still read
                self._poll.modify(self._fd, 0)
        return data

    def _accept(self) -> None:
        try:
            client, _ = self._listener._accept()  # type: ignore[attr-defined]
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ECONNABORTED:
                # No descriptor is left, say. Whoever waits for us would be woken up for it again and again.
                self._poll.unregister(self._listener.fileno())
                self._listening = False
                self._log.warning(f"nobody can come to the {self.label} console now: {error.strerror}")
            return
        os.set_blocking(client, False)
        if self._fd >= 0:
            _turn_away(client, b"" if self._is_stream else BUSY)
            return
        self._poll.register(client, select.EPOLLIN)
        with self._lock:
            self._fd = client
            self._pass_on()
        self._tell_attached()

    def _detach(self) -> None:
        with self._lock:
            fd, self._fd = self._fd, -1
            if self._is_stream:
                self._waiting.clear()
        self._poll.unregister(fd)
        os.close(fd)
        self._tell_attached()

    def _tell_attached(self) -> None:
        if self.on_attached is not None:
            self.on_attached()

    def fds(self) -> dict[str, int]:
        return {"listener": self._listener.fileno(), "output": self._fd}

    def _listen(self) -> None:
        self._poll.register(self._listener.fileno(), select.EPOLLIN)
        self._listening = True


def open_socket_console(log: Log, label: str, *, directory: str | None, passed_fd: int, is_stream: bool) -> SocketConsole:
    """At the socket that systemd passed as `passed_fd`; without one, -1, at one of our own in `directory`."""
    if passed_fd >= 0:
        listener = check_listener(passed_fd, label)
        path = os.fsdecode(listener.getsockname())
    else:
        listener = bind_listener(directory, label)
        path = socket_path(directory or "", label)
    return SocketConsole(listener, path, log, label, is_stream=is_stream, is_own=passed_fd < 0)


def bind_listener(directory: str | None, label: str) -> _socket.socket:
    """A listening socket at `directory`/`label`.sock, in place of one of before. ConfigError without a directory, HostError."""
    if not directory:
        raise ConfigError(
            f'{label}: mode "socket" needs a directory for the socket, which RUNTIME_DIRECTORY names where a unit has '
            "RuntimeDirectory=, or a socket that systemd passes"
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
