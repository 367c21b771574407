"""ELF: an unpacked kernel (vmlinux), its segments put at their physical addresses. It is entered where its PVH note says, if it
has one, else at its 64-bit start.

The header is read by pyelftools, which costs more than the rest of a start: this module is imported for ELF files only.
"""

from __future__ import annotations

import os
import struct
from itertools import pairwise
from typing import TYPE_CHECKING

from elftools.common.utils import struct_parse
from elftools.elf.elffile import ELFFile

from vmservice.boot.kernel import LINUX_64, PVH, LoadedKernel, check_placement
from vmservice.errors import ConfigError

if TYPE_CHECKING:
    from vmservice.host.files import RegularFile
    from vmservice.memory.guest_memory import GuestMemory

HEADER_BYTES = 64
PROGRAM_HEADER_BYTES = 56
# A vmlinux has about five; the limit bounds the work that a random file can cause, and excludes PN_XNUM (0xffff).
PROGRAM_HEADERS_MAX = 128

# XEN_ELFNOTE_PHYS32_ENTRY of Xen's public/elfnote.h: where a kernel can be entered in 32-bit protected mode. Linux has it with
# CONFIG_PVH.
PVH_NOTE_NAME = b"Xen\0"
PVH_NOTE_TYPE = 18
NOTE_HEADER = struct.Struct("<III")  # n_namesz, n_descsz, n_type
NOTES_MAX_BYTES = 1 << 16  # a vmlinux has half a KiB

# An ELF file does not say these two: they are what Linux on x86-64 has (COMMAND_LINE_SIZE in asm/setup.h less the NUL, and
# initrd_addr_max in arch/x86/boot/header.S).
CMDLINE_MAX = 2047
INITRD_ADDR_MAX = 0x7FFFFFFF

ZEROS = bytes(1 << 20)


class Segment:
    """One PT_LOAD: `file_size` bytes from `offset` in the file go to `gpa`, zeros follow up to `memory_size`."""

    __slots__ = ("file_size", "gpa", "memory_size", "offset")

    def __init__(self, offset: int, gpa: int, file_size: int, memory_size: int) -> None:
        self.offset = offset
        self.gpa = gpa
        self.file_size = file_size
        self.memory_size = memory_size

    @property
    def end(self) -> int:
        return self.gpa + self.memory_size


def load_elf(file: RegularFile, memory: GuestMemory) -> LoadedKernel:
    """Put every PT_LOAD segment to its p_paddr and clear its rest: the memory may be backed by a file that was used before.

    Without a PVH note the entry is e_entry: physical, as in a vmlinux, which begins with its 64-bit startup code. ConfigError
    if the file or the memory will not do.
    """
    entry, protocol, segments = _parse(file)
    _check_segments(file, memory, segments, entry)
    for segment in segments:
        rest = segment.memory_size - segment.file_size
        with memory.view(segment.gpa, segment.file_size) as image, memory.view(segment.gpa + segment.file_size, rest) as bss:
            file.read_into(image, segment.offset)
            _clear(bss)
    return LoadedKernel(
        entry=entry,
        protocol=protocol,
        setup_header=None,
        cmdline_max=CMDLINE_MAX,
        initrd_addr_max=INITRD_ADDR_MAX,
        start=segments[0].gpa,
        end=segments[-1].end,
    )


def _check_segments(file: RegularFile, memory: GuestMemory, segments: list[Segment], entry: int) -> None:
    """ConfigError unless all can be loaded, none onto another, with the entry in one of them."""
    if not segments:
        raise ConfigError(f"the kernel {file.path} is an ELF file with nothing to load: it has no PT_LOAD segment")
    for segment in segments:
        if segment.file_size > segment.memory_size:
            raise ConfigError(
                f"the kernel {file.path} has a damaged segment at {segment.gpa:#x}: "
                f"{segment.file_size} bytes in the file, but only {segment.memory_size} in memory"
            )
        if segment.offset + segment.file_size > file.size_bytes:
            raise file.truncated(segment.offset + segment.file_size)
        check_placement(file, memory, segment.gpa, segment.end)
    for lower, upper in pairwise(segments):
        if lower.end > upper.gpa:
            raise ConfigError(f"the kernel {file.path} has overlapping segments at {lower.gpa:#x} and {upper.gpa:#x}")
    if not any(segment.gpa <= entry < segment.gpa + segment.file_size for segment in segments):
        raise ConfigError(f"the kernel {file.path} has its entry at {entry:#x}, which is in none of its segments")


