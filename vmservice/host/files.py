"""Regular files that the operator names: opened without a trap, read straight to where the bytes belong.

Every refusal is a ConfigError that says which file is meant (`what`), its path, and what was expected.
"""

from __future__ import annotations

import os
import stat

from vmservice.errors import ConfigError, FileError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


def close_written(fd: int) -> None:
    """Let go of a file that may have been written to. close(2) does that whatever it reports: an error of a write that nobody
    waits for any more, or a file system that is gone."""
    try:
        os.close(fd)
    except OSError:
        return


class WrongKindError(Exception):
    """What is there is not what may be opened; `kind` reads as what it is."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


def open_file(path: str, flags: int, *, may_be_device: bool = False, claim: bool = False) -> int:
    """Open a regular file, or a block device where it may be one; `claim` takes that for us alone. OSError or WrongKindError.

    It is looked at before anything is opened, for the open alone arms a watchdog and rewinds a tape. An administrator's check
    is root in the folder of a VM, which may have put a link there.
    """
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        mode = os.fstat(place).st_mode
        is_device = may_be_device and stat.S_ISBLK(mode)
        if not is_device and not stat.S_ISREG(mode):
            raise WrongKindError(KINDS.get(stat.S_IFMT(mode), "not a file"))
        flags |= os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        return os.open(f"/proc/self/fd/{place}", flags | os.O_EXCL if is_device and claim else flags)
    finally:
        os.close(place)


class RegularFile:
    """An open, readable, not empty regular file; `status` is its fstat(2), taken after the open. Owns its descriptor."""

    __slots__ = ("fd", "path", "size_bytes", "status", "what")

    def __init__(self, path: str, what: str, *, may_be_empty: bool = False) -> None:
        """`what` reads as the subject of a sentence: `kernel`, `initramfs`, `configuration`."""
        self.path = path
        self.what = what
        self.fd = -1
        try:
            self._open(may_be_empty)
        except ConfigError:
            self.close()
            raise

    def _open(self, may_be_empty: bool) -> None:
        try:
            self.fd = open_file(self.path, os.O_RDONLY)
            self.status = os.fstat(self.fd)
        except FileNotFoundError:
            raise self._error("does not exist") from None
        except PermissionError:
            from vmservice.host.accounts import own_name

            raise self._error(f"is not readable for {own_name()}") from None
        except OSError as error:
            raise self._error(f"cannot be opened: {error.strerror}") from None
        except WrongKindError as error:
            raise self._error(f"is {error.kind}; it must be a regular file") from None
        self.size_bytes = self.status.st_size
        if self.size_bytes == 0 and not may_be_empty:
            raise self._error("is empty")

    def read(self, size_bytes: int, offset: int = 0) -> bytes:
        """Up to `size_bytes` from `offset`; fewer only at the end of the file."""
        parts = []
        while size_bytes > 0:
            try:
                part = os.pread(self.fd, size_bytes, offset)
            except OSError as error:
                raise self._error(f"cannot be read: {error.strerror}") from None
            if not part:
                break
            parts.append(part)
            offset += len(part)
            size_bytes -= len(part)
        return b"".join(parts)

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill all of `view` from `offset` on, with no copy in between; ConfigError where the file ends before."""
        filled = 0
        while filled < len(view):
            try:
                count = os.preadv(self.fd, [view[filled:]], offset + filled)
            except OSError as error:
                raise self._error(f"cannot be read: {error.strerror}") from None
            if count == 0:
                raise self.truncated(offset + len(view), offset + filled)
            filled += count

    def truncated(self, needed_bytes: int, present_bytes: int | None = None) -> ConfigError:
        """The error for a file that ends too early."""
        present = self.size_bytes if present_bytes is None else present_bytes
        return self._error(f"is truncated: {present} of {needed_bytes} bytes are there")

    def _error(self, fault: str) -> ConfigError:
        return FileError(self.what, self.path, fault)

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> RegularFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
