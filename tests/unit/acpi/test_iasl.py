"""ACPICA's own tools take our tables apart and put them together again; ours must come out, without one remark."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.acpi_walk import walk
from support.guest_ram import guest_ram

from vmservice.acpi import aml, devices_aml, tables
from vmservice.acpi.wdat import wdat
from vmservice.arch.x86_64 import layout
from vmservice.arch.x86_64.acpi_tables import write_tables

pytestmark = pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl (acpica-tools) is not installed")

DEVICES = [
    devices_aml.com_port(1, layout.COM1_BASE, layout.COM1_GSI),
    devices_aml.real_time_clock(layout.CMOS_BASE),
    devices_aml.power_button(),
    devices_aml.pvpanic(layout.PVPANIC_PORT),
    devices_aml.generic_event_device(layout.GED_PORT, layout.GED_GSI, [devices_aml.power_button_pressed()]),
]

WDAT = wdat(
    control=0x620, status=0x621, feed=0x622, timeout=0x624, remaining=0x626, period_ms=100, count_min=1, count_max=0xFFFF
)

# What the five devices above are meant to be, in ASL.
DSDT_ASL = r"""
DefinitionBlock ("", "DSDT", 2, "VMSVC ", "VMSERVIC", 1)
{
    Scope (\_SB)
    {
        Device (COM1)
        {
            Name (_HID, EisaId ("PNP0501"))
            Name (_UID, One)
            Name (_CRS, ResourceTemplate ()
            {
                Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 4 }
                IO (Decode16, 0x03F8, 0x03F8, 1, 8)
            })
        }
        Device (RTC)
        {
            Name (_HID, EisaId ("PNP0B00"))
            Name (_CRS, ResourceTemplate () { IO (Decode16, 0x70, 0x70, 1, 2) })
        }
        Device (PWRB)
        {
            Name (_HID, EisaId ("PNP0C0C"))
            Name (_UID, Zero)
        }
        Device (PEVT)
        {
            Name (_HID, "QEMU0001")
            Name (_UID, Zero)
            Name (_CRS, ResourceTemplate () { IO (Decode16, 0x0505, 0x0505, 1, 1) })
        }
        Device (GED)
        {
            Name (_HID, "ACPI0013")
            Name (_UID, Zero)
            Name (_CRS, ResourceTemplate () { Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 5 } })
            OperationRegion (GEDR, SystemIO, 0xB000, One)
            Field (GEDR, ByteAcc, NoLock, WriteAsZeros) { GEVT, 8 }
            Method (_EVT, 1, Serialized)
            {
                Local0 = GEVT
                If (Local0 & 8) { Notify (\_SB.PWRB, 0x80) }
            }
        }
    }
    Name (\_S5, Package () { 5, Zero, Zero, Zero })
}
"""

# The rest of what aml.py can say, with packages past 63 and 4095 bytes.
EVERYTHING_ASL = r"""
DefinitionBlock ("", "SSDT", 2, "VMSVC ", "VMSERVIC", 1)
{
    Scope (\_SB)
    {
        Device (PCI0)
        {
            Name (_HID, EisaId ("PNP0A08"))
            Name (_CRS, ResourceTemplate ()
            {
                DWordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange, 0, 0x0D00, 0xFFFF, 0, 0xF300)
                DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                             0, 0xC0000000, 0xE7FFFFFF, 0, 0x28000000)
                QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                             0, 0x100000000, 0xFFFFFFFFF, 0, 0xF00000000)
                Memory32Fixed (ReadWrite, 0xE8000000, 0x10000000)
                Interrupt (ResourceConsumer, Level, ActiveHigh, Exclusive) { 9 }
            })
            OperationRegion (PRST, SystemMemory, 0xFED00000, 0x20)
            Field (PRST, DWordAcc, NoLock, Preserve) { CSEL, 32, , 48, CDAT, 64 }
            Method (TEST, 1, NotSerialized)
            {
                If (Arg0 == 0x1234) { CSEL = 0x123456789A  Return ("text") }
                Return (\_SB.PCI0.BIG)
            }
            Name (BIG, Buffer () { %s })
            Name (BIG2, Buffer () { %s })
        }
    }
}
"""


def iasl(*arguments: str | Path) -> str:
    """Runs iasl and returns what it says; an error, warning or remark of its own fails the test."""
    command: Sequence[str] = ["iasl", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    for complaint in ("Error ", "Warning ", "Remark ", "rror:", "arning:"):
        assert complaint not in said, said
    return said


def compile_asl(directory: Path, source: str) -> bytes:
    (directory / "source.asl").write_text(source)
    # -oa: no optimisation, for we write full paths where iasl would shorten them.
    said = iasl("-oa", "-p", directory / "out", directory / "source.asl")
    assert "0 Errors, 0 Warnings, 0 Remarks" in said, said
    return (directory / "out.aml").read_bytes()


def without_compiler(table: bytes) -> bytes:
    """`table` without its checksum and its creator's id and revision, which name iasl in what iasl wrote."""
    return table[:9] + table[10:28] + table[36:]


