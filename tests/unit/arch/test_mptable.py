"""The MP table, read back by a walker written from the MP specification 1.4, the way Linux searches for it."""

from __future__ import annotations

import struct

import pytest
from support.guest_ram import guest_ram

from vmservice.acpi import devices_aml
from vmservice.arch.x86_64 import layout
from vmservice.arch.x86_64.acpi_tables import write_tables
from vmservice.arch.x86_64.boot_params import E820_RESERVED, e820
from vmservice.arch.x86_64.mptable import write_mptable
from vmservice.errors import InvalidArgument
from vmservice.memory.guest_memory import GuestMemory

# Where arch/x86/kernel/mpparse.c looks: the first KiB, the last of 640, the BIOS area.
SEARCHED = ((0, 0x400), (639 * 0x400, 0x400), (0xF0000, 0x10000))
ENTRY_SIZES = {0: 20, 1: 8, 2: 8, 3: 8, 4: 8}
PROCESSOR, BUS, IOAPIC, INTERRUPT, LOCAL_INTERRUPT = range(5)


def find_floating_pointer(memory: GuestMemory) -> int:
    for start, size in SEARCHED:
        for gpa in range(start, start + size, 16):
            data = memory.read(gpa, 16)
            if data[:4] == b"_MP_" and data[8] == 1 and sum(data) & 0xFF == 0 and data[9] in (1, 4):
                return gpa
    raise AssertionError("no floating pointer where an OS looks")


def read_table(memory: GuestMemory) -> tuple[int, bytes, list[bytes]]:
    """(gpa, the whole table, its entries)."""
    pointer = memory.read(find_floating_pointer(memory), 16)
    assert pointer[11:] == bytes(5), "no default configuration, virtual wire mode"
    gpa = int.from_bytes(pointer[4:8], "little")
    assert memory.read(gpa, 4) == b"PCMP"
    size = struct.unpack("<H", memory.read(gpa + 4, 2))[0]
    table = memory.read(gpa, size)
    assert sum(table) & 0xFF == 0
    assert table[6] == 4
    entries, rest = [], table[44:]
    while rest:
        entry_size = ENTRY_SIZES[rest[0]]
        assert len(rest) >= entry_size, "an entry runs past the table"
        entries.append(rest[:entry_size])
        rest = rest[entry_size:]
    assert struct.unpack_from("<H", table, 34)[0] == len(entries)
    assert [entry[0] for entry in entries] == sorted(entry[0] for entry in entries), "in the order of their types"
    return gpa, table, entries


@pytest.mark.parametrize("vcpus", [1, 4, 40, 41, 254])
def test_table_tells_every_vcpu_and_leaves_acpi_alone(vcpus: int) -> None:
    """Cloud Hypervisor (December 2019) had the table at 639 KiB: with 41 vCPUs it ran over the RSDP at 640 KiB."""
    memory = guest_ram()
    write_tables(memory, vcpus=vcpus, max_vcpus=vcpus, dsdt_aml=devices_aml.dsdt([]))
    acpi_size = layout.ACPI_AREA_END - layout.ACPI_AREA
    acpi = memory.read(layout.ACPI_AREA, acpi_size)
    write_mptable(memory, vcpus)
    assert memory.read(layout.ACPI_AREA, acpi_size) == acpi

    gpa, table, entries = read_table(memory)
    processors = [entry for entry in entries if entry[0] == PROCESSOR]
    assert [entry[1] for entry in processors] == list(range(vcpus)), "APIC ids"
    assert [entry[3] for entry in processors] == [3] + [1] * (vcpus - 1), "enabled, the first the boot processor"
    assert {entry[2] for entry in processors} == {0x14}
    assert {struct.unpack_from("<II", entry, 4) for entry in processors} == {(0x600, 0x201)}
    assert struct.unpack_from("<I", table, 36) == (0xFEE00000,)
    reserved = [(start, start + size) for start, size, kind in e820(memory) if kind == E820_RESERVED]
    assert any(start <= gpa - 16 and gpa + len(table) <= end for start, end in reserved)
    assert gpa + len(table) <= layout.WARM_RESET_VECTOR
    memory.close()


def test_interrupts() -> None:
    memory = guest_ram()
    write_mptable(memory, 2)
    _, _, entries = read_table(memory)
    assert [entry for entry in entries if entry[0] == BUS] == [b"\x01\x00ISA   "]
    assert [entry for entry in entries if entry[0] == IOAPIC] == [struct.pack("<BBBBI", 2, 0, 0x14, 1, 0xFEC00000)]
    interrupts = [struct.unpack("<BBHBBBB", entry) for entry in entries if entry[0] == INTERRUPT]
    assert interrupts == [(3, 0, 0, 0, irq, 0, irq) for irq in range(16)]
    local = [struct.unpack("<BBHBBBB", entry) for entry in entries if entry[0] == LOCAL_INTERRUPT]
    assert local == [(4, 3, 0, 0, 0, 0, 0), (4, 1, 0, 0, 0, 0xFF, 1)]
    memory.close()


def test_floating_pointer_checksum_and_place() -> None:
    memory = guest_ram()
    write_mptable(memory, 1)
    assert find_floating_pointer(memory) == layout.MPTABLE
    assert memory.read(layout.MPTABLE + 4, 6) == struct.pack("<IBB", layout.MPTABLE + 16, 1, 4)
    memory.close()


@pytest.mark.parametrize("vcpus", [0, 255])
def test_count_out_of_range(vcpus: int) -> None:
    memory = guest_ram()
    with pytest.raises(InvalidArgument, match=f"{vcpus} vCPUs cannot be made: 1 to 254"):
        write_mptable(memory, vcpus)
    assert memory.read(layout.MPTABLE, 64) == bytes(64)
    memory.close()
