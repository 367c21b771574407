"""Faults of the journal and of file systems: a guest's console never holds up its VM, and a full disk costs output only."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from support.container import Container
from support.unit_vm import UnitVm, firmware_config
from support.vmm_process import Cost, beats, complaints

JOURNAL = "systemd-journald.service"
JOURNAL_UNITS = f"systemd-journald.socket systemd-journald-dev-log.socket systemd-journald-audit.socket {JOURNAL}"

# A call over the bus, busctl's own start included.
PROMPT_SEC = 20.0
GROWTH_LIMIT_BYTES = 16 << 20


@pytest.fixture
def host(faulty_container: Container) -> Iterator[Container]:
    yield faulty_container
    faulty_container.run(f"systemctl kill --signal=CONT {JOURNAL}; systemctl start {JOURNAL_UNITS}")


def started(host: Container, name: str, variant: str, console: str = 'mode = "journal"', service: str = "") -> UnitVm:
    vm = UnitVm(host, name)
    vm.configure(firmware_config(variant, service=service).replace('mode = "journal"', console))
    vm.start()
    return vm


def prompt(vm: UnitVm, verb: str) -> None:
    begin = time.monotonic()
    vm.call(verb)
    assert time.monotonic() - begin < PROMPT_SEC, verb


def test_a_journal_that_is_stopped_in_its_tracks(host: Container) -> None:
    """With one guest that beats and one that prints without end, whose socket is full in no time."""
    loud = started(host, "loud", "flood", service="shutdown_timeout = 1")
    beating, brief = started(host, "beating", "beat"), started(host, "brief", "beat")
    try:
        beating.wait_for("beat 2$")
        count, begin = beats(beating), time.monotonic()
        host.run(f"systemctl kill --signal=STOP {JOURNAL}", check=True)
        before = Cost(loud)
        host.run("sleep 2")
        for verb in ("Pause", "Resume"):
            prompt(loud, verb)
            prompt(beating, verb)
        after = Cost(loud)
        assert after.resident_bytes - before.resident_bytes < GROWTH_LIMIT_BYTES
        assert loud.show("StatusText") == "running; 1 vCPU, 64 MiB"
        brief.stop(timeout=60)
        assert brief.show("Result") == "success"
        host.run(f"systemctl kill --signal=CONT {JOURNAL}", check=True)

        elapsed = time.monotonic() - begin
        expected = count + int(elapsed * 5)
        beating.wait_for(f"beat {expected}$", timeout=60)
        assert beating.state == "running"
        loud.wait_for("lines of the console are missing here", timeout=60)
        loud.stop(timeout=60)
        assert loud.show("Result") == "success"
        assert [complaints(vm) for vm in (beating, brief)] == [[], []]
        assert "Traceback" not in loud.journal() + beating.journal()
    finally:
        host.run(f"systemctl kill --signal=CONT {JOURNAL}")
        for vm in (beating, loud, brief):
            vm.remove()


def test_a_journal_that_is_gone(host: Container) -> None:
    """The VM runs, starts and stops without one, and its lines are there again with the next one."""
    early = started(host, "early", "beat")
    late = UnitVm(host, "late")
    try:
        early.wait_for("beat 2$")
        host.run(f"systemctl stop {JOURNAL_UNITS}", check=True)
        assert early.state == "running"
        late = started(host, "late", "beat")
        prompt(late, "Pause")
        prompt(early, "Pause")
        host.run(f"systemctl start {JOURNAL_UNITS}", check=True)
        for vm in (early, late):
            prompt(vm, "Resume")
            vm.wait_for("VM resumed")
            count = beats(vm)
            vm.wait_for(f"beat {count + 2}$")
            vm.stop()
            assert vm.show("Result") == "success"
    finally:
        early.remove()
        late.remove()


def test_a_guest_that_prints_without_end_leaves_room_for_others(host: Container) -> None:
    """The VMM has its limit for the console; journald's own for a unit would take the VMM's messages along."""
    loud = started(host, "shouting", "flood", service="shutdown_timeout = 1")
    try:
        loud.wait_for("lines of the console are missing here")
        prompt(loud, "Pause")
        loud.wait_for("VM paused")
        prompt(loud, "Resume")
        loud.stop(timeout=60)
        assert loud.show("Result") == "success"
        assert complaints(loud) == ["forced the VM to stop: the guest did not power off within 1 second"]
        assert "Suppressed" not in loud.journal()
    finally:
        loud.remove()


def test_a_full_disk_under_the_console_file(host: Container) -> None:
    """One warning an outage, the guest runs on, and goes on in the file when there is room again."""
    host.run("mkdir -p /srv/log && mount -t tmpfs -o size=64k tmpfs /srv/log && chown vmservice /srv/log", check=True)
    host.run("systemctl edit --runtime --stdin vm@filed <<< $'[Service]\\nReadWritePaths=/srv/log'", check=True)
    vm = UnitVm(host, "filed")
    try:
        vm = started(host, "filed", "beat", 'mode = "file"\npath = "/srv/log/filed"')
        host.run("dd if=/dev/zero of=/srv/log/fill bs=4k status=none 2> /dev/null; truncate --size=%4096 /srv/log/filed")
        host.run("timeout 50 sh -c 'until [ $(df --output=avail /srv/log | tail -n 1) = 0 ]; do sleep 0.1; done'", check=True)
        host.run("head -c 4096 /dev/zero > /srv/log/more; dd if=/dev/zero of=/srv/log/filed bs=4096 count=1 status=none")
        vm.wait_for("console output is lost: /srv/log/filed: No space left on device", timeout=60)
        host.run("sleep 1")
        assert len(complaints(vm)) == 1
        prompt(vm, "Pause")
        prompt(vm, "Resume")
        host.run("rm /srv/log/fill /srv/log/more; sleep 0.5; tail -n 1 /srv/log/filed | grep -q beat", check=True)
        assert len(complaints(vm)) == 1
        vm.stop()
        assert vm.show("Result") == "success"
    finally:
        vm.remove()
        host.run("umount /srv/log; systemctl revert vm@filed")


def test_a_full_disk_under_run(host: Container) -> None:
    """A VM needs no room there: its pseudoterminal's link has none to take."""
    full = UnitVm(host, "full")
    try:
        host.run("mount -o remount,size=16M /run; dd if=/dev/zero of=/run/fill bs=4k status=none 2> /dev/null")
        host.run("df --output=avail /run | grep -qx ' *0'", check=True)
        full = started(host, "full", "beat", 'mode = "pty"')
        prompt(full, "Pause")
        prompt(full, "Resume")
        full.stop()
        assert full.show("Result") == "success"
        assert full.show("ExecMainStatus") == "0"
    finally:
        host.run("rm -f /run/fill; mount -o remount,size=20% /run")
        full.remove()
    assert complaints(full) == []