@pytest.mark.parametrize("signature", ["DSDT", "FACP", "APIC", "WDAT", "XSDT"])
@pytest.mark.parametrize(("vcpus", "max_vcpus"), [(1, 1), (2, 254)])
def test_iasl_takes_every_table_apart_and_back(tmp_path: Path, signature: str, vcpus: int, max_vcpus: int) -> None:
    memory = guest_ram()
    rsdp = write_tables(memory, vcpus=vcpus, max_vcpus=max_vcpus, dsdt_aml=devices_aml.dsdt(DEVICES), more=[WDAT])
    table = walk(memory, rsdp)[signature][1]
    memory.close()
    (tmp_path / "table.dat").write_bytes(table)
    iasl("-p", tmp_path / "table", "-d", tmp_path / "table.dat")
    recompiled = compile_asl(tmp_path, (tmp_path / "table.dsl").read_text())
    assert without_compiler(recompiled) == without_compiler(table)


def test_dsdt_is_what_iasl_makes_of_the_same_asl(tmp_path: Path) -> None:
    assert without_compiler(compile_asl(tmp_path, DSDT_ASL)) == without_compiler(tables.dsdt(devices_aml.dsdt(DEVICES)))


def test_aml_is_what_iasl_makes_of_the_same_asl(tmp_path: Path) -> None:
    small, large = bytes(range(100)), bytes(index & 0xFF for index in range(5000))
    resources = aml.resource_template(
        aml.dword_address_space(aml.IO_RANGE, 0xD00, 0xFFFF),
        aml.dword_address_space(aml.MEMORY_RANGE, 0xC0000000, 0xE7FFFFFF),
        aml.qword_address_space(aml.MEMORY_RANGE, 1 << 32, (1 << 36) - 1),
        aml.memory32_fixed(0xE8000000, 0x10000000),
        aml.interrupt(9, edge=False),
    )
    test = aml.method(
        "TEST",
        1,
        aml.if_(
            aml.equal(aml.ARG0, aml.integer(0x1234)),
            aml.store(aml.integer(0x123456789A), aml.name_string("CSEL")),
            aml.return_(aml.string("text")),
        ),
        aml.return_(aml.name_string(r"\_SB.PCI0.BIG")),
    )
    ours = aml.scope(
        r"\_SB",
        aml.device(
            "PCI0",
            aml.name("_HID", aml.eisaid("PNP0A08")),
            aml.name("_CRS", resources),
            aml.op_region("PRST", 0, 0xFED00000, 0x20),
            aml.field("PRST", aml.DWORD_ACCESS, aml.PRESERVE, ("CSEL", 32), (None, 48), ("CDAT", 64)),
            test,
            aml.name("BIG", aml.buffer(small)),
            aml.name("BIG2", aml.buffer(large)),
        ),
    )
    source = EVERYTHING_ASL % tuple(", ".join(map(str, data)) for data in (small, large))
    assert compile_asl(tmp_path, source)[36:] == ours
