"""The ACPI tables at their place: found as an OS finds them, inside their area, and reserved."""

from __future__ import annotations

from itertools import pairwise

import pytest
from support.acpi_walk import madt_entries, walk
from support.guest_ram import guest_ram

from vmservice.acpi import aml, devices_aml
from vmservice.arch.x86_64 import layout
from vmservice.arch.x86_64.acpi_tables import write_tables
from vmservice.arch.x86_64.boot_params import E820_ACPI, e820
from vmservice.errors import InvalidArgument, VmmError

AREA_SIZE = layout.ACPI_AREA_END - layout.ACPI_AREA


@pytest.mark.parametrize(("vcpus", "max_vcpus"), [(1, 1), (4, 8), (254, 254)])
def test_tables_are_found_disjoint_and_reserved(vcpus: int, max_vcpus: int) -> None:
    memory = guest_ram()
    rsdp = write_tables(memory, vcpus=vcpus, max_vcpus=max_vcpus, dsdt_aml=devices_aml.dsdt([devices_aml.power_button()]))
    tables = walk(memory, rsdp)
    assert set(tables) == {"RSDP", "XSDT", "FACP", "APIC", "DSDT"}
    extents = sorted((gpa, gpa + len(data)) for gpa, data in tables.values())
    assert all(end <= start for (_, end), (start, _) in pairwise(extents))
    acpi = [(start, start + size) for start, size, kind in e820(memory) if kind == E820_ACPI]
    assert len(acpi) == 1 and acpi[0][0] <= extents[0][0] and extents[-1][1] <= acpi[0][1]
    lapics = [entry for entry in madt_entries(tables["APIC"][1]) if entry[0] == 0]
    assert len(lapics) == max_vcpus
    memory.close()


def test_rsdp_is_where_an_os_without_our_pointer_searches() -> None:
    """ACPI 6.5 §5.2.5.1: 0xe0000 to 0xfffff, on 16-byte boundaries."""
    memory = guest_ram()
    rsdp = write_tables(memory, vcpus=1, max_vcpus=1, dsdt_aml=devices_aml.dsdt([]))
    found = [gpa for gpa in range(0xE0000, 0x100000, 16) if memory.read(gpa, 8) == b"RSD PTR "]
    assert found == [rsdp]
    memory.close()


def test_tables_that_do_not_fit_are_refused_and_not_written() -> None:
    memory = guest_ram()
    too_large = aml.name("BLOB", aml.buffer(bytes(AREA_SIZE)))
    with pytest.raises(VmmError, match=rf"bytes: there is room for {AREA_SIZE}$"):
        write_tables(memory, vcpus=1, max_vcpus=1, dsdt_aml=too_large)
    assert memory.read(layout.ACPI_AREA, AREA_SIZE) == bytes(AREA_SIZE)
    memory.close()


def test_last_byte_of_the_area_may_be_used_and_no_more() -> None:
    memory = guest_ram()
    smallest = write_tables(memory, vcpus=1, max_vcpus=1, dsdt_aml=b"")
    tables = walk(memory, smallest)
    xsdt_gpa, xsdt = tables["XSDT"]
    room = (layout.ACPI_AREA_END - xsdt_gpa - len(xsdt)) // 16 * 16
    padding = room + (-(tables["DSDT"][0] + 36)) % 16
    write_tables(memory, vcpus=1, max_vcpus=1, dsdt_aml=bytes(padding))
    assert memory.read(layout.ACPI_AREA_END, 16) == bytes(16)
    with pytest.raises(VmmError, match="room"):
        write_tables(memory, vcpus=1, max_vcpus=1, dsdt_aml=bytes(padding + 1))
    memory.close()


@pytest.mark.parametrize(("vcpus", "max_vcpus"), [(0, 1), (2, 1), (1, 255)])
def test_counts_out_of_range(vcpus: int, max_vcpus: int) -> None:
    memory = guest_ram()
    with pytest.raises(InvalidArgument, match=f"{vcpus} of {max_vcpus} vCPUs"):
        write_tables(memory, vcpus=vcpus, max_vcpus=max_vcpus, dsdt_aml=b"")
    memory.close()
