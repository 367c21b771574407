"""MCFG and the PCI root: field by field, and as ACPICA's compiler makes them of the same ASL."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from vmservice.acpi import aml, devices_aml, tables
from vmservice.arch.x86_64 import layout
from vmservice.board.resources import Resources
from vmservice.devices.pci.bus import BUSES, ECAM_SIZE

needs_iasl = pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl (acpica-tools) is not installed")

IO_WINDOWS = [(0x0000, 0x0CF7), (0x0D00, 0xFFFF)]
MMIO32 = (0xC0000000, 0xE7FFFFFF)

PCI_ASL = r"""
DefinitionBlock ("", "DSDT", 2, "VMSVC ", "VMSERVIC", 1)
{
    Scope (\_SB)
    {
        Device (PCI0)
        {
            Name (_HID, EisaId ("PNP0A08"))
            Name (_CID, EisaId ("PNP0A03"))
            Name (_UID, Zero)
            Name (_SEG, Zero)
            Name (_CRS, ResourceTemplate ()
            {
                WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode, 0, 0x0000, 0x0000, 0, 0x0001)
                IO (Decode16, 0x0CF8, 0x0CF8, 1, 8)
                WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange, 0, 0x0000, 0x0CF7, 0, 0x0CF8)
                WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange, 0, 0x0D00, 0xFFFF, 0, 0xF300)
                DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                             0, 0xC0000000, 0xE7FFFFFF, 0, 0x28000000)
                %s
            })
        }
        Device (MBRD)
        {
            Name (_HID, EisaId ("PNP0C02"))
            Name (_UID, Zero)
            Name (_CRS, ResourceTemplate () { Memory32Fixed (ReadWrite, 0xE8000000, 0x10000000) })
        }
    }
    Name (\_S5, Package () { 5, Zero, Zero, Zero })
}
"""
QWORD_ASL = """
                QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                             0, 0x{0:X}, 0x{1:X}, 0, 0x{2:X})
"""


def dsdt(mmio64: tuple[int, int] | None) -> bytes:
    root = devices_aml.pci_root(0xCF8, BUSES, io=IO_WINDOWS, mmio32=MMIO32, mmio64=mmio64)
    return tables.dsdt(devices_aml.dsdt([root, devices_aml.motherboard_memory(layout.PCI_ECAM, layout.PCI_ECAM_SIZE)]))


def iasl(*arguments: str | Path) -> str:
    done = subprocess.run(["iasl", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "rror" not in said.replace("0 Errors", ""), said
    return said


def compile_asl(directory: Path, source: str) -> bytes:
    (directory / "source.asl").write_text(source)
    assert "0 Errors, 0 Warnings, 0 Remarks" in iasl("-oa", "-p", directory / "out", directory / "source.asl")
    return (directory / "out.aml").read_bytes()


def test_mcfg() -> None:
    mcfg = tables.mcfg(0xE8000000, 256)
    assert mcfg[:4] == b"MCFG"
    assert mcfg[8] == 1
    assert sum(mcfg) & 0xFF == 0
    assert mcfg[36:44] == bytes(8)
    assert struct.unpack("<QHBBI", mcfg[44:]) == (0xE8000000, 0, 0, 255, 0)
    assert tables.mcfg(0xE8000000, 1)[55] == 0


def test_no_more_buses_are_declared_than_there_are() -> None:
    """Linux reads 32 registers of every bus in MCFG that it has not found otherwise: with 256 buses that is 8,160 exits."""
    assert BUSES == 1
    assert ECAM_SIZE == BUSES << 20 <= layout.PCI_ECAM_SIZE


def test_word_address_space() -> None:
    """§6.4.3.5.3: 0x88 with 13 bytes behind the length."""
    assert aml.word_address_space(aml.BUS_RANGE, 0, 255).hex() == "880d00020c000000" + "0000" + "ff00" + "0000" + "0001"
    assert aml.word_address_space(aml.IO_RANGE, 0xD00, 0xFFFF)[3:6] == b"\x01\x0c\x03"


def test_the_root_has_no_interrupts_of_pins() -> None:
    assert b"_PRT" not in dsdt(None)


@pytest.mark.parametrize(("memory", "bits"), [(512 << 20, 36), (1 << 40, 46), ((1 << 40) - (1 << 30), 40)])
@needs_iasl
def test_the_root_is_what_iasl_makes_of_the_same_asl(tmp_path: Path, memory: int, bits: int) -> None:
    """Beside half a gigabyte of RAM, a terabyte, and RAM up to the processor's last address, where no 64-bit window is left."""
    gpa, size = layout.ram_ranges(memory)[-1]
    window = Resources(gpa + size, bits).mmio64_window()
    qword = QWORD_ASL.format(*window, window[1] - window[0] + 1) if window else ""
    compiled = compile_asl(tmp_path, PCI_ASL % qword)
    ours = dsdt(window)
    assert compiled[36:] == ours[36:]
    assert (window is None) == (bits == 40)


@pytest.mark.parametrize("table", ["mcfg", "dsdt"])
@needs_iasl
def test_iasl_takes_it_apart_and_back(tmp_path: Path, table: str) -> None:
    data = tables.mcfg(layout.PCI_ECAM, BUSES) if table == "mcfg" else dsdt((1 << 32, (1 << 39) - 1))
    (tmp_path / "table.dat").write_bytes(data)
    iasl("-p", tmp_path / "table", "-d", tmp_path / "table.dat")
    recompiled = compile_asl(tmp_path, (tmp_path / "table.dsl").read_text())
    assert recompiled[36:] == data[36:]
