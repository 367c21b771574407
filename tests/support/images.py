"""Kernel images made by hand: the least that is a bzImage or an ELF kernel, every field at the caller's will."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from vmservice.memory.guest_memory import GuestMemory

# What the fixtures of the loaders' tests give: memory of so many bytes, and the path of a file with this content.
MakeMemory = Callable[[int], GuestMemory]
MakeFile = Callable[[bytes], str]

# Offset and format of the setup header's fields (Documentation/arch/x86/boot.rst).
HEADER_FIELDS = {
    "setup_sects": (0x1F1, "<B"),
    "syssize": (0x1F4, "<I"),
    "boot_flag": (0x1FE, "<H"),
    "jump_length": (0x201, "<B"),
    "header": (0x202, "<I"),
    "version": (0x206, "<H"),
    "type_of_loader": (0x210, "<B"),
    "loadflags": (0x211, "<B"),
    "code32_start": (0x214, "<I"),
    "initrd_addr_max": (0x22C, "<I"),
    "kernel_alignment": (0x230, "<I"),
    "relocatable_kernel": (0x234, "<B"),
    "xloadflags": (0x236, "<H"),
    "cmdline_size": (0x238, "<I"),
    "pref_address": (0x258, "<Q"),
    "init_size": (0x260, "<I"),
}
HEADER_END = 0x26C


def pattern(size_bytes: int, seed: int = 7) -> bytes:
    """Bytes of which no two neighbouring pages are alike."""
    return bytes((index * seed + (index >> 8)) & 0xFF for index in range(size_bytes))


def bzimage(code: bytes, *, setup_sects: int = 1, **fields: int) -> bytes:
    """A bzImage with `code` (a multiple of 16 bytes) as its protected-mode part, which prefers to be at 2 MiB."""
    values = {
        "setup_sects": setup_sects,
        "syssize": len(code) // 16,
        "boot_flag": 0xAA55,
        "jump_length": HEADER_END - 0x202,
        "header": 0x53726448,
        "version": 0x020F,
        "loadflags": 1,
        "code32_start": 0x100000,
        "initrd_addr_max": 0x7FFFFFFF,
        "kernel_alignment": 0x200000,
        "relocatable_kernel": 1,
        "xloadflags": 1,
        "cmdline_size": 2047,
        "pref_address": 0x200000,
        "init_size": 0x80000,
    }
    image = bytearray(((setup_sects or 4) + 1) * 512)
    for name, value in (values | fields).items():
        offset, form = HEADER_FIELDS[name]
        struct.pack_into(form, image, offset, value)
    return bytes(image) + code


def segment(gpa: int, data: bytes, *, memory_size: int | None = None, kind: int = 1) -> tuple[int, int, bytes, int]:
    """One program header for `elf`: type PT_LOAD, `data` at p_paddr `gpa`, zeros behind it up to `memory_size`."""
    return (kind, gpa, data, len(data) if memory_size is None else memory_size)


def pvh_note(entry: int, *, size: int = 4, name: bytes = b"Xen\0", kind: int = 18) -> bytes:
    """An ELF note that says where a kernel is entered by PVH; the address takes `size` bytes. Padded to 4 bytes."""
    return struct.pack("<III", len(name), size, kind) + name + bytes(-len(name) % 4) + entry.to_bytes(size, "little")


def note_segment(notes: bytes) -> tuple[int, int, bytes, int]:
    """A program header of type PT_NOTE for `elf`. Of its alignment the loader must make 4, as it is not 8."""
    return segment(0, notes, kind=4)


def elf(
    segments: Sequence[tuple[int, int, bytes, int]], *, entry: int, kind: int = 2, machine: int = 62, phnum: int | None = None
) -> bytes:
    """A 64-bit little-endian ELF file: x86-64 and EXEC unless told otherwise; the data follow the headers in order."""
    offset = 64 + 56 * len(segments)
    headers, body = b"", b""
    for p_type, gpa, data, memory_size in segments:
        p_vaddr = 0xFFFFFFFF80000000 | gpa  # as a vmlinux has it: virtual addresses are of no interest to the loader
        headers += struct.pack("<IIQQQQQQ", p_type, 5, offset + len(body), p_vaddr, gpa, len(data), memory_size, 0x1000)
        body += data
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    count = len(segments) if phnum is None else phnum
    header = struct.pack("<HHIQQQIHHHHHH", kind, machine, 1, entry, 64, 0, 0, 64, 56, count, 64, 0, 0)
    return ident + header + headers + body
