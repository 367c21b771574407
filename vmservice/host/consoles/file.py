"""A guest's console in a file."""

from __future__ import annotations

import _thread
import os
import stat
import time

from vmservice.errors import ConfigError
from vmservice.host.consoles.base import CHUNK_BYTES, PARTIAL_LINE_SEC, PENDING_LIMIT_BYTES, OutputConsole
from vmservice.host.files import close_written

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.host.consoles.base import Log
    from vmservice.host.consoles.mover import Waits, Wakes

FILE_LIMIT_BYTES = 1 << 30
# One host write for the lines of so long, unless so much has come before.
_GATHER_SEC = 0.01
_GATHER_BYTES = 128 * 1024


class FileConsole(OutputConsole):
    """Appends what the guest prints, as it is, to a regular file of mode 0600, up to FILE_LIMIT_BYTES.

    What a full disk or the limit keeps out is lost, and said once. A log rotation makes room again: it truncates the file, or
    renames it and asks for a `reopen`.
    """

    def __init__(
        self, path: str, log: Log, mover: Wakes, label: str = "serial", *, limit_bytes: int = FILE_LIMIT_BYTES
    ) -> None:
        super().__init__(label)
        self._path = path
        self._log = log
        self._mover = mover.apart(_GATHER_SEC)
        self._limit_bytes = limit_bytes
        self._lock = _thread.allocate_lock()  # for `_pending`, never held during a write
        self._pending = bytearray()
        self._pending_since = 0.0
        self._lost_bytes = 0
        self._trouble = ""
        self._told = ""
        self._reopen: list[Callable[[], None]] = []  # who is to be told that it is done
        self._fd, self._size_bytes = _open(path)
        self._mover.add(self)

    def write(self, data: bytes) -> None:
        with self._lock:
            pending = self._pending
            before = len(pending)
            if not before:
                self._pending_since = time.monotonic()
            pending += data
            after = len(pending)
            if after > PENDING_LIMIT_BYTES:  # a disk that does not keep up loses the newest
                self._lost_bytes += after - PENDING_LIMIT_BYTES
                del pending[PENDING_LIMIT_BYTES:]
        if not before or after >= CHUNK_BYTES or b"\n" in data:
            self._mover.wake(self, at_once=before // _GATHER_BYTES != after // _GATHER_BYTES)

    def reopen(self, done: Callable[[], None]) -> None:
        with self._lock:
            self._reopen.append(done)
        self._mover.wake(self, at_once=True)

    def fds(self) -> dict[str, int]:
        return {"file": self._fd}

    def move(self) -> Waits:
        """One host write for all lines that are there; what has no end yet gets a moment for it."""
        now = time.monotonic()
        with self._lock:
            end = self._pending.rfind(b"\n") + 1
            if len(self._pending) - end >= CHUNK_BYTES or now - self._pending_since >= PARTIAL_LINE_SEC:
                end = len(self._pending)
            data = bytes(self._pending[:end])
            del self._pending[:end]
            if end:
                self._pending_since = now
            due = self._pending_since + PARTIAL_LINE_SEC if self._pending else None
            reopen, self._reopen = self._reopen, []
        self._move_out(data)  # where it belongs: to the file that was there when the guest printed it
        if reopen:
            self._open_anew()
            for done in reopen:
                done()
        return [], due

    def details(self) -> dict[str, str | int | bool]:
        return {"mode": "file", "path": self._path}

    def close(self) -> None:
        if not self._mover.remove(self):
            self._log.warning(f"console output is lost: {self._path}: the disk does not take it")
            return
        with self._lock:
            data, self._pending = bytes(self._pending), bytearray()
        if self._fd >= 0:
            self._move_out(data)
            close_written(self._fd)
            self._fd = -1

    def _open_anew(self) -> None:
        """One that cannot be opened leaves the console in the file that it has."""
        try:
            fd, self._size_bytes = _open(self._path)
        except ConfigError as error:
            self._log.warning(f"{error}; the console goes on in the file that was open before")
            return
        close_written(self._fd)
        self._fd = fd

    def _move_out(self, data: bytes) -> None:
        if data:
            self._write(data)
        with self._lock:
            lost_bytes, self._lost_bytes = self._lost_bytes, 0
        if lost_bytes:
            self._trouble = f"it does not keep up; {lost_bytes} bytes are missing"
        self._say_trouble()

    def _write(self, data: bytes) -> None:
        try:
            if self._size_bytes + len(data) > self._limit_bytes:
                self._size_bytes = os.fstat(self._fd).st_size
            trouble = ""
            if self._size_bytes + len(data) > self._limit_bytes:
                trouble = f"it has reached its limit of {self._limit_bytes} bytes"
                data = data[: data.rfind(b"\n", 0, max(0, self._limit_bytes - self._size_bytes)) + 1]
            written = os.write(self._fd, data) if data else 0
            self._size_bytes += written
            self._trouble = trouble if written == len(data) else "only a part of the last line could be written"
        except OSError as error:
            self._trouble = os.strerror(error.errno or 0)

    def _say_trouble(self) -> None:
        """Once, until all is well again."""
        if self._trouble and not self._told:
            self._log.warning(f"console output is lost: {self._path}: {self._trouble}")
        self._told = self._trouble


def _open(path: str) -> tuple[int, int]:
    """A descriptor to append by, and the size of the file."""
    # O_NOFOLLOW, in a folder that others write to: the last part of the path is never somebody's link to another file.
    # O_NONBLOCK: opening a FIFO must not wait for its reader.
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY | os.O_NONBLOCK
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        link = "it is a symbolic link" if os.path.islink(path) else os.strerror(error.errno or 0)
        raise ConfigError(f"the console file {path} cannot be opened for writing: {link}") from None
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise ConfigError(f"the console file {path} is not a regular file")
    return fd, status.st_size
