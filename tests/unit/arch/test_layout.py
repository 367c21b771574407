"""The guest's address map: nothing overlaps, and RAM keeps clear of the hole."""

from __future__ import annotations

from itertools import pairwise

import pytest

from vmservice.arch.x86_64 import layout
from vmservice.arch.x86_64.layout import GIB, MIB


@pytest.mark.parametrize(
    ("size", "ranges"),
    [
        (128 * MIB, [(0, 128 * MIB)]),
        (3 * GIB - 1 * MIB, [(0, 3 * GIB - 1 * MIB)]),
        (3 * GIB, [(0, 3 * GIB)]),
        (3 * GIB + 1 * MIB, [(0, 3 * GIB), (4 * GIB, 1 * MIB)]),
        (64 * GIB, [(0, 3 * GIB), (4 * GIB, 61 * GIB)]),
    ],
)
def test_ram_goes_round_the_hole(size: int, ranges: list[tuple[int, int]]) -> None:
    assert layout.ram_ranges(size) == ranges


def assert_disjoint(areas: dict[str, tuple[int, int]], end: int) -> None:
    ordered = sorted((start, start + size, name) for name, (start, size) in areas.items())
    for (_, first_end, first), (second_start, _, second) in pairwise(ordered):
        assert first_end <= second_start, f"{first} reaches into {second}"
    assert ordered[-1][1] <= end


def test_boot_data_does_not_overlap() -> None:
    stack_size = 0xFF0
    areas = {
        "GDT": (layout.BOOT_GDT, 32),
        "IDT": (layout.BOOT_IDT, 8),
        "PVH start info": (layout.PVH_START_INFO, 56),
        "PVH module list": (layout.PVH_MODULES, 32),
        "zero page": (layout.ZERO_PAGE, layout.PAGE_SIZE),
        "stack": (layout.BOOT_STACK_POINTER - stack_size, stack_size),
        "PML4": (layout.PML4, layout.PAGE_SIZE),
        "PDPT": (layout.PDPT, layout.PAGE_SIZE),
        "page directory": (layout.PAGE_DIRECTORY, layout.PAGE_SIZE),
        "command line": (layout.CMDLINE, layout.CMDLINE_MAX_SIZE),
    }
    assert_disjoint(areas, layout.LOW_RAM_END)


def test_devices_below_4_gib_do_not_overlap() -> None:
    """KVM's own pages among them: the addresses of Cloud Hypervisor (December 2019) lay inside a firmware of over 268 KiB."""
    areas = {
        "PCI": (layout.PCI_MMIO_32BIT, layout.PCI_MMIO_32BIT_SIZE),
        "ECAM": (layout.PCI_ECAM, layout.PCI_ECAM_SIZE),
        "IOAPIC": (layout.IOAPIC_BASE, layout.IOAPIC_LEN),
        "LAPIC and MSI": (layout.LAPIC_BASE, 0x100000),
        "identity map": (layout.IDENTITY_MAP_ADDRESS, layout.PAGE_SIZE),
        "TSS": (layout.TSS_ADDRESS, 3 * layout.PAGE_SIZE),
        "firmware": (layout.FIRMWARE_END - layout.FIRMWARE_MAX_SIZE, layout.FIRMWARE_MAX_SIZE),
    }
    assert_disjoint(areas, 4 * GIB)
    assert min(start for start, _ in areas.values()) >= layout.HOLE_32BIT
    assert layout.IDENTITY_MAP_ADDRESS + layout.KVM_PAGES_SIZE == layout.TSS_ADDRESS + 3 * layout.PAGE_SIZE


def test_ports_do_not_overlap() -> None:
    areas = {
        "i8042": (layout.I8042_BASE, layout.I8042_LEN),
        "CMOS": (layout.CMOS_BASE, layout.CMOS_LEN),
        "COM1": (layout.COM1_BASE, layout.COM1_LEN),
        "power": (layout.POWER_PORT, layout.POWER_LEN),
        "CPU hotplug": (layout.CPU_HOTPLUG_BASE, layout.CPU_HOTPLUG_LEN),
        "GED": (layout.GED_PORT, layout.GED_LEN),
    }
    assert_disjoint(areas, 0x10000)
