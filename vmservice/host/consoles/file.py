"""A guest's console in a file."""

from __future__ import annotations

import _thread
import os
import stat

from vmservice.errors import ConfigError
from vmservice.host.consoles.base import CHUNK_BYTES, OutputConsole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.host.consoles.base import Log

FILE_LIMIT_BYTES = 1 << 30


class FileConsole(OutputConsole):
    """Appends what the guest prints, as it is, to a regular file of mode 0600, up to FILE_LIMIT_BYTES; one host write a line.

    What a full disk or the limit keeps out is lost, and said once. A log rotation that truncates the file makes room again.
    """

    def __init__(self, path: str, log: Log, label: str = "serial", limit_bytes: int = FILE_LIMIT_BYTES) -> None:
        super().__init__(label)
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

    def fds(self) -> dict[str, int]:
        return {"file": self._fd}

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
