"""The page tables a kernel starts with: the first GiB identity-mapped in 2 MiB pages (Intel SDM vol. 3A, 4-level paging)."""

from __future__ import annotations

import struct

from vmservice.arch.x86_64 import layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.memory.guest_memory import GuestMemory

_ENTRIES = 512
_PRESENT = 1 << 0
_WRITABLE = 1 << 1
_PAGE_SIZE = 1 << 7  # in a page directory entry: it maps 2 MiB itself


def write_page_tables(memory: GuestMemory) -> None:
    """PML4 (for CR3), PDPT and one page directory, in three whole pages.

    One GiB is enough: the 64-bit boot protocol (Documentation/arch/x86/boot.rst) asks for the kernel with its init_size, the
    zero page and the command line; a kernel maps the rest of memory, an initramfs included, itself.
    """
    table = struct.Struct(f"<{_ENTRIES}Q")
    empty = [0] * (_ENTRIES - 1)
    memory.write(layout.PML4, table.pack(layout.PDPT | _PRESENT | _WRITABLE, *empty))
    memory.write(layout.PDPT, table.pack(layout.PAGE_DIRECTORY | _PRESENT | _WRITABLE, *empty))
    large_pages = (index << 21 | _PRESENT | _WRITABLE | _PAGE_SIZE for index in range(_ENTRIES))
    memory.write(layout.PAGE_DIRECTORY, table.pack(*large_pages))
