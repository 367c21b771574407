"""Which file system is at a place of an image, by its magic number."""

from __future__ import annotations

import os

# Name → (offset from its start, magic).
_MAGICS = {
    "luks": (0, b"LUKS\xba\xbe"),
    "ext4": (0x438, b"\x53\xef"),
    "xfs": (0, b"XFSB"),
    "btrfs": (0x10040, b"_BHRfS_M"),
    "squashfs": (0, b"hsqs"),
    "erofs": (0x400, b"\xe2\xe1\xf5\xe0"),
    "lvm": (0x218, b"LVM2 001"),
    "iso9660": (0x8001, b"CD001"),
    "swap": (4086, b"SWAPSPACE2"),
    "vfat": (0x52, b"FAT32   "),
    "vfat of 16 bits": (0x36, b"FAT16   "),
    "vfat of 12 bits": (0x36, b"FAT12   "),
}


def kind_at(fd: int, offset: int) -> str:
    """`ext4` stands for ext2 and ext3, too, and `vfat` for each FAT. Empty where none is known."""
    for name, (place, magic) in _MAGICS.items():
        if os.pread(fd, len(magic), offset + place) == magic:
            return name.partition(" ")[0]
    return ""


def ext4_uuid(fd: int, offset: int) -> str:
    """By which `root=UUID=` finds it."""
    import uuid

    return str(uuid.UUID(bytes=os.pread(fd, 16, offset + 0x468)))
