"""The GDT a kernel starts with, and its descriptors as segment registers hold them (Intel SDM vol. 3A, segment descriptors).

One for each boot protocol: `LONG_MODE` and, for PVH, `PROTECTED_MODE`; CODE, DATA and TSS index both.
"""

from __future__ import annotations

import struct

from vmservice.arch.x86_64 import layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmservice.memory.guest_memory import GuestMemory

# 64-bit code, execute and read; flat data, read and write; a busy 64-bit TSS, which IA-32e mode wants in TR.
LONG_MODE = (0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x008F8B000000FFFF)
# 32-bit code, the same data, and a busy 32-bit TSS of 0x68 bytes: what the PVH entry finds loaded (Xen, docs/misc/pvh.pandoc).
PROTECTED_MODE = (0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00008B0000000067)
NULL, CODE, DATA, TSS = range(len(LONG_MODE))

GDT_LIMIT = 8 * len(LONG_MODE) - 1
# One empty gate: an exception before the kernel has its own IDT is a triple fault, as on hardware.
IDT_LIMIT = 7


class Segment:
    """A segment register's visible and hidden part, its fields named as in struct kvm_segment <asm/kvm.h>."""

    __slots__ = ("avl", "base", "db", "dpl", "g", "l", "limit", "present", "s", "selector", "type", "unusable")

    def __init__(self, selector: int, descriptor: int) -> None:
        """`selector` as loaded (index * 8), `descriptor` the eight bytes of its GDT entry as one integer."""
        self.selector = selector
        self.base = descriptor >> 16 & 0xFFFFFF | descriptor >> 56 << 24
        self.type = descriptor >> 40 & 0xF
        self.s = descriptor >> 44 & 1
        self.dpl = descriptor >> 45 & 3
        self.present = descriptor >> 47 & 1
        self.avl = descriptor >> 52 & 1
        self.l = descriptor >> 53 & 1
        self.db = descriptor >> 54 & 1
        self.g = descriptor >> 55 & 1
        limit = descriptor & 0xFFFF | descriptor >> 32 & 0xF0000
        # The hidden limit is in bytes, as a VMCS holds it (SDM vol. 3C, checks on guest segment registers).
        self.limit = limit << 12 | 0xFFF if self.g else limit
        self.unusable = 0 if self.present else 1


def segment(table: Sequence[int], index: int) -> Segment:
    """The segment that `table[index]` describes: CODE, DATA or TSS."""
    return Segment(index * 8, table[index])


def write_gdt(memory: GuestMemory, table: Sequence[int]) -> None:
    """`table` at BOOT_GDT and an empty IDT at BOOT_IDT; their limits are GDT_LIMIT and IDT_LIMIT."""
    memory.write(layout.BOOT_GDT, struct.pack(f"<{len(table)}Q", *table))
    memory.write(layout.BOOT_IDT, bytes(IDT_LIMIT + 1))
