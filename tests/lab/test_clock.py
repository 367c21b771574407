"""Time and a real guest: the host's wall clock is set forward and back, and the host sleeps. Only the lab has its own."""

from __future__ import annotations

import json
import re
import time

from lab.guest_checks import BOOT_TIMEOUT_SEC
from lab.prepare import guest_config
from support.unit_vm import UnitVm
from support.vmm_process import complaints

YEAR_SEC = 365 * 86400


ASLEEP_SEC = 8
# Of a guest's word for the time: both clocks are cut to seconds, and an emulated host takes another second or two to
# print it. A clock that stood still while the host slept is off by ASLEEP_SEC.
WITHIN_SEC = ASLEEP_SEC / 2


def set_clock(vm: UnitVm, by_sec: int) -> None:
    vm.host.run(f"date --set=@$(($(date +%s) + {by_sec}))", check=True)


def test_a_clock_that_jumps(vm: UnitVm) -> None:
    """No timer of ours runs out or stands still: not the watchdog's, not a call's, not the guest's time to power off."""
    vm.start()
    vm.wait_for("beat 2$", BOOT_TIMEOUT_SEC)
    pid = vm.main_pid()
    moved = 0
    try:
        for jump in (YEAR_SEC, -2 * YEAR_SEC):
            set_clock(vm, jump)
            moved += jump
            vm.call("Pause")
            vm.call("Resume")
            assert (vm.state, vm.main_pid()) == ("running", pid)
        begin = time.monotonic()
        vm.stop()
        assert time.monotonic() - begin < 60
        assert vm.show("Result") == "success"
    finally:
        set_clock(vm, -moved)
    assert "vmservice guest: power button" in vm.journal()
    assert complaints(vm) == []


def test_the_host_sleeps(vm: UnitVm) -> None:
    """By logind, to RAM, woken by its RTC: the guest is paused meanwhile; then its clocks are right and its watchdogs quiet."""
    vm.configure(guest_config(cpus=2, cmdline="console=ttyS0 quiet vmtest=clock"))
    vm.start()
    vm.wait_for("beat 3$", BOOT_TIMEOUT_SEC)
    begin = time.monotonic()
    vm.host.run(f"rtcwake --mode no --seconds {ASLEEP_SEC} && systemctl suspend", timeout=120, check=True)
    vm.host.run(
        "timeout 120 sh -c 'until journalctl --boot --grep \"PM: suspend exit\" -q; do sleep 0.5; done'",
        timeout=180,
        check=True,
    )
    assert time.monotonic() - begin > ASLEEP_SEC - 3
    assert "the host is about to sleep" in vm.wait_for("^VM resumed$")
    beats = vm.journal().count("beat ")
    vm.wait_for(f"beat {beats + 3}$")

    lines = [json.loads(line) for line in vm.journal("--output=json", "VM_CONSOLE=serial").splitlines()]
    told = [(int(line["__REALTIME_TIMESTAMP"]) / 1e6, re.search(r"(\S+) (\d+), RTC (\d+)$", line["MESSAGE"])) for line in lines]
    clocks = [(at, found) for at, found in told if found is not None]
    print([(at, found[0]) for at, found in clocks])
    for at, found in (clocks[0], clocks[-1]):
        assert abs(at - int(found[2])) < WITHIN_SEC, found[1]
        assert abs(at - int(found[3])) < WITHIN_SEC, "RTC"
    assert not re.search(r"soft lockup|rcu.*stall|clocksource.*unstable", vm.journal())
    vm.stop()
    assert vm.show("Result") == "success"
