"""Where a guest's console or port goes: the journal, a file, a terminal, a pseudoterminal, a socket, or nowhere.

Every kind has `write`, for the vCPU threads: it neither waits nor raises; `flush`, for the event loop, several times a second;
`input_fd`, readable when a person has typed, -1 where nobody can, and `read`; `size`; and `close`.
"""

from __future__ import annotations

import _thread
import os
import stat

from vmservice.errors import ConfigError, HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Console(Protocol):
        @property
        def input_fd(self) -> int:
            """To be waited for, without closing it, for what a person types; -1 where there is nobody."""

        @property
        def is_attached(self) -> bool:
            """Whether somebody, or something, is at this end now."""

        def read(self, size_bytes: int) -> bytes:
            """What was typed, when `input_fd` is readable; nothing at the end, BlockingIOError when there is nothing yet."""

        def has_room(self) -> bool:
            """Whether all of a `write` is kept now, up to a limit; for those that can wait."""

        def write(self, data: bytes) -> None:
            """What the guest printed; from any thread."""

        def flush(self) -> None:
            """Move on what waits."""

        def size(self) -> tuple[int, int]:
            """Columns and rows of the terminal now; 0 and 0 where there is none."""

        def close(self) -> None: ...

    class Log(Protocol):
        def info(self, text: str) -> None: ...
        def warning(self, text: str) -> None: ...


FILE_LIMIT_BYTES = 1 << 30
CHUNK_BYTES = 4096
WAITING_LIMIT_BYTES = 64 * 1024


def open_console(
    mode: str,
    path: str | None,
    vm_name: str,
    log: Log,
    label: str = "serial",
    *,
    is_stream: bool = False,
    passed_fd: int = -1,
) -> Console:
    """The host's side of a guest's console; `label` is what messages and the journal call that console.

    `is_stream` is for bytes that no person reads. `passed_fd` is a listening socket that systemd has made, for mode "socket".
    Raises ConfigError for a file that cannot be written, HostError for a terminal or socket.
    """
    if mode == "journal":
        from vmservice.host.console_journal import JournalConsole

        return JournalConsole(vm_name, label=label)
    if mode == "file":
        if path is None:
            raise ConfigError(f'{label}: mode "file" needs a path')
        return FileConsole(path, log)
    if mode == "tty":
        return StreamConsole(_own_description(1), 0)
    if mode == "pty":
        # systemd gives the unit one (RuntimeDirectory=).
        return PtyConsole(log, label, os.environ.get("RUNTIME_DIRECTORY"))
    if mode == "socket":
        from vmservice.host.console_socket import open_socket_console

        directory = os.environ.get("RUNTIME_DIRECTORY")
        return open_socket_console(log, label, directory=directory, passed_fd=passed_fd, is_stream=is_stream)
    if mode in ("null", "off"):
        return NullConsole()
    raise ConfigError(f'{label}: mode "{mode}" is unknown; it can be journal, tty, file, pty, socket, null or off')


class OutputConsole:
    """What all have in common at which nobody types."""

    input_fd = -1
    is_attached = True

    def read(self, _size_bytes: int) -> bytes:
        return b""

    def has_room(self) -> bool:
        return True

    def size(self) -> tuple[int, int]:
        return 0, 0


