"""The DSDT's entry of a virtio device behind memory-mapped registers, by hand and by ACPICA's compiler."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vmservice.acpi import aml, devices_aml, tables

SOURCE = r"""
DefinitionBlock ("", "DSDT", 2, "VMSVC ", "VMSERVIC", 1)
{
    Scope (\_SB)
    {
        Device (VR00)
        {
            Name (_HID, "LNRO0005")
            Name (_UID, Zero)
            Name (_CRS, ResourceTemplate ()
            {
                Memory32Fixed (ReadWrite, 0xD0000000, 0x1000)
                Interrupt (ResourceConsumer, Level, ActiveHigh, Exclusive) { 6 }
            })
        }
        Device (VR1F)
        {
            Name (_HID, "LNRO0005")
            Name (_UID, 31)
            Name (_CRS, ResourceTemplate ()
            {
                Memory32Fixed (ReadWrite, 0xD001F000, 0x1000)
                Interrupt (ResourceConsumer, Level, ActiveHigh, Exclusive) { 23 }
            })
        }
    }
    Name (\_S5, Package () { 5, Zero, Zero, Zero })
}
"""

DEVICES = [devices_aml.virtio_mmio(0, 0xD0000000, 6), devices_aml.virtio_mmio(31, 0xD001F000, 23)]


def test_its_id_window_and_level_triggered_interrupt() -> None:
    crs = aml.resource_template(aml.memory32_fixed(0xD0000000, 0x1000), aml.interrupt(6, edge=False))
    assert DEVICES[0] == aml.device("VR00", b"\x08_HID\x0dLNRO0005\0", b"\x08_UID\x00", b"\x08_CRS" + crs)


@pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl (acpica-tools) is not installed")
def test_it_is_what_iasl_makes_of_the_same_asl(tmp_path: Path) -> None:
    (tmp_path / "source.asl").write_text(SOURCE)
    command = ["iasl", "-oa", "-p", str(tmp_path / "out"), str(tmp_path / "source.asl")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "0 Errors, 0 Warnings, 0 Remarks" in done.stdout + done.stderr, done.stdout + done.stderr
    theirs, ours = (tmp_path / "out.aml").read_bytes(), tables.dsdt(devices_aml.dsdt(DEVICES))
    assert theirs[36:] == ours[36:]
