"""Guest memory for tests: real mappings, of which only the touched pages cost anything."""

from __future__ import annotations

import mmap

from vmservice.memory.guest_memory import GuestMemory, Region

MIB = 1 << 20
GIB = 1 << 30

_MAP_NORESERVE = 0x4000  # <asm-generic/mman.h>; mmap has it from Python 3.13 on


def guest_ram(*ranges: tuple[int, int]) -> GuestMemory:
    """Guest memory of the (gpa, size in bytes) ranges, zeroed; 2 MiB from 0 without any. The caller closes it."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    return GuestMemory([Region(gpa, mmap.mmap(-1, size, flags)) for gpa, size in ranges or ((0, 2 * MIB),)])
