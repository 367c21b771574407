"""Files of a FAT file system, as Microsoft's specification of 2000 (fatgen103) has it: an EFI system partition, for one."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from vmservice.errors import ConfigError
from vmservice.image.tools import Image

# Bytes a sector at 11: sectors a cluster, reserved sectors, tables, entries of the root, sectors (16 bits), medium, sectors a
# table (16 bits), at 32: sectors, sectors a table, at 44: the root's cluster.
_BOOT = struct.Struct("<11xHBHBHHxH8xII4xI")
_ENTRY_BYTES = 32
_ENTRIES_MAX = 65536
_FOLDER = 0x10
_LABEL = 0x08
_LONG_NAME = 0x0F
_DELETED = 0xE5
_TEXT_MAX_BYTES = 4 << 20


@dataclass(frozen=True)
class _Entry:
    name: str
    is_folder: bool
    cluster: int
    size: int


class Fat:
    """The file system that begins at `offset`. Names are compared without regard to case."""

    kind = "vfat"

    def __init__(self, image: Image, offset: int) -> None:
        self._image = image
        self._offset = offset
        raw = os.pread(image.fd, _BOOT.size, offset)
        if len(raw) < _BOOT.size:
            raise self._damaged()
        (self._sector, per_cluster, reserved, tables, root_entries, few, few_a_table, many, many_a_table, self._root) = (
            _BOOT.unpack(raw)
        )
        a_table = few_a_table or many_a_table
        if self._sector not in (512, 1024, 2048, 4096) or not per_cluster or not a_table:
            raise self._damaged()
        self._cluster_bytes = per_cluster * self._sector
        self._table_at = reserved * self._sector
        self._root_at = self._table_at + tables * a_table * self._sector
        self._root_bytes = root_entries * _ENTRY_BYTES
        self._data_at = self._root_at + -(-self._root_bytes // self._sector) * self._sector
        self._clusters = ((few or many) * self._sector - self._data_at) // self._cluster_bytes
        # The number of clusters alone says which of the three it is.
        self._bits = 12 if self._clusters < 4085 else 16 if self._clusters < 65525 else 32
        table_bytes = (self._clusters + 2) * self._bits // 8 + 2
        self._table = os.pread(image.fd, min(table_bytes, a_table * self._sector), offset + self._table_at)

    def text(self, path: str) -> str | None:
        """None where there is no such file."""
        entry = self._find(path)
        if entry is None or entry.is_folder or entry.size > _TEXT_MAX_BYTES:
            return None
        return b"".join(self._pieces(entry)).decode(errors="replace")

    def size(self, path: str) -> int | None:
        """Bytes of a file; None where there is no such one."""
        entry = self._find(path)
        return None if entry is None or entry.is_folder else entry.size

    def names(self, path: str) -> list[str]:
        """What the folder has; nothing where there is no such one."""
        entry = self._find(path)
        return sorted(one.name for one in self._folder(entry)) if entry is not None and entry.is_folder else []

    def copy(self, path: str, output: int) -> None:
        """Write the file to the descriptor `output`. ConfigError where it is not there."""
        entry = self._find(path)
        if entry is None or entry.is_folder:
            raise ConfigError(f"{self._image.path} has no file {path}")
        for piece in self._pieces(entry):
            left = piece
            while left:
                left = left[os.write(output, left) :]

    def _find(self, path: str) -> _Entry | None:
        entry = _Entry("", True, 0, 0)
        for name in path.split("/"):
            if name:
                if not entry.is_folder:
                    return None
                found = [one for one in self._folder(entry) if one.name.lower() == name.lower()]
                if not found:
                    return None
                entry = found[0]
        return entry

    def _folder(self, folder: _Entry) -> list[_Entry]:
        if folder.cluster == 0 and self._bits != 32:
            data = os.pread(self._image.fd, self._root_bytes, self._offset + self._root_at)
        else:
            chain = self._chain(folder.cluster or self._root, _ENTRIES_MAX * _ENTRY_BYTES)
            data = b"".join(self._read(cluster) for cluster in chain)
        return list(_entries(data))

    def _pieces(self, entry: _Entry) -> Iterator[bytes]:
        left = entry.size
        for cluster in self._chain(entry.cluster, entry.size):
            piece = self._read(cluster)[:left]
            left -= len(piece)
            yield piece
        if left:
            raise self._damaged()

    def _read(self, cluster: int) -> bytes:
        place = self._offset + self._data_at + (cluster - 2) * self._cluster_bytes
        return os.pread(self._image.fd, self._cluster_bytes, place)

    def _chain(self, cluster: int, size: int) -> Iterator[int]:
        """At most as many clusters as `size` takes: a chain may be a ring."""
        for _ in range(-(-size // self._cluster_bytes)):
            if not 2 <= cluster < self._clusters + 2:
                return
            yield cluster
            cluster = self._next(cluster)

    def _next(self, cluster: int) -> int:
        place = cluster * self._bits // 8
        if self._bits == 32:
            return int.from_bytes(self._table[place : place + 4], "little") & 0x0FFFFFFF
        value = int.from_bytes(self._table[place : place + 2], "little")
        if self._bits == 16:
            return value
        return value >> 4 if cluster % 2 else value & 0xFFF

    def _damaged(self) -> ConfigError:
        return ConfigError(f"{self._image.path}: a FAT file system in it is damaged")


def _entries(data: bytes) -> Iterator[_Entry]:
    """All that a folder has; names in the 8.3 form where there is no long one."""
    long_name: dict[int, bytes] = {}
    for place in range(0, len(data) - _ENTRY_BYTES + 1, _ENTRY_BYTES):
        raw = data[place : place + _ENTRY_BYTES]
        if raw[0] == 0:
            return
        attributes = raw[11]
        if attributes == _LONG_NAME and raw[0] != _DELETED:
            if raw[0] & 0x40:
                long_name = {}
            long_name[raw[0] & 0x3F] = raw[1:11] + raw[14:26] + raw[28:32]
            continue
        if raw[0] != _DELETED and not attributes & _LABEL:
            encoded = b"".join(long_name[number] for number in sorted(long_name))
            name = encoded.decode("utf-16-le", "replace").partition("\0")[0] or _short_name(raw)
            if name not in (".", ".."):
                high, low, size = struct.unpack_from("<H4xHI", raw, 20)
                yield _Entry(name, bool(attributes & _FOLDER), high << 16 | low, size)
        long_name = {}


def _short_name(raw: bytes) -> str:
    """Bits of byte 12 say that a part is meant in small letters, as Windows NT and Linux have it."""
    base, suffix = raw[:8].decode("latin-1").rstrip(), raw[8:11].decode("latin-1").rstrip()
    base = base.lower() if raw[12] & 0x08 else base
    suffix = suffix.lower() if raw[12] & 0x10 else suffix
    return f"{base}.{suffix}" if suffix else base
