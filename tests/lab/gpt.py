"""A GUID partition table with one partition (UEFI specification, 5.3), written here because sfdisk is not on every machine.

The same arguments give the same bytes.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from pathlib import Path

SECTOR = 512
# Where the partition begins: 1 MiB, as every tool puts it.
FIRST_BYTE = 1 << 20
# The Discoverable Partitions Specification's root of x86-64: systemd-dissect and systemd-gpt-auto-generator know it by this.
_ROOT_X86_64 = uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")
_ENTRIES, _ENTRY_SIZE = 128, 128
_TABLE_SECTORS = _ENTRIES * _ENTRY_SIZE // SECTOR
_HEADER_SIZE = 92


def partition_size(disk_bytes: int) -> int:
    """How large the partition of a disk of that size is, in bytes: up to the backup of the table."""
    return disk_bytes - FIRST_BYTE - (_TABLE_SECTORS + 1) * SECTOR


def write_table(image: Path, disk: uuid.UUID, partition: uuid.UUID) -> None:
    """Puts the table and its backup into `image`, which has its size already, for a root partition with that PARTUUID."""
    last_sector = image.stat().st_size // SECTOR - 1
    first, last = FIRST_BYTE // SECTOR, last_sector - _TABLE_SECTORS - 1
    name = "root".encode("utf-16-le")
    entry = _ROOT_X86_64.bytes_le + partition.bytes_le + struct.pack("<QQQ72s", first, last, 0, name)
    table = entry.ljust(_ENTRIES * _ENTRY_SIZE, b"\0")

    def header(own: int, other: int, table_at: int) -> bytes:
        def packed(checksum: int) -> bytes:
            return struct.pack(
                "<8sIIIIQQQQ16sQIII",
                *(b"EFI PART", 0x10000, _HEADER_SIZE, checksum, 0),
                *(own, other, 2 + _TABLE_SECTORS, last, disk.bytes_le),
                *(table_at, _ENTRIES, _ENTRY_SIZE, zlib.crc32(table)),
            )

        return packed(zlib.crc32(packed(0))).ljust(SECTOR, b"\0")

    # The protective MBR: one partition of type 0xee over all that 32 bits can count.
    mbr = struct.pack("<446xB3sB3sII48xH", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, min(last_sector, 0xFFFFFFFF), 0xAA55)
    with image.open("r+b") as file:
        file.write(mbr + header(1, last_sector, 2) + table)
        file.seek((last_sector - _TABLE_SECTORS) * SECTOR)
        file.write(table + header(last_sector, 1, last_sector - _TABLE_SECTORS))
