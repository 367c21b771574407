"""A file system of one file, `disk.raw`, whose reads, writes and flushes fail as a test says, and which may go away.

It is served by a process of its own, by FUSE (<linux/fuse.h>, protocol 7.31): the errors are those of the kernel, on every way
that there is to a file. What was written is in memory that the test sees.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest

_LOOKUP, _FORGET, _GETATTR, _SETATTR, _OPEN, _READ, _WRITE, _RELEASE, _FSYNC = 1, 2, 3, 4, 14, 15, 16, 18, 20
_FLUSH, _INIT, _OPENDIR, _RELEASEDIR, _INTERRUPT, _BATCH_FORGET = 25, 26, 27, 29, 36, 42
_UNANSWERED = (_FORGET, _BATCH_FORGET, _INTERRUPT)
_REQUEST = struct.Struct("<IIQQIIIHH")  # length, opcode, unique, node; uid, gid, pid, extension, padding
_ANSWER = struct.Struct("<IiQ")
_RANGE = struct.Struct("<QQI")  # file handle, offset, size
_WRITE_BYTES = 40  # of a write's own header
_INIT_ANSWER = struct.Struct("<IIIIHHIIHHI28x")
_DIRECT_IO = 1  # nothing of the file is in the page cache: each error comes at once
_ROOT, _FILE = 1, 2

# What a test may have fail, in the order in which errnos are shared.
KINDS = {"read": _READ, "write": _WRITE, "flush": _FSYNC}
_ERRNOS_BYTES = mmap.PAGESIZE


class FailingFile:
    """Mounted at `folder`, which is made. `path` has `size_bytes`, and so has `content`."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root can mount a file system")
        if not os.path.exists("/dev/fuse"):
            pytest.skip("this machine has no FUSE")
        folder.mkdir()
        self._folder = folder
        self.path = folder / "disk.raw"
        shared = os.memfd_create("failing-file")
        os.ftruncate(shared, _ERRNOS_BYTES + size_bytes)
        self._memory = mmap.mmap(shared, _ERRNOS_BYTES + size_bytes)
        fuse = os.open("/dev/fuse", os.O_RDWR)
        _mount(folder, f"fd={fuse},rootmode={stat.S_IFDIR:o},user_id=0,group_id=0")
        self._server = subprocess.Popen([sys.executable, __file__, str(fuse), str(shared)], pass_fds=(fuse, shared))
        os.close(fuse)
        os.close(shared)

    @property
    def content(self) -> bytes:
        return self._memory[_ERRNOS_BYTES:]

    def fail(self, kind: str, number: int) -> None:
        """Operations of that kind fail so from now on, or no more with 0."""
        struct.pack_into("<i", self._memory, 4 * list(KINDS).index(kind), number)

    def go_away(self) -> None:
        """As a device that is pulled out: whatever is asked of it fails."""
        self._server.kill()
        self._server.wait()

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", str(self._folder)], check=True, timeout=30)
        self.go_away()
        self._memory.close()


def _mount(folder: Path, options: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"failing-file", os.fsencode(folder), b"fuse", 0, options.encode()):
        raise OSError(ctypes.get_errno(), "mount")


class _Server:
    def __init__(self, fuse: int, memory: mmap.mmap) -> None:
        self._fuse = fuse
        self._memory = memory

    def run(self) -> None:
        while True:
            try:
                request = os.read(self._fuse, 1 << 21)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return  # unmounted
                if error.errno == errno.ENOENT:
                    continue  # the request was interrupted
                raise
            _, opcode, unique, node, *_ = _REQUEST.unpack_from(request)
            if opcode in _UNANSWERED:
                continue
            number, body = self._answer(opcode, node, request[_REQUEST.size :])
            os.write(self._fuse, _ANSWER.pack(_ANSWER.size + len(body), -number, unique) + body)

    def _answer(self, opcode: int, node: int, body: bytes) -> tuple[int, bytes]:
        """An errno, or 0 and what comes with it."""
        for index, kind in enumerate(KINDS.values()):
            (number,) = struct.unpack_from("<i", self._memory, 4 * index)
            if opcode == kind and number:
                return number, b""
        if opcode == _INIT:
            return 0, _INIT_ANSWER.pack(7, 31, 0, 0, 16, 12, 1 << 20, 1, 256, 0, 0)
        if opcode == _LOOKUP:
            found = body.rstrip(b"\0") == b"disk.raw"
            return (0, struct.pack("<QQQQII", _FILE, 0, 0, 0, 0, 0) + self._attributes(_FILE)) if found else (errno.ENOENT, b"")
        if opcode in (_GETATTR, _SETATTR):
            return 0, bytes(16) + self._attributes(node)
        if opcode in (_OPEN, _OPENDIR):
            return 0, struct.pack("<QII", 0, _DIRECT_IO, 0)
        if opcode in (_READ, _WRITE):
            _, offset, size = _RANGE.unpack_from(body)
            place = slice(_ERRNOS_BYTES + offset, min(_ERRNOS_BYTES + offset + size, len(self._memory)))
            if opcode == _READ:
                return 0, self._memory[place]
            self._memory[place] = body[_WRITE_BYTES : _WRITE_BYTES + size]
            return 0, struct.pack("<II", size, 0)
        if opcode in (_RELEASE, _RELEASEDIR, _FLUSH, _FSYNC):
            return 0, b""
        return errno.ENOSYS, b""

    def _attributes(self, node: int) -> bytes:
        size = len(self._memory) - _ERRNOS_BYTES if node == _FILE else 0
        mode = stat.S_IFREG | 0o600 if node == _FILE else stat.S_IFDIR | 0o700
        return struct.pack("<6Q10I", node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


if __name__ == "__main__":
    _Server(int(sys.argv[1]), mmap.mmap(int(sys.argv[2]), 0)).run()
