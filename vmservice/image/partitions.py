"""The partition table of an image: GUID partition tables (UEFI specification 2.10, chapter 5) and those of MS-DOS."""

from __future__ import annotations

import os
import struct
import uuid
import zlib
from dataclasses import dataclass

from vmservice.errors import ConfigError

SECTOR_BYTES = 512
# Discoverable Partitions Specification.
ROOT_X86_64 = uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")
BOOT = uuid.UUID("bc13c2ff-59e6-4262-a352-b275fd6f7172")
ESP = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")

# signature, revision, header size, its CRC, own and other sector, first and last usable one, disk, and of the table: sector,
# entries, size of one, CRC
_HEADER = struct.Struct("<8sIII4xQQQQ16sQIII")
_SIGNATURE = b"EFI PART"
_ENTRY = struct.Struct("<16s16sQQQ72s")
_ENTRY_LAST_OFFSET = 40
_ENTRIES_MAX = 1024
_ENTRY_BYTES_MAX = 4096

_REVISION = 0x10000
_NEW_ENTRIES = 128
# Where partitions begin, as every tool has it.
_FIRST_BYTE = 1 << 20

# boot flag, type at 4, first sector and length at 8.
_MBR_ENTRY = struct.Struct("<4xB3xII")
_MBR_ENTRIES_OFFSET = 446
_MBR_DISK_ID_OFFSET = 440
_MBR_MAGIC = b"\x55\xaa"
_PROTECTIVE = 0xEE
_EXTENDED = (0x05, 0x0F, 0x85)
_LOGICAL_MAX = 60
_MBR_LAST_SECTOR = 0xFFFFFFFF


@dataclass(frozen=True)
class Partition:
    """`number` as Linux counts, from 1. `kind` is the type of a GPT's, else None. `partuuid` is for root=PARTUUID=."""

    number: int
    offset: int
    size_bytes: int
    partuuid: str
    kind: uuid.UUID | None = None


def read_partitions(fd: int, size_bytes: int) -> list[Partition]:
    """All that lie inside the image, by number; none where it has no table. ConfigError for a GPT that is damaged."""
    first = os.pread(fd, SECTOR_BYTES, 0)
    if first[510:512] != _MBR_MAGIC:
        return []
    primary = [_MBR_ENTRY.unpack_from(first, _MBR_ENTRIES_OFFSET + 16 * number) for number in range(4)]
    has_gpt = any(kind == _PROTECTIVE for kind, _, _ in primary)
    found = _read_gpt(fd) if has_gpt else _read_mbr(fd, first, primary)
    return [one for one in found if 0 < one.offset < one.offset + one.size_bytes <= size_bytes]


