"""An initramfs: a cpio archive in the "newc" form (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst).

Written here, not by cpio(1), so that the same content gives the same bytes: entries in the order given, of 1970, root's.
"""

from __future__ import annotations

import stat
from pathlib import Path

_TRAILER = "TRAILER!!!"


class CpioArchive:
    """Collects entries; `write` puts the archive out. Paths are relative to the root, without a leading slash."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def add_directory(self, path: str) -> None:
        self._add(path, stat.S_IFDIR | 0o755, b"")

    def add_file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        self._add(path, stat.S_IFREG | mode, data)

    def add_symlink(self, path: str, target: str) -> None:
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def add_character_device(self, path: str, major: int, minor: int) -> None:
        self._add(path, stat.S_IFCHR | 0o600, b"", device=(major, minor))

    def write(self, target: Path) -> None:
        """Writes the archive with its trailer, padded to 512 bytes as cpio(1) does."""
        data = b"".join(self._parts) + _entry(0, _TRAILER, 0, b"", (0, 0))
        target.write_bytes(data + bytes(-len(data) % 512))

    def _add(self, path: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        self._parts.append(_entry(self._inode, path, mode, data, device))


def _entry(inode: int, path: str, mode: int, data: bytes, device: tuple[int, int]) -> bytes:
    """One header of 110 characters, the name and the data, each padded to four bytes."""
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    fields = (inode, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(name), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
