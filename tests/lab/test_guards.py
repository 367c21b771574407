"""A Linux guest that panics or hangs, and what its VM makes of that."""

from __future__ import annotations

import re

import pytest
from lab.guest_checks import BOOT_TIMEOUT_SEC, unexplained_warnings
from lab.prepare import guest_config
from support.unit_vm import UnitVm


def start_and_wait_for_a_restart(vm: UnitVm) -> None:
    """The unit may be started anew before it has ever been active."""
    restarted = f"until [ $(systemctl show -P NRestarts {vm.unit}) -ge 1 ]; do sleep 0.5; done"
    script = f"systemctl start --no-block {vm.unit}; timeout {BOOT_TIMEOUT_SEC} sh -c '{restarted}'"
    vm.host.run(script, timeout=BOOT_TIMEOUT_SEC + 30, check=True)


def test_a_panic_that_reboots_is_a_reset(vm: UnitVm) -> None:
    """Without the driver of pvpanic: what the guest does of itself, after ten seconds, in which the VM says what it saw."""
    vm.configure(guest_config(cmdline="console=ttyS0 quiet panic=10 vmtest=panic", service='on_reset = "exit"'))
    start_and_wait_for_a_restart(vm)
    assert "console says that its kernel has panicked (sysrq triggered crash)" in vm.journal()


def test_a_panic_is_acted_on(guests: dict[str, UnitVm]) -> None:
    policies = {"trixie": ("pause", "paused"), "bookworm": ("reboot", "running")}
    for release, vm in guests.items():
        service = f'on_panic = "{policies[release][0]}"'
        vm.configure(guest_config(release=release, cmdline="console=ttyS0 quiet vmtest=panicked", service=service))
        vm.start()
    for release, vm in guests.items():
        console = vm.wait_for("the guest panicked", BOOT_TIMEOUT_SEC)
        assert "sysrq triggered crash" in vm.journal()
        assert (vm.state, vm.get("LastExit")) == (policies[release][1], "panic")
        assert unexplained_warnings(console) == []
        vm.call("Shutdown")


@pytest.mark.long
def test_a_panic_ends_the_vm_and_starts_the_unit_anew(vm: UnitVm) -> None:
    vm.configure(guest_config(cmdline="console=ttyS0 quiet vmtest=panicked"))
    start_and_wait_for_a_restart(vm)
    assert "status=134" in vm.journal()


def test_a_watchdog_that_is_not_fed_resets_the_guest(guests: dict[str, UnitVm]) -> None:
    """It is fed for longer than its timeout first. The guest finds afterwards what has happened, and can stop it."""
    pids = {}
    for release, vm in guests.items():
        vm.configure(guest_config(release=release, cmdline="console=ttyS0 quiet vmtest=watchdog"))
        vm.start()
        pids[release] = vm.main_pid()
    for release, vm in guests.items():
        console = vm.wait_for("vmservice guest: watchdog inactive", BOOT_TIMEOUT_SEC)
        found = re.findall("wdat_wdt bootstatus .*|fed, timeout 8|(?<!as the guest )did not feed its watchdog", console)
        assert found == ["wdat_wdt bootstatus 0", "fed, timeout 8", "did not feed its watchdog", "wdat_wdt bootstatus 32"]
        assert "as the guest did not feed its watchdog" in console  # the dump of its vCPUs
        assert (vm.main_pid(), vm.get("LastExit")) == (pids[release], "watchdog")
        assert unexplained_warnings(console) == []