def grow_last(fd: int, old_bytes: int, partition: Partition) -> bool:
    """Have the table of an image that had `old_bytes` and is longer now use what has come; whether `partition` has grown.

    It grows if it is the last one of the disk. The file system in it is for the guest to grow.
    """
    size_bytes = os.fstat(fd).st_size // SECTOR_BYTES * SECTOR_BYTES
    is_last = all(other.offset <= partition.offset for other in read_partitions(fd, old_bytes))
    if partition.kind is not None:
        return _grow_gpt(fd, size_bytes, partition if is_last else None)
    if not is_last or partition.number > 4:
        return False
    sectors = min(size_bytes // SECTOR_BYTES, _MBR_LAST_SECTOR) - partition.offset // SECTOR_BYTES
    where = _MBR_ENTRIES_OFFSET + 16 * (partition.number - 1)
    os.pwrite(fd, struct.pack("<I", sectors), where + 12)
    return True


def write_root_partition(fd: int) -> Partition:
    """Give a disk without anything a GPT with one partition, for a root of x86-64. Its size is a multiple of 1 MiB."""
    size_bytes = os.fstat(fd).st_size
    data_bytes = _NEW_ENTRIES * _ENTRY.size
    first, last = _FIRST_BYTE // SECTOR_BYTES, _last_usable(size_bytes, data_bytes)
    partuuid = uuid.uuid4()
    entry = _ENTRY.pack(ROOT_X86_64.bytes_le, partuuid.bytes_le, first, last, 0, "root".encode("utf-16-le"))
    sectors = _protected_sectors(size_bytes)
    os.pwrite(fd, struct.pack("<446xB3sB3sII48x2s", 0, b"\0\2\0", _PROTECTIVE, b"\xff\xff\xff", 1, sectors, _MBR_MAGIC), 0)
    shape = _Shape(_REVISION, uuid.uuid4().bytes_le, first, 2, _NEW_ENTRIES, _ENTRY.size)
    _write_gpt(fd, size_bytes, shape, entry.ljust(data_bytes, b"\0"))
    return Partition(1, _FIRST_BYTE, (last + 1 - first) * SECTOR_BYTES, str(partuuid), ROOT_X86_64)


@dataclass(frozen=True)
class _Shape:
    """What the two headers of a GPT have in common; sectors but for `entry_bytes`."""

    revision: int
    disk: bytes
    first: int
    table: int
    entries: int
    entry_bytes: int

    def header(self, own: int, other: int, last: int, table: int, data: bytes) -> bytes:
        """One sector, of the copy that is at `own`."""
        fields = (own, other, self.first, last, self.disk, table, self.entries, self.entry_bytes, zlib.crc32(data))
        checksum = zlib.crc32(_HEADER.pack(_SIGNATURE, self.revision, _HEADER.size, 0, *fields))
        return _HEADER.pack(_SIGNATURE, self.revision, _HEADER.size, checksum, *fields).ljust(SECTOR_BYTES, b"\0")


class _Gpt:
    """The header behind the first sector, and its table; ConfigError where their checksums are wrong."""

    def __init__(self, fd: int) -> None:
        self.raw = os.pread(fd, SECTOR_BYTES, SECTOR_BYTES)
        if len(self.raw) < SECTOR_BYTES or self.raw[:8] != _SIGNATURE:
            raise ConfigError("its GUID partition table is damaged: there is no header")
        (_, self.revision, self.header_bytes, checksum, _, self.other, self.first, self.last, self.disk, self.table) = (
            _HEADER.unpack_from(self.raw)[:10]
        )
        self.entries, self.entry_bytes, self.table_checksum = _HEADER.unpack_from(self.raw)[10:]
        if not _HEADER.size <= self.header_bytes <= SECTOR_BYTES or checksum != self._checksum():
            raise ConfigError("its GUID partition table is damaged: the header's checksum is wrong")
        if not 0 < self.entries <= _ENTRIES_MAX or not _ENTRY.size <= self.entry_bytes <= _ENTRY_BYTES_MAX:
            raise ConfigError(f"its GUID partition table has {self.entries} entries of {self.entry_bytes} bytes")
        self.data = os.pread(fd, self.entries * self.entry_bytes, self.table * SECTOR_BYTES)
        if zlib.crc32(self.data) != self.table_checksum:
            raise ConfigError("its GUID partition table is damaged: the table's checksum is wrong")

    def _checksum(self) -> int:
        header = bytearray(self.raw[: self.header_bytes])
        header[16:20] = bytes(4)
        return zlib.crc32(header)


def _read_gpt(fd: int) -> list[Partition]:
    gpt = _Gpt(fd)
    found = []
    for number in range(gpt.entries):
        kind, own, first, last, _, _ = _ENTRY.unpack_from(gpt.data, number * gpt.entry_bytes)
        if kind != bytes(16) and first <= last:
            size = (last + 1 - first) * SECTOR_BYTES
            partuuid = str(uuid.UUID(bytes_le=own))
            found.append(Partition(number + 1, first * SECTOR_BYTES, size, partuuid, uuid.UUID(bytes_le=kind)))
    return found


def _grow_gpt(fd: int, size_bytes: int, partition: Partition | None) -> bool:
    """The backup of the table belongs at the disk's end."""
    gpt = _Gpt(fd)
    data = bytearray(gpt.data)
    if partition is not None:
        last = _last_usable(size_bytes, len(data))
        struct.pack_into("<Q", data, (partition.number - 1) * gpt.entry_bytes + _ENTRY_LAST_OFFSET, last)
    shape = _Shape(gpt.revision, gpt.disk, gpt.first, gpt.table, gpt.entries, gpt.entry_bytes)
    _write_gpt(fd, size_bytes, shape, bytes(data))
    if os.pread(fd, 5, _MBR_ENTRIES_OFFSET)[4] == _PROTECTIVE:
        os.pwrite(fd, struct.pack("<I", _protected_sectors(size_bytes)), _MBR_ENTRIES_OFFSET + 12)
    return partition is not None


def _write_gpt(fd: int, size_bytes: int, shape: _Shape, data: bytes) -> None:
    """The table twice: behind the first sector, and at the end with its header behind it."""
    end = size_bytes // SECTOR_BYTES - 1
    last = _last_usable(size_bytes, len(data))
    os.pwrite(fd, data.ljust((end - last - 1) * SECTOR_BYTES, b"\0"), (last + 1) * SECTOR_BYTES)
    os.pwrite(fd, shape.header(end, 1, last, last + 1, data), end * SECTOR_BYTES)
    os.pwrite(fd, data, shape.table * SECTOR_BYTES)
    os.pwrite(fd, shape.header(1, end, last, shape.table, data), SECTOR_BYTES)


def _protected_sectors(size_bytes: int) -> int:
    """What the partition of type 0xee has: all that 32 bits can count, behind the first sector."""
    return min(size_bytes // SECTOR_BYTES - 1, _MBR_LAST_SECTOR)


def _last_usable(size_bytes: int, table_bytes: int) -> int:
    """The last sector that may be a partition's."""
    return size_bytes // SECTOR_BYTES - 2 - -(-table_bytes // SECTOR_BYTES)


def _read_mbr(fd: int, first: bytes, primary: list[tuple[int, int, int]]) -> list[Partition]:
    disk = int.from_bytes(first[_MBR_DISK_ID_OFFSET : _MBR_DISK_ID_OFFSET + 4], "little")
    found = []

    def add(number: int, start: int, sectors: int) -> None:
        found.append(Partition(number, start * SECTOR_BYTES, sectors * SECTOR_BYTES, f"{disk:08x}-{number:02x}"))

    for number, (kind, start, sectors) in enumerate(primary, 1):
        if kind in _EXTENDED:
            for logical, (begin, length) in enumerate(_logical(fd, start), 5):
                add(logical, begin, length)
        elif kind and sectors:
            add(number, start, sectors)
    return sorted(found, key=lambda one: one.number)


def _logical(fd: int, extended: int) -> list[tuple[int, int]]:
    """(first sector, sectors) of each logical partition: a chain of tables, each with one, and the place of the next."""
    found: list[tuple[int, int]] = []
    place = extended
    for _ in range(_LOGICAL_MAX):
        sector = os.pread(fd, SECTOR_BYTES, place * SECTOR_BYTES)
        if sector[510:512] != _MBR_MAGIC:
            break
        kind, start, sectors = _MBR_ENTRY.unpack_from(sector, _MBR_ENTRIES_OFFSET)
        if kind and sectors:
            found.append((place + start, sectors))
        kind, start, _ = _MBR_ENTRY.unpack_from(sector, _MBR_ENTRIES_OFFSET + 16)
        if kind not in _EXTENDED:
            break
        place = extended + start
    return found