class NullConsole(OutputConsole):
    def write(self, data: bytes) -> None:
        """Nobody wants it."""

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is held."""


class FileConsole(OutputConsole):
    """Appends what the guest prints, as it is, to a regular file of mode 0600, up to FILE_LIMIT_BYTES; one host write a line.

    What a full disk or the limit keeps out is lost, and said once. A log rotation that truncates the file makes room again.
    """

    def __init__(self, path: str, log: Log, limit_bytes: int = FILE_LIMIT_BYTES) -> None:
        self._path = path
        self._log = log
        self._limit_bytes = limit_bytes
        self._lock = _thread.allocate_lock()
        self._pending = bytearray()
        self._trouble = ""
        self._told = False
        # O_NOFOLLOW, in a folder that others write to: the last part of the path is never somebody's link to another file.
        # O_NONBLOCK: opening a FIFO must not wait for its reader.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY | os.O_NONBLOCK
        try:
            self._fd = os.open(path, flags, 0o600)
        except OSError as error:
            link = "it is a symbolic link" if os.path.islink(path) else os.strerror(error.errno or 0)
            raise ConfigError(f"the console file {path} cannot be opened for writing: {link}") from None
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._fd)
            raise ConfigError(f"the console file {path} is not a regular file")
        self._size_bytes = status.st_size

    def write(self, data: bytes) -> None:
        with self._lock:
            self._pending += data
            if b"\n" in data or len(self._pending) >= CHUNK_BYTES:
                self._write_pending()

    def flush(self) -> None:
        with self._lock:
            self._write_pending()
            trouble, told, self._told = self._trouble, self._told, bool(self._trouble)
        if trouble and not told:
            self._log.warning(f"console output is lost: {self._path}: {trouble}")

    def close(self) -> None:
        self.flush()
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _write_pending(self) -> None:
        if not self._pending or self._fd < 0:
            return
        pending, self._pending = self._pending, bytearray()
        try:
            if self._size_bytes + len(pending) > self._limit_bytes:
                self._size_bytes = os.fstat(self._fd).st_size
            if self._size_bytes + len(pending) > self._limit_bytes:
                self._trouble = f"it has reached its limit of {self._limit_bytes} bytes"
                return
            written = os.write(self._fd, pending)
            self._size_bytes += written
            self._trouble = "" if written == len(pending) else "only a part of the last line could be written"
        except OSError as error:
            self._trouble = os.strerror(error.errno or 0)


class StreamConsole:
    """A terminal, or whatever standard output is: bytes pass through as they are. Owns `output_fd`, not `input_fd`.

    While the other side does not read, the last WAITING_LIMIT_BYTES wait for it; what was before is lost.
    """

    is_attached = True

    def __init__(self, output_fd: int, input_fd: int) -> None:
        self.input_fd = input_fd
        self._fd = output_fd
        self._lock = _thread.allocate_lock()
        self._waiting = bytearray()

    def read(self, size_bytes: int) -> bytes:
        return os.read(self.input_fd, size_bytes)

    def has_room(self) -> bool:
        return True

    def write(self, data: bytes) -> None:
        with self._lock:
            self._waiting += data
            self._pass_on()
            if len(self._waiting) > WAITING_LIMIT_BYTES:
                del self._waiting[:-WAITING_LIMIT_BYTES]

    def flush(self) -> None:
        with self._lock:
            self._pass_on()

    def size(self) -> tuple[int, int]:
        try:
            return os.get_terminal_size(self._fd)
        except OSError:  # no terminal, or closed
            return 0, 0

    def close(self) -> None:
        with self._lock:
            self._pass_on()
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _pass_on(self) -> None:
        while self._waiting and self._fd >= 0:
            try:
                written = os.write(self._fd, self._waiting)
            except BlockingIOError:
                return
            except OSError:  # the reader is gone: EPIPE, EIO
                self._waiting.clear()
                return
            del self._waiting[:written]


class PtyConsole(StreamConsole):
    """A pseudoterminal of our own; `path` is what `screen` or `picocom` opens, and the log says it.

    A link to it, called `label`, is put into `directory`, where `vmservice console` looks for it.
    """

    def __init__(self, log: Log, label: str = "serial", directory: str | None = None) -> None:
        import tty

        try:
            controller, terminal = os.openpty()
        except OSError as error:
            raise HostError.from_os("cannot make a pseudoterminal for the console", error) from None
        # The terminal's side stays open, so that the controller's does not fail with EIO while nobody is connected.
        self._terminal = terminal
        tty.setraw(terminal)
        os.set_blocking(controller, False)
        self.path = os.ttyname(terminal)
        super().__init__(controller, controller)
        self._link = _put_link(f"{directory}/{label}", self.path, log) if directory else ""
        log.info(f"the {label} console is at {self.path}")

    def close(self) -> None:
        super().close()
        self.input_fd = -1
        fd, self._terminal = self._terminal, -1
        if fd >= 0:
            os.close(fd)
        link, self._link = self._link, ""
        if link and os.path.islink(link):
            os.unlink(link)


def _put_link(link: str, target: str, log: Log) -> str:
    """Make `link`, in place of one of before; its path, or nothing if it cannot be."""
    try:
        if os.path.islink(link):
            os.unlink(link)
        os.symlink(target, link)
    except OSError as error:
        log.warning(f"cannot make {link}, by which `vmservice console` would find the console: {error.strerror}")
        return ""
    return link


def _own_description(fd: int) -> int:
    """A descriptor for the same file as `fd`, non-blocking if it can be so without changing it for the others who share `fd`.

    O_NONBLOCK belongs to the open file description, which a shell shares with us: so a terminal or pipe is opened anew. A
    regular file is not (a new description would write from its beginning), and it does not make anybody wait.
    """
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISCHR(mode) or stat.S_ISFIFO(mode):
            try:
                return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
            except OSError:  # another user's terminal, after su(1)
                return os.dup(fd)
        return os.dup(fd)
    except OSError as error:
        raise HostError.from_os("cannot use standard output as the console", error) from None
