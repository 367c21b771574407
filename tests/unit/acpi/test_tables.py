"""ACPI tables, field by field at the offsets of ACPI 6.5 §5.2."""

from __future__ import annotations

import struct

import pytest
from support.acpi_walk import madt_entries

from vmservice.acpi import devices_aml, tables
from vmservice.devices import ged, power
from vmservice.devices.power import PowerRegister

LAPIC, IOAPIC, OVERRIDE, NMI = 0, 1, 2, 4


def u16(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 2], "little")


def u32(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "little")


def make_madt(vcpus: int, max_vcpus: int) -> bytes:
    return tables.madt(vcpus, max_vcpus, lapic_base=0xFEE00000, ioapic_id=0, ioapic_base=0xFEC00000, edge_irqs=(4, 5))


def test_header() -> None:
    table = tables.table(b"TEST", 3, b"body")
    assert table[:9] == b"TEST\x28\x00\x00\x00\x03"
    assert table[10:] == b"VMSVC VMSERVIC\x01\x00\x00\x00VMSV\x01\x00\x00\x00body"
    assert sum(table) & 0xFF == 0


def test_rsdp() -> None:
    rsdp = tables.rsdp(0x1_2345_6789)
    assert (len(rsdp), rsdp[:8], rsdp[9:15], rsdp[15]) == (36, b"RSD PTR ", b"VMSVC ", 2)
    assert struct.unpack_from("<IIQ", rsdp, 16) == (0, 36, 0x1_2345_6789)
    assert rsdp[33:] == bytes(3)
    assert sum(rsdp[:20]) & 0xFF == 0
    assert sum(rsdp) & 0xFF == 0


def test_xsdt_lists_tables_in_64_bits_and_its_oem_table_id_is_the_fadts() -> None:
    xsdt = tables.xsdt([0xE0040, 1 << 33])
    assert xsdt[36:] == struct.pack("<QQ", 0xE0040, 1 << 33)
    assert xsdt[8] == 1
    assert xsdt[16:24] == tables.fadt(0, 0)[16:24]


def test_fadt_is_hardware_reduced() -> None:
    fadt = tables.fadt(0xE0040, 0x600)
    assert (len(fadt), fadt[:4], fadt[8], fadt[131]) == (276, b"FACP", 6, 5)
    flags = u32(fadt, 112)
    assert flags >> 20 & 1, "HW_REDUCED_ACPI"
    assert flags >> 10 & 1, "RESET_REG_SUP"
    assert flags >> 4 & 1 and flags >> 5 & 1, "no buttons in fixed hardware: the one there is belongs to the GED"
    assert flags & 1, "WBINVD"
    assert int.from_bytes(fadt[140:148], "little") == 0xE0040


def test_fadt_puts_sleep_and_reset_on_one_byte_port() -> None:
    fadt = tables.fadt(0xE0040, 0x600)
    port = bytes((1, 8, 0, 1)) + struct.pack("<Q", 0x600)  # System I/O, 8 bits, byte access
    assert fadt[116:128] == fadt[244:256] == fadt[256:268] == port
    assert fadt[128] == 1


def test_fadt_names_no_hardware_that_is_not_there() -> None:
    """No SCI, SMI, FACS, PM1, PM2, GPE blocks and no PM timer: offsets 36 to 108 (profile apart) and 148 to 243 are zero."""
    fadt = tables.fadt(0xE0040, 0x600)
    assert fadt[36:109] == bytes(73)
    assert fadt[132:140] == bytes(8)
    assert fadt[148:244] == bytes(96)


def test_fadt_boot_architecture() -> None:
    """Linux probes no keyboard controller without bit 1, no VGA with bit 2; it keeps RTC without bit 5, MSI without bit 3."""
    boot_arch = u16(tables.fadt(0xE0040, 0x600), 109)
    assert not boot_arch >> 1 & 1, "8042"
    assert boot_arch >> 2 & 1, "VGA not present"
    assert not boot_arch >> 3 & 1, "MSI not supported"
    assert not boot_arch >> 5 & 1, "CMOS RTC not present"


def test_power_register_takes_what_the_tables_say() -> None:
    """The FADT's reset value and the DSDT's sleep type, written as an OS does (§4.8.3.7), reach the register's two actions."""
    called: list[str] = []
    register = PowerRegister(lambda: called.append("sleep"), lambda: called.append("reset"))
    register.write(0, bytes((tables.RESET_VALUE,)))
    register.write(0, bytes((1 << 7,)))  # what Linux writes to clear WAK_STS, the status being the same port
    register.write(0, bytes((tables.SLEEP_TYPE_S5 << 2 | 1 << 5,)))
    assert called == ["reset", "sleep"]
    assert power.S5_VALUE == 0x34


def test_events_of_dsdt_and_device_agree() -> None:
    assert devices_aml.EVENT_POWER_BUTTON == ged.POWER_BUTTON


def test_madt_header_and_interrupts() -> None:
    madt = make_madt(1, 1)
    assert (madt[:4], u32(madt, 36), u32(madt, 40)) == (b"APIC", 0xFEE00000, 0)
    entries = madt_entries(madt)
    assert [entry for entry in entries if entry[0] == IOAPIC] == [struct.pack("<BBBBII", 1, 12, 0, 0, 0xFEC00000, 0)]
    assert [entry for entry in entries if entry[0] == NMI] == [bytes((4, 6, 0xFF, 0, 0, 1))]


def test_madt_says_that_com1_and_ged_are_edge_triggered() -> None:
    """Overrides 4 → 4 and 5 → 5: ISA bus, active high (01), edge (01)."""
    overrides = [entry for entry in madt_entries(make_madt(1, 1)) if entry[0] == OVERRIDE]
    assert overrides == [struct.pack("<BBBBIH", 2, 10, 0, irq, irq, 0b0101) for irq in (4, 5)]


@pytest.mark.parametrize(("vcpus", "max_vcpus"), [(1, 1), (2, 4), (4, 4), (1, 254), (254, 254)])
def test_madt_has_every_possible_vcpu_once(vcpus: int, max_vcpus: int) -> None:
    lapics = [entry for entry in madt_entries(make_madt(vcpus, max_vcpus)) if entry[0] == LAPIC]
    assert [(entry[2], entry[3]) for entry in lapics] == [(index, index) for index in range(max_vcpus)]
    assert [u32(entry, 4) & 1 for entry in lapics] == [1] * vcpus + [0] * (max_vcpus - vcpus)


def test_madt_marks_absent_vcpus_online_capable() -> None:
    """Cloud Hypervisor (December 2019) gave them flags 0 under a FADT 6.3: from there on that means never to be onlined."""
    lapics = [entry for entry in madt_entries(make_madt(2, 4)) if entry[0] == LAPIC]
    assert [u32(entry, 4) for entry in lapics] == [1, 1, 2, 2]
    fadt = tables.fadt(0, 0)
    assert (fadt[8], fadt[131]) >= (6, 3), "the bit has a meaning only from FADT 6.3 on"
