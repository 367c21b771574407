"""What a kernel finds at its PVH entry: struct hvm_start_info and what it points to (Xen, public/arch-x86/hvm/start_info.h)."""

from __future__ import annotations

import struct

from vmservice.arch.x86_64 import layout
from vmservice.errors import VmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmservice.memory.guest_memory import GuestMemory

_MAGIC = 0x336EC578  # "xEn3", the first letter with its high bit set
_VERSION = 1  # the first with a memory map

# magic, version, flags, nr_modules, modlist_paddr, cmdline_paddr, rsdp_paddr, memmap_paddr, memmap_entries, reserved
_START_INFO = struct.Struct("<IIIIQQQQII")
# paddr, size, cmdline_paddr, reserved
_MODULE = struct.Struct("<QQQQ")
# addr, size, type, reserved; the types are those of e820
_MEMMAP_ENTRY = struct.Struct("<QQII")


def write_start_info(
    memory: GuestMemory, *, initramfs: tuple[int, int] | None, rsdp: int, address_map: Sequence[tuple[int, int, int]]
) -> None:
    """The start info at PVH_START_INFO, its module list and memory map; the command line is at CMDLINE.

    `initramfs` is (gpa, size in bytes), the only module. `rsdp` is the RSDP's gpa. `address_map` is what `boot_params.e820`
    returns.
    """
    memmap = b"".join(_MEMMAP_ENTRY.pack(*entry, 0) for entry in address_map)
    if len(memmap) > layout.PVH_MEMMAP_MAX_SIZE:
        most = layout.PVH_MEMMAP_MAX_SIZE // _MEMMAP_ENTRY.size
        raise VmmError(f"the guest's memory map has {len(address_map)} entries: there is room for {most}")
    start_info = _START_INFO.pack(
        _MAGIC,
        _VERSION,
        0,
        1 if initramfs is not None else 0,
        layout.PVH_MODULES if initramfs is not None else 0,
        layout.CMDLINE,
        rsdp,
        layout.PVH_MEMMAP,
        len(address_map),
        0,
    )
    memory.write(layout.PVH_START_INFO, start_info)
    if initramfs is not None:
        memory.write(layout.PVH_MODULES, _MODULE.pack(*initramfs, 0, 0))
    memory.write(layout.PVH_MEMMAP, memmap)
