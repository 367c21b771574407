"""What is written down in two places because neither may import the other: both must say the same."""

from __future__ import annotations

from vmservice.acpi import cpu_aml, devices_aml, tables
from vmservice.arch.x86_64 import boot_params, layout
from vmservice.boot import bzimage
from vmservice.config import core
from vmservice.devices import ged, ioapic, power


def test_what_the_tables_tell_the_guest_is_what_the_devices_take() -> None:
    assert tables.RESET_VALUE == power.RESET_VALUE
    assert tables.SLEEP_TYPE_S5 == power.SLP_TYP_S5
    assert (cpu_aml.EVENT_CPU, devices_aml.EVENT_POWER_BUTTON) == (ged.CPU, ged.POWER_BUTTON)


def test_the_layout_is_what_the_devices_and_the_configuration_have() -> None:
    assert layout.IOAPIC_PINS == ioapic.PINS
    assert ioapic.MSI_ADDRESS == layout.LAPIC_BASE
    assert layout.MAX_VCPUS == core.VCPUS_MAX


def test_the_setup_header_is_where_the_file_has_it() -> None:
    assert (boot_params.SETUP_HEADER, boot_params.SETUP_HEADER_END) == (bzimage.HEADER_START, bzimage.HEADER_MAX_END)
    assert (boot_params.HEADER_MAGIC, boot_params.BOOT_FLAG) == (bzimage.MAGIC_OFFSET, bzimage.BOOT_FLAG)
    assert (boot_params.KERNEL_ALIGNMENT, boot_params.CMDLINE_SIZE) == (bzimage.KERNEL_ALIGNMENT, bzimage.CMDLINE_SIZE)
