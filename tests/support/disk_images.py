"""Disk images as people have them: partition tables, ext4 from a tree, FAT, and systems that a boot loader would start."""

from __future__ import annotations

import struct
import subprocess
import uuid
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from support.images import bzimage, pattern

MIB = 1 << 20
SECTOR = 512

ROOT = uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")
BOOT = uuid.UUID("bc13c2ff-59e6-4262-a352-b275fd6f7172")
ESP = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
DATA = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")

OWN = uuid.UUID("11111111-2222-3333-4444-555555555555")

KERNEL = bzimage(pattern(4096))
INITRD = b"070701" + bytes(range(256)) * 40

OS_RELEASE = 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nID=debian\n'


@dataclass(frozen=True)
class Part:
    """`content` is what begins the partition. `own` is its PARTUUID."""

    kind: uuid.UUID
    content: bytes
    size: int
    own: uuid.UUID = OWN


def write_tree(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    """Files by their path; "-> target" makes a link."""
    for name, content in files.items():
        path = folder / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str) and content.startswith("-> "):
            path.symlink_to(content[3:])
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def ext4(folder: Path, files: Mapping[str, bytes | str], size: int = 8 * MIB) -> bytes:
    """A file system of `size` bytes with these files; `folder` is a new one for the work."""
    tree = write_tree(folder / "tree", files)
    image = folder / "ext4"
    subprocess.run(
        ["/usr/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", tree, image, f"{size >> 10}k"],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return image.read_bytes()


def gpt(path: Path, parts: Sequence[Part], *, spare: int = 0) -> Path:
    """A disk with a GUID partition table; `spare` bytes at its end are no partition's."""
    first, entries, place = MIB // SECTOR, b"", MIB // SECTOR
    starts = []
    for part in parts:
        sectors = part.size // SECTOR
        starts.append(place)
        entries += part.kind.bytes_le + part.own.bytes_le + struct.pack("<QQQ72s", place, place + sectors - 1, 0, b"")
        place += -(-sectors // 2048) * 2048
    end = place + spare // SECTOR + 33
    table = entries.ljust(128 * 128, b"\0")
    with path.open("wb") as file:
        file.truncate((end + 1) * SECTOR)
        file.write(struct.pack("<446xB3sB3sII48xH", 0, b"", 0xEE, b"", 1, end, 0xAA55))
        file.write(gpt_header(1, end, first, end - 33, 2, table) + table)
        for part, start in zip(parts, starts, strict=True):
            file.seek(start * SECTOR)
            file.write(part.content)
        file.seek((end - 32) * SECTOR)
        file.write(table + gpt_header(end, 1, first, end - 33, end - 32, table))
    return path


def gpt_header(own: int, other: int, first: int, last: int, table_at: int, table: bytes) -> bytes:
    def packed(checksum: int) -> bytes:
        fields = (0x10000, 92, checksum, 0, own, other, first, last, bytes(range(16)), table_at, 128, 128, zlib.crc32(table))
        return struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", *fields)

    return packed(zlib.crc32(packed(0))).ljust(SECTOR, b"\0")


def fat(bits: int, files: Mapping[str, bytes]) -> bytes:
    """A FAT file system with these files, with long names; files in the top folder come first."""
    clusters = {12: 4000, 16: 5000, 32: 66000}[bits]
    table_sectors = (clusters + 2) * bits // 8 // SECTOR + 1
    root_entries, reserved = (0, 32) if bits == 32 else (512, 1)
    data_at = (reserved + table_sectors) * SECTOR + root_entries * 32
    sectors = data_at // SECTOR + clusters
    chain, data = [0, 0], bytearray()

    def store(content: bytes) -> int:
        """The first cluster of new ones with this content; another chain lies between each two of them."""
        first = len(chain)
        pieces = [content[place : place + SECTOR] for place in range(0, max(len(content), 1), SECTOR)]
        for number, piece in enumerate(pieces):
            own = len(chain)
            chain.extend((own + 2 if number + 1 < len(pieces) else (1 << bits) - 1, 0))
            data.extend(piece.ljust(2 * SECTOR, b"\0"))
        return first

    folders: dict[str, bytes] = {"": b""}
    for number, (path, content) in enumerate(files.items()):
        folder, _, name = path.lstrip("/").rpartition("/")
        folders[folder] = folders.get(folder, b"") + _fat_entry(name, number, 0x20, store(content), len(content))
    for path in list(folders):
        names = path.split("/")
        for depth in range(len(names)):
            folders.setdefault("/".join(names[:depth]), b"")
    for number, folder in enumerate(sorted((one for one in folders if one), key=lambda one: -one.count("/"))):
        parent, _, name = folder.rpartition("/")
        folders[parent] += _fat_entry(name, 100 + number, 0x10, store(folders[folder]), 0)
    root = store(folders[""]) if bits == 32 else 0
    table = b"".join(value.to_bytes(bits // 8, "little") for value in chain) if bits != 12 else _fat12(chain)
    boot = struct.pack("<11xHBHBHHxH8xII4xI", SECTOR, 1, reserved, 1, root_entries, 0, table_sectors, sectors, 0, root)
    if bits == 32:
        boot = struct.pack("<11xHBHBHHxH8xII4xI", SECTOR, 1, reserved, 1, 0, 0, 0, sectors, table_sectors, root)
    place, magic = (0x52, b"FAT32   ") if bits == 32 else (0x36, b"FAT%d   " % bits)
    head = bytearray(reserved * SECTOR)
    head[: len(boot)] = boot
    head[place : place + 8] = magic
    head[510:512] = b"\x55\xaa"
    rest = table.ljust(table_sectors * SECTOR, b"\0")
    rest += b"" if bits == 32 else folders[""].ljust(root_entries * 32, b"\0")
    return bytes(head) + rest + bytes(data)


def _fat12(chain: Sequence[int]) -> bytes:
    packed = sum(value << 12 * number for number, value in enumerate(chain))
    return packed.to_bytes(len(chain) * 3 // 2 + 2, "little")


def _fat_entry(name: str, number: int, attributes: int, cluster: int, size: int) -> bytes:
    short = f"F{number:07d}   ".encode()
    long_name = (name + "\0").encode("utf-16-le")
    pieces = [long_name[place : place + 26].ljust(26, b"\xff") for place in range(0, len(long_name), 26)]
    entries = b""
    for index in range(len(pieces), 0, -1):
        piece = pieces[index - 1]
        order = index | (0x40 if index == len(pieces) else 0)
        entries += bytes((order,)) + piece[:10] + b"\x0f\0\0" + piece[10:22] + b"\0\0" + piece[22:]
    return entries + short + bytes((attributes,)) + struct.pack("<8xH4xHI", cluster >> 16, cluster & 0xFFFF, size)


GRUB_CFG = """\
set default="0"
menuentry 'Debian GNU/Linux' --class debian $menuentry_id_option 'gnulinux-simple' {
        linux   /boot/vmlinuz-6.12 root=UUID=0815 ro console=tty0 console=ttyS0,115200 quiet
        initrd  /boot/initrd.img-6.12
}
"""


def system(**more: bytes | str) -> dict[str, bytes | str]:
    """The files of a small Debian that grub would start; `more` replaces or adds, with "_" for "/"."""
    files: dict[str, bytes | str] = {
        "/etc/os-release": "-> ../usr/lib/os-release",
        "/usr/lib/os-release": OS_RELEASE,
        "/boot/vmlinuz-6.12": KERNEL,
        "/boot/initrd.img-6.12": INITRD,
        "/boot/grub/grub.cfg": GRUB_CFG,
        "/usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-257.so": b"ELF",
        "/usr/sbin/sshd": b"ELF",
    }
    return files | {name.replace("_", "/"): content for name, content in more.items()}


def disk(folder: Path, files: Mapping[str, bytes | str] | None = None, *, spare: int = 0) -> Path:
    """A raw disk with one root partition, by default of `system`."""
    folder.mkdir(exist_ok=True)
    content = ext4(folder, system() if files is None else files)
    return gpt(folder / "disk.raw", [Part(ROOT, content, len(content))], spare=spare)