def _parse(file: RegularFile) -> tuple[int, str, list[Segment]]:
    """The entry, its boot protocol, and the PT_LOAD segments that have a size in memory, by ascending gpa."""
    if file.size_bytes < HEADER_BYTES:
        raise file.truncated(HEADER_BYTES)
    with os.fdopen(os.dup(file.fd), "rb") as stream:
        try:
            elf = ELFFile(stream)
            _check_header(file, elf)
            headers = [
                struct_parse(elf.structs.Elf_Phdr, stream, elf["e_phoff"] + index * PROGRAM_HEADER_BYTES)
                for index in range(elf["e_phnum"])
            ]
        except ConfigError:
            raise
        except Exception as error:
            # The library meets damage with its own errors and with plain ones of many kinds: the file is to blame for all.
            why = f": {error}" if str(error) else ""
            raise ConfigError(f"the kernel {file.path} is a damaged ELF file{why}") from None
    segments = [
        Segment(header["p_offset"], header["p_paddr"], header["p_filesz"], header["p_memsz"])
        for header in headers
        if header["p_type"] == "PT_LOAD" and (header["p_memsz"] or header["p_filesz"])
    ]
    segments.sort(key=lambda segment: segment.gpa)
    for header in headers:
        if header["p_type"] == "PT_NOTE":
            notes = file.read(min(header["p_filesz"], NOTES_MAX_BYTES), header["p_offset"])
            if (pvh_entry := find_pvh_entry(notes, 8 if header["p_align"] == 8 else 4)) is not None:
                return pvh_entry, PVH, segments
    return elf["e_entry"], LINUX_64, segments


def find_pvh_entry(notes: bytes, alignment: int) -> int | None:
    """The entry (a gpa) out of a PT_NOTE segment, whose descriptions lie on multiples of `alignment`; None without one."""
    offset = 0
    while offset + NOTE_HEADER.size <= len(notes):
        name_size, size, kind = NOTE_HEADER.unpack_from(notes, offset)
        name_start = offset + NOTE_HEADER.size
        start = offset + _padded(NOTE_HEADER.size + name_size, alignment)
        # The description is an address of the kernel's own width, of which 32 bits count.
        if kind == PVH_NOTE_TYPE and notes[name_start : name_start + name_size] == PVH_NOTE_NAME and size in (4, 8):
            return int.from_bytes(notes[start : start + size], "little") if start + size <= len(notes) else None
        offset = start + _padded(size, alignment)
    return None


def _padded(size: int, alignment: int) -> int:
    return size + -size % alignment


def _check_header(file: RegularFile, elf: ELFFile) -> None:
    is_x86_64 = elf.elfclass == 64 and elf.little_endian and elf["e_machine"] == "EM_X86_64"
    if not is_x86_64:
        order = "little" if elf.little_endian else "big"
        raise ConfigError(
            f"the kernel {file.path} is a {elf.elfclass}-bit {order}-endian ELF file for {_plain(elf['e_machine'])}; "
            f"a 64-bit one for x86-64 is needed"
        )
    if elf["e_type"] != "ET_EXEC":
        raise ConfigError(
            f"the kernel {file.path} is an ELF file of type {_plain(elf['e_type'])}; an executable (EXEC) is needed"
        )
    if elf["e_phnum"] > PROGRAM_HEADERS_MAX or (elf["e_phnum"] and elf["e_phentsize"] != PROGRAM_HEADER_BYTES):
        raise ConfigError(
            f"the kernel {file.path} has {elf['e_phnum']} program headers of {elf['e_phentsize']} bytes; "
            f"at most {PROGRAM_HEADERS_MAX} of {PROGRAM_HEADER_BYTES} are expected"
        )
    end = elf["e_phoff"] + elf["e_phnum"] * PROGRAM_HEADER_BYTES
    if end > file.size_bytes:
        raise file.truncated(end)


def _plain(value: object) -> str:
    """EM_ARM as ARM; a value that the library has no name for stays a number."""
    return str(value).partition("_")[2] or str(value)


def _clear(view: memoryview) -> None:
    """Zero all of `view`, without building as many zeros first."""
    for offset in range(0, len(view), len(ZEROS)):
        piece = view[offset : offset + len(ZEROS)]
        piece[:] = ZEROS[: len(piece)]
