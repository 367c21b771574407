"""The zero page: struct boot_params as a kernel finds it at its 64-bit entry (Documentation/arch/x86/{boot,zero-page}.rst)."""

from __future__ import annotations

import struct

from vmservice.arch.x86_64 import layout
from vmservice.errors import ConfigError, VmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.memory.guest_memory import GuestMemory

# --- offsets in struct boot_params <asm/bootparam.h> ---------------------------------------------------------------------
ACPI_RSDP_ADDR = 0x070
EXT_RAMDISK_IMAGE = 0x0C0  # its upper half; behind it that of the size
E820_ENTRIES = 0x1E8
SETUP_HEADER = 0x1F1
SETUP_HEADER_END = 0x290  # edd_mbr_sig_buffer, up to which the header may still grow
E820_TABLE = 0x2D0

BOOT_FLAG = 0x1FE
HEADER_MAGIC = 0x202
TYPE_OF_LOADER = 0x210
RAMDISK_IMAGE = 0x218  # and behind it the size
CMD_LINE_PTR = 0x228
KERNEL_ALIGNMENT = 0x230
CMDLINE_SIZE = 0x238

# --- values --------------------------------------------------------------------------------------------------------------
_BOOT_FLAG_VALUE = 0xAA55
_HEADER_MAGIC_VALUE = 0x53726448  # "HdrS"
_LOADER_UNDEFINED = 0xFF
_KERNEL_ALIGNMENT_VALUE = 16 * layout.MIB

E820_RAM = 1
E820_RESERVED = 2
E820_ACPI = 3
E820_MAX_ENTRIES = 128
_E820_ENTRY = struct.Struct("<QQI")


def write_zero_page(
    memory: GuestMemory,
    *,
    setup_header: bytes | None,
    cmdline_size: int,
    initramfs: tuple[int, int] | None,
    rsdp: int,
) -> None:
    """The zero page at ZERO_PAGE, whole: what is not set is 0, the sentinel (0x1ef) that vouches for the rest included.

    `setup_header` is a bzImage's from file offset 0x1f1, as long as it says itself; None for an ELF kernel, which has none.
    `cmdline_size` counts the bytes at CMDLINE without the terminating zero. `initramfs` is (gpa, size in bytes).
    `rsdp` is the RSDP's gpa, which saves the kernel its search.
    """
    page = bytearray(layout.PAGE_SIZE)
    if setup_header is None:
        struct.pack_into("<H", page, BOOT_FLAG, _BOOT_FLAG_VALUE)
        struct.pack_into("<I", page, HEADER_MAGIC, _HEADER_MAGIC_VALUE)
        struct.pack_into("<I", page, KERNEL_ALIGNMENT, _KERNEL_ALIGNMENT_VALUE)
    else:
        _copy_setup_header(page, setup_header)
    # A loader must write this, and one without a number of its own writes 0xff (boot.rst). Left at the file's 0, Linux takes
    # it that there was no boot loader and drops the initramfs (reserve_initrd() in arch/x86/kernel/setup.c).
    page[TYPE_OF_LOADER] = _LOADER_UNDEFINED
    struct.pack_into("<I", page, CMD_LINE_PTR, layout.CMDLINE)
    struct.pack_into("<I", page, CMDLINE_SIZE, cmdline_size)
    if initramfs is not None:
        gpa, size_bytes = initramfs
        struct.pack_into("<II", page, RAMDISK_IMAGE, gpa & 0xFFFFFFFF, size_bytes & 0xFFFFFFFF)
        struct.pack_into("<II", page, EXT_RAMDISK_IMAGE, gpa >> 32, size_bytes >> 32)
    struct.pack_into("<Q", page, ACPI_RSDP_ADDR, rsdp)
    _put_e820(page, e820(memory))
    memory.write(layout.ZERO_PAGE, page)


def e820(memory: GuestMemory) -> list[tuple[int, int, int]]:
    """The guest's address map as (gpa, size in bytes, type), ascending and disjoint: its RAM, and what it must leave alone.

    640 KiB to 1 MiB is no RAM for the guest even where memory is behind it: Linux takes video memory and the BIOS to be there.
    """
    entries = [
        (layout.ACPI_AREA, layout.ACPI_AREA_END - layout.ACPI_AREA, E820_ACPI),
        (layout.MPTABLE, layout.BIOS_AREA_END - layout.MPTABLE, E820_RESERVED),
        # Linux uses an ECAM only when the firmware has reserved it (arch/x86/pci/mmconfig-shared.c).
        (layout.PCI_ECAM, layout.PCI_ECAM_SIZE, E820_RESERVED),
        (layout.IDENTITY_MAP_ADDRESS, layout.KVM_PAGES_SIZE, E820_RESERVED),
    ]
    for region in (region for region in memory.regions if region.is_ram):
        low = (region.gpa, min(region.end, layout.LOW_RAM_END))
        high = (max(region.gpa, layout.HIGH_RAM), region.end)
        entries += [(start, end - start, E820_RAM) for start, end in (low, high) if start < end]
    return sorted(entries)


def _copy_setup_header(page: bytearray, setup_header: bytes) -> None:
    end = SETUP_HEADER + len(setup_header)
    if end > SETUP_HEADER_END:
        raise ConfigError(
            f"the kernel's setup header would end at {end:#x}: the boot protocol gives it room up to {SETUP_HEADER_END:#x}"
        )
    page[SETUP_HEADER:end] = setup_header


def _put_e820(page: bytearray, entries: list[tuple[int, int, int]]) -> None:
    if len(entries) > E820_MAX_ENTRIES:
        raise VmmError(f"the guest's memory map has {len(entries)} entries: the zero page has room for {E820_MAX_ENTRIES}")
    page[E820_ENTRIES] = len(entries)
    for index, entry in enumerate(entries):
        _E820_ENTRY.pack_into(page, E820_TABLE + index * _E820_ENTRY.size, *entry)
