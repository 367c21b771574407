"""Real Linux guests as systemd services, on a real systemd host: Debian kernels, unmodified."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from lab.guest_checks import BOOT_TIMEOUT_SEC, belongings, serial_console, unexplained_warnings
from lab.host import LabHost
from lab.prepare import guest_config
from support.unit_vm import NoSuchLine, UnitVm

# Copies a vmlinux and gives its PVH note (name "Xen", type 18, an address of 8 bytes) a type that nobody looks for.
WITHOUT_PVH_NOTE = r"""
import struct, sys
image = open(sys.argv[1], "rb").read()
note = struct.pack("<III", 4, 8, 18) + b"Xen\0"
assert image.count(note) == 1
open(sys.argv[2], "wb").write(image.replace(note, struct.pack("<III", 4, 8, 0x7fff) + b"Xen\0"))
"""

BUS_CALL = Path(__file__).parents[1] / "bench/bus_call.py"
PAUSES = """
caller = BusCaller("{bus_name}")
for _ in range(100):
    caller.call("Pause")
    caller.call("Resume")
"""


def test_the_host_can_run_guests(lab: LabHost) -> None:
    """check-host agrees, and the account of the unit may use /dev/kvm."""
    report = lab.run("vmservice check-host", check=True).stdout
    assert "missing" not in report
    assert "limited" not in report
    assert '"5\\n"' in report


def test_a_guest_from_start_to_stop(vm: UnitVm) -> None:
    """It has the memory and the vCPUs that it was given, and does nothing while it is paused."""
    vm.configure(guest_config(cpus=2, memory="1G"))
    vm.start()
    assert vm.state == "running"
    assert vm.get("Memory") == 2**30
    console = vm.wait_for("beat 2$", BOOT_TIMEOUT_SEC)
    assert "vmservice guest: /init reached" in console
    assert "1 buttons" in console
    found = re.search(r"(\d+) CPUs, (\d+) KiB", console)
    assert found is not None
    assert int(found[1]) == 2
    assert 900_000 < int(found[2]) < 1_048_576

    vm.call("Pause")
    vm.host.run("journalctl --sync")
    beats = vm.journal().count("beat ")
    # Three seconds on the host's own clock.
    vm.host.run("sleep 3; journalctl --sync")
    assert vm.journal().count("beat ") == beats
    vm.call("Resume")
    vm.wait_for(f"beat {beats + 2}$")
    assert not re.search(r"soft lockup|rcu.*stall|clocksource.*unstable", vm.journal())

    vm.stop()
    assert "vmservice guest: power button" in vm.journal()
    assert vm.show("Result") == "success"
    assert vm.show("ActiveState") == "inactive"


@pytest.mark.parametrize(
    ("image", "protocol", "cpus"),
    [
        ("vmlinuz", "64-bit", 4),
        pytest.param("vmlinux", "PVH", 4, marks=pytest.mark.long),
        pytest.param("vmlinux without its note", "64-bit", 1, marks=pytest.mark.long),
    ],
)
def test_kernels(guests: dict[str, UnitVm], image: str, protocol: str, cpus: int) -> None:
    """A bzImage, and the ELF inside it by both of its entries, of two Debian releases."""
    kernels = {release: f"/lab/{release}.{image}" for release in guests}
    for release, vm in guests.items():
        if image.endswith("note"):
            kernels[release] = f"/srv/{release}.vmlinux"
            vm.host.run(f"python3 -c {shlex.quote(WITHOUT_PVH_NOTE)} /lab/{release}.vmlinux {kernels[release]}", check=True)
        vm.configure(guest_config(release=release, kernel=kernels[release], cpus=cpus))
        vm.start()
    for release, vm in guests.items():
        console = vm.wait_for("beat 1$", BOOT_TIMEOUT_SEC)
        assert f"booting {kernels[release]} by the {protocol} boot protocol" in console
        assert f", {cpus} CPUs," in console
        assert not re.search(r"BUG|WARNING|Oops|Call Trace|ACPI Error|ACPI Exception", console)
        vm.stop()
        assert "vmservice guest: power button" in vm.journal()


@pytest.mark.long
def test_the_whole_console_of_a_boot_is_in_the_journal(vm: UnitVm) -> None:
    """Without `quiet`: some three hundred lines, the first and the last of them and none out of order."""
    vm.configure(guest_config(cmdline="console=ttyS0 vmtest=poweroff"))
    vm.start()
    vm.wait_inactive(BOOT_TIMEOUT_SEC)
    console = vm.journal("--output=cat", f"SYSLOG_IDENTIFIER=vm-{vm.name}")

    assert "Linux version 6" in console
    assert "Command line: console=ttyS0 vmtest=poweroff" in console
    stamps = [float(stamp) for stamp in re.findall(r"^\[ *(\d+\.\d+)\]", console, re.MULTILINE)]
    assert len(stamps) > 200
    assert stamps == sorted(stamps)
    assert not re.search(r"BUG|WARNING|Oops|Call Trace|ACPI Error|ACPI Exception", console)
    assert vm.show("Result") == "success"


@pytest.mark.long
def test_a_hundred_pauses_of_a_busy_guest(vm: UnitVm) -> None:
    """By one caller on one connection: 200 processes of busctl would take a minute here, and pause less often."""
    vm.configure(guest_config(cpus=2, cmdline="console=ttyS0 quiet vmtest=busy"))
    vm.start()
    vm.wait_for("beat 2$", BOOT_TIMEOUT_SEC)
    before = belongings(vm)
    program = BUS_CALL.read_text() + PAUSES.format(bus_name=vm.bus_name)
    vm.host.run("python3 -", stdin=program.encode(), timeout=300, check=True)

    assert vm.state == "running"
    beats = vm.journal().count("beat ")
    vm.wait_for(f"beat {beats + 2}$")
    assert belongings(vm) == before
    vm.stop()
    assert vm.show("Result") == "success"


@pytest.mark.long
def test_a_restart(vm: UnitVm) -> None:
    """tests/system has twenty, of a guest that is up at once."""
    vm.start()
    vm.wait_for("ready, 1 buttons", BOOT_TIMEOUT_SEC)
    vm.restart()
    assert vm.state == "running"
    assert vm.journal().count("vmservice guest: power button") == 1
    assert "forced" not in vm.journal()


@pytest.mark.long
def test_a_wait_that_fails_tells_all_of_the_guest(vm: UnitVm) -> None:
    """Of one in its boot, which is as silent as one that hangs: where it is, and what its kernel kept to itself."""
    vm.start()
    with pytest.raises(NoSuchLine) as failure:
        vm.wait_for("no guest says this", timeout=1)
    report = str(failure.value)
    assert re.search(r"of it guest [1-9]\d+ ms", report)
    assert re.search(r"\d reason \w+ rip 0xffffffff", report)
    assert "Command line: console=ttyS0 quiet" in report
    assert "cannot be had" not in report


def test_a_guest_that_reboots_is_reset_in_place(vm: UnitVm) -> None:
    vm.configure(guest_config(cmdline="console=ttyS0 quiet vmtest=reboot"))
    vm.start()
    pid = vm.main_pid()
    boots = f"journalctl --unit={vm.unit} --output=cat | grep -c /init.reached"
    vm.host.run(
        f"timeout {BOOT_TIMEOUT_SEC} sh -c 'until [ $({boots}) -ge 2 ]; do sleep 1; done'",
        timeout=BOOT_TIMEOUT_SEC + 30,
        check=True,
    )
    assert vm.main_pid() == pid


@pytest.mark.long
def test_every_vcpu_is_a_core_of_one_package(guests: dict[str, UnitVm]) -> None:
    """Whatever the host's processors are: no package, no thread and no node that is not there, in kernels old and new."""
    vcpus = {"trixie": 12, "bookworm": 4}
    for release, vm in guests.items():
        vm.configure(guest_config(release=release, cpus=vcpus[release], cmdline="console=ttyS0 quiet vmtest=topology"))
        vm.start()
    for release, vm in guests.items():
        cpus = vcpus[release]
        vm.wait_inactive(3 * BOOT_TIMEOUT_SEC)
        console = serial_console(vm)
        assert "vmservice guest: topology end" in console
        told = re.findall(r"guest: cpu(\d+) package (\d+) core (\d+) threads (\S+) cores (\S+) caches ([-0-9 ]*)", console)
        everybody = f"0-{cpus - 1}"
        assert sorted(int(number) for number, *_ in told) == list(range(cpus)), console
        for number, package, core, threads, cores, caches in told:
            assert (package, core, threads, cores) == ("0", number, number, everybody)
            assert set(caches.split()) <= {number, everybody}
        assert unexplained_warnings(console) == []
