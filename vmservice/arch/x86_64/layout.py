"""Where everything lies for the guest: every guest physical address, port and GSI of the machine, named once.

Low memory (gpa), below 640 KiB RAM for the guest once it has left its boot data behind:

    0x0000_0500  GDT, then the (empty) IDT           0x000e_0000  ACPI: RSDP and tables     e820: ACPI
    0x0000_6000  PVH start info, module list
    0x0000_7000  zero page, or PVH memory map        0x000f_0000  MP table                  e820: reserved
    0x0000_8000  boot stack, grows down from 0x8ff0  0x000f_2000  SMBIOS                    e820: reserved
    0x0000_9000  page tables, three pages            0x000f_fff0  what a warm reset runs    e820: reserved
    0x0002_0000  command line                        0x0010_0000  high RAM: the kernel

With a firmware image instead of a kernel nothing of this is written: 0xe0000 to 1 MiB is then the firmware's shadow.
"""

from __future__ import annotations

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

PAGE_SIZE = 4 * KIB

# --- boot data in low RAM -----------------------------------------------------------------------------------------------
LOW_RAM_END = 640 * KIB

BOOT_GDT = 0x500
BOOT_IDT = 0x520

# With the PVH entry in place of the zero page.
PVH_START_INFO = 0x6000
PVH_MODULES = 0x6040
PVH_MEMMAP = 0x7000
PVH_MEMMAP_MAX_SIZE = PAGE_SIZE

ZERO_PAGE = 0x7000
BOOT_STACK_POINTER = 0x8FF0

PML4 = 0x9000
PDPT = 0xA000
PAGE_DIRECTORY = 0xB000

CMDLINE = 0x20000
CMDLINE_MAX_SIZE = 64 * KIB

# --- the BIOS area, 640 KiB to 1 MiB -------------------------------------------------------------------------------------
# ACPI 6.5 §5.2.5.1: the BIOS area that an OS searches for the RSDP, on 16-byte boundaries, begins at 0xe0000. A kernel that
# does not know boot_params.acpi_rsdp_addr still finds it there. 64 KiB: the MADT of 254 vCPUs takes 2 KiB, a DSDT that
# declares each of them for hotplug about 25 KiB.
ACPI_AREA = 0xE0000
ACPI_AREA_END = 0xF0000
RSDP = ACPI_AREA

# Intel MP specification 1.4 §4: an OS searches the BIOS read-only memory 0xf0000-0xfffff for the floating pointer. The last
# KiB of base memory, the other place, ends after 40 vCPUs (20 bytes each), and what is behind it belongs to ACPI.
MPTABLE = 0xF0000

# SMBIOS 3.3 §5.2: without EFI an OS searches 0xf0000-0xfffff, on 16-byte boundaries, for the entry point. The MP table of 254
# vCPUs ends below 0xf1600. The tables lie behind the entry point.
SMBIOS_ENTRY = 0xF2000
SMBIOS_TABLES = 0xF2020

# F000:FFF0, where a PC's BIOS begins: a warm reset through real mode jumps here, into memory.
WARM_RESET_VECTOR = 0xFFFF0
BIOS_AREA_END = 1 * MIB

# --- RAM and the hole below 4 GiB ----------------------------------------------------------------------------------------
HIGH_RAM = 1 * MIB

HOLE_32BIT = 0xC000_0000
RAM_64BIT_START = 4 * GIB

PCI_MMIO_32BIT = HOLE_32BIT
PCI_MMIO_32BIT_SIZE = 640 * MIB
PCI_ECAM = 0xE800_0000
PCI_ECAM_SIZE = 256 * MIB

IOAPIC_BASE = 0xFEC0_0000
IOAPIC_LEN = 0x1000
# What its ID register reads after reset, so the MP table and the MADT say the same.
IOAPIC_ID = 0
IOAPIC_PINS = 24

LAPIC_BASE = 0xFEE0_0000
# Messages go to addresses in this window too (Intel SDM vol. 3, 11.11.1).
LAPIC_LEN = 1 * MIB

# A firmware's last byte is the last byte below 4 GiB; up to 16 MiB of it leave all addresses below 0xff000000 free.
FIRMWARE_END = 4 * GIB
FIRMWARE_MAX_SIZE = 16 * MIB
FIRMWARE_SHADOW_SIZE = 128 * KIB

# KVM on Intel hosts keeps one page (identity map) and three pages (TSS) in the guest's address space for vCPUs in real mode
# without paging. Cloud Hypervisor (December 2019) put them at 0xfffbd000, inside any firmware of more than 268 KiB, where
# KVM would answer for the firmware's code. These four pages lie behind the MSI window 0xfee00000-0xfeefffff and end where
# the largest firmware begins; e820 reserves them.
IDENTITY_MAP_ADDRESS = 0xFEFF_C000
TSS_ADDRESS = 0xFEFF_D000
KVM_PAGES_SIZE = 4 * PAGE_SIZE

# --- ports and GSIs ------------------------------------------------------------------------------------------------------
COM1_BASE = 0x3F8
COM1_LEN = 8
COM1_GSI = 4

I8042_BASE = 0x61
I8042_LEN = 4

CMOS_BASE = 0x70
CMOS_LEN = 2

# The FADT's sleep control, sleep status and reset register are all this one byte.
POWER_PORT = 0x600
POWER_LEN = 1

# PCI configuration mechanism #1 (PCI Local Bus 3.0 §3.2.2.3.2)
PCI_CONFIG_PORT = 0xCF8
PCI_CONFIG_LEN = 8

# Where QEMU has it; the DSDT says so all the same.
PVPANIC_PORT = 0x505
PVPANIC_LEN = 1

WATCHDOG_BASE = 0x620
WATCHDOG_LEN = 8

CPU_HOTPLUG_BASE = 0xCD8
CPU_HOTPLUG_LEN = 0xC

GED_PORT = 0xB000
GED_LEN = 1
GED_GSI = 5

# --- limits --------------------------------------------------------------------------------------------------------------
# xAPIC ids are one byte and 255 is the broadcast (Intel SDM vol. 3A, physical destination mode); 254 vCPUs have ids 0 to 253.
MAX_VCPUS = 254


def ram_ranges(size_bytes: int) -> list[tuple[int, int]]:
    """The RAM of a guest with `size_bytes` as (gpa, size in bytes), ascending: one range, or two round the hole below 4 GiB."""
    if size_bytes <= HOLE_32BIT:
        return [(0, size_bytes)]
    return [(0, HOLE_32BIT), (RAM_64BIT_START, size_bytes - HOLE_32BIT)]
