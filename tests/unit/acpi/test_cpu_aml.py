"""CPU hotplug in AML: run by ACPICA's interpreter against the real device model, as a guest's kernel runs it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support.acpi_walk import walk
from support.guest_ram import guest_ram

from vmservice.acpi import cpu_aml, devices_aml, tables
from vmservice.arch.x86_64 import layout
from vmservice.arch.x86_64.acpi_tables import write_tables

pytestmark = pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl (acpica-tools) is not installed")


def dsdt(max_vcpus: int) -> bytes:
    devices = [
        cpu_aml.cpu_hotplug(layout.CPU_HOTPLUG_BASE, layout.CPU_HOTPLUG_LEN, max_vcpus),
        devices_aml.generic_event_device(layout.GED_PORT, layout.GED_GSI, [cpu_aml.cpus_changed()]),
    ]
    return devices_aml.dsdt(devices)


def iasl(*arguments: str) -> str:
    return subprocess.run(["iasl", *arguments], check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.parametrize("max_vcpus", [1, 4, 254])
def test_iasl_takes_it_apart_and_puts_it_together_without_a_remark(tmp_path: Path, max_vcpus: int) -> None:
    table = tables.dsdt(dsdt(max_vcpus))
    (tmp_path / "dsdt.dat").write_bytes(table)
    iasl("-p", f"{tmp_path}/dsdt", "-d", f"{tmp_path}/dsdt.dat")
    said = iasl("-oa", "-p", f"{tmp_path}/again", f"{tmp_path}/dsdt.dsl")
    assert "0 Errors, 0 Warnings, 0 Remarks" in said, said
    assert (tmp_path / "again.aml").read_bytes()[36:] == table[36:]


@pytest.mark.parametrize("max_vcpus", [1, 254])
def test_it_fits_the_area_for_tables(max_vcpus: int) -> None:
    memory = guest_ram()
    rsdp = write_tables(memory, vcpus=1, max_vcpus=max_vcpus, dsdt_aml=dsdt(max_vcpus))
    assert walk(memory, rsdp)["DSDT"][1].count(b"ACPI0007") == max_vcpus
    memory.close()


def test_the_first_processor_cannot_be_ejected() -> None:
    aml = dsdt(3)
    bodies = re.split(rb"\x5b\x82.{1,2}C00", aml, flags=re.DOTALL)
    assert b"_EJ0" not in bodies[1]
    assert b"_EJ0" in bodies[2]


def test_every_processor_says_in_its_mat_that_it_is_enabled() -> None:
    """Linux reads the APIC id from there when a vCPU comes, and refuses an entry that is not enabled."""
    for vcpu in range(4):
        assert tables.local_apic(vcpu, enabled=True) in dsdt(4)


def test_the_methods_run(tmp_path: Path) -> None:
    """acpiexec has no such ports: every flag reads as one, or as nothing, so that a scan walks all the ways there are."""
    if shutil.which("acpiexec") is None:
        pytest.skip("acpiexec (acpica-tools) is not installed")
    (tmp_path / "dsdt.aml").write_bytes(tables.dsdt(dsdt(4)))
    command = ["acpiexec", "-b", r"execute \_SB.CPUS.CSCN; execute \_SB.CPUS.C001._STA; execute \_SB.CPUS.C002._EJ0 1"]
    done = subprocess.run([*command, str(tmp_path / "dsdt.aml")], capture_output=True, text=True, timeout=60, check=True)
    assert r"Evaluation of \_SB.CPUS.C001._STA returned object" in done.stdout, done.stdout
    assert "Exception" not in done.stdout
