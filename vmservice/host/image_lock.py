"""The locks that keep a disk image from being used twice: QEMU's own, so that its programs and this one exclude each other.

Each is a lock of one byte, of the open file (F_OFD_SETLK, fcntl(2)), all of them read locks. The byte at 100 + n says "I use
right n", the one at 200 + n "others must not have it" (QEMU's block/file-posix.c). They hold until the last descriptor of the
open file is closed, and are never of the whole file: a network file system may make that mandatory.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from vmservice.errors import HostError, HostFacilityMissing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_USED = 100
_FORBIDDEN = 200
_CONSISTENT_READ = 0
_WRITE = 1
_RESIZE = 3

# What is locked, and what nobody else may have locked.
_READER = (
    (_USED + _CONSISTENT_READ, _FORBIDDEN + _WRITE),
    (_USED + _WRITE, _FORBIDDEN + _CONSISTENT_READ),
)
_WRITER = (
    (_USED + _CONSISTENT_READ, _USED + _WRITE, _USED + _RESIZE, _FORBIDDEN + _WRITE, _FORBIDDEN + _RESIZE),
    (_USED + _WRITE, _USED + _RESIZE, _FORBIDDEN + _CONSISTENT_READ, _FORBIDDEN + _WRITE, _FORBIDDEN + _RESIZE),
)

# struct flock of <fcntl.h>: type, whence, start, length, pid.
_FLOCK = struct.Struct("hhqqi4x")


def take(fd: int, path: str, what: str, *, writer: bool) -> None:
    """Lock the image that is open as `fd`. HostFacilityMissing when somebody else uses it in a way that does not go together.

    `what` is the subject of that sentence. A file system that knows no locks is a HostError.
    """
    own, foreign = _WRITER if writer else _READER
    try:
        for byte in own:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
        for byte in foreign:
            found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
            kind, _, _, _, pid = _FLOCK.unpack(found)
            if kind != fcntl.F_UNLCK:
                raise _in_use(fd, path, what, pid, writer=writer)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):  # a lock for writing, which QEMU never takes
            raise _in_use(fd, path, what, 0, writer=writer) from None
        raise HostError.from_os(f"{what} cannot be locked, so that nobody else uses {path} at the same time", error) from error


def _in_use(fd: int, path: str, what: str, pid: int, *, writer: bool) -> HostFacilityMissing:
    holder = _name_process(pid) if pid > 0 else _find_holder(fd)
    how = "only one may write, and nobody read beside it" if writer else "somebody who reads goes with no writer"
    return HostFacilityMissing(f"{what} is in use: {path} is locked by {holder}; {how}")


def _find_holder(fd: int) -> str:
    """Locks of open files have no process: whoever has the file open, as far as this process may see that."""
    image = os.fstat(fd)
    for pid in sorted(int(entry) for entry in os.listdir("/proc") if entry.isdecimal()):
        if any(os.path.samestat(image, other) for other in _open_files(pid, fd)):
            return "this VM itself, as another disk" if pid == os.getpid() else _name_process(pid)
    return "another process"


def _open_files(pid: int, own_fd: int) -> Iterator[os.stat_result]:
    """Of those that are ours to see. Of our own, `own_fd` is left out."""
    folder = f"/proc/{pid}/fd"
    try:
        fds = os.listdir(folder)
    except OSError:
        return
    for fd in fds:
        if pid == os.getpid() and int(fd) == own_fd:
            continue
        try:
            yield os.stat(f"{folder}/{fd}")
        except OSError:  # gone, as that of the list itself is
            continue


def _name_process(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return f"process {pid} ({file.read().strip()})"
    except OSError:
        return f"process {pid}"
