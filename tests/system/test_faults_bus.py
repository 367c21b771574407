"""Faults of the system bus and of those on it: the VM runs on, stays cheap, and its name comes back by itself."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator

import pytest
from support.container import Container
from support.unit_vm import INTERFACE, OBJECT, UnitVm, firmware_config
from support.vmm_process import Cost, beats, complaints

BUS_UNITS = "dbus.socket dbus.service"

# Of one processor. A VM whose guest beats takes about a hundredth of it.
IDLE_SHARE = 0.15
GROWTH_LIMIT_BYTES = 16 << 20
FLOOD_SEC = 4


@pytest.fixture
def beating(faulty_container: Container) -> Iterator[UnitVm]:
    """A VM that has beaten once, on a host that the test may break."""
    vm = UnitVm(faulty_container, "demo")
    vm.configure(firmware_config())
    faulty_container.run("journalctl --rotate --vacuum-time=1us")
    vm.start()
    vm.wait_for("beat 1$")
    yield vm
    faulty_container.run(
        f"systemctl unmask --runtime {BUS_UNITS}; systemctl kill --signal=CONT dbus;"
        f" systemctl reset-failed {BUS_UNITS}; systemctl start {BUS_UNITS}"
    )
    vm.remove()


def watch(vm: UnitVm, seconds: float) -> tuple[Cost, Cost, float]:
    """The VMM before and after a while of nothing else, and how long that was; its guest beats on meanwhile."""
    count = beats(vm)
    before, begin = Cost(vm), time.monotonic()
    vm.host.run(f"sleep {seconds}")
    after, elapsed = Cost(vm), time.monotonic() - begin
    assert beats(vm) > count + seconds, "the guest stood still"
    return before, after, elapsed


def test_a_bus_that_is_stopped_in_its_tracks(beating: UnitVm) -> None:
    """It neither reads nor answers for a while: the VM waits without work, and nothing is lost or said."""
    pid = beating.main_pid()
    beating.host.run("systemctl kill --signal=STOP dbus", check=True)
    before, after, elapsed = watch(beating, 2)
    assert after.cpu_sec - before.cpu_sec < IDLE_SHARE * elapsed
    assert (after.fds, after.threads) == (before.fds, before.threads)
    assert after.resident_bytes - before.resident_bytes < GROWTH_LIMIT_BYTES
    beating.host.run("systemctl kill --signal=CONT dbus", check=True)
    beating.wait_on_bus()
    assert (beating.state, beating.main_pid()) == ("running", pid)
    assert complaints(beating) == []


def test_a_bus_that_is_gone(beating: UnitVm) -> None:
    """One warning, no work, and a stop that needs no bus; a VM that starts meanwhile is ready all the same."""
    late = UnitVm(beating.host, "late")
    late.configure(firmware_config())
    try:
        beating.host.run(f"systemctl mask --runtime {BUS_UNITS} && systemctl stop {BUS_UNITS}", check=True)
        beating.wait_for("the VM keeps running and will take its name again")
        before, after, elapsed = watch(beating, 2)
        assert after.cpu_sec - before.cpu_sec < IDLE_SHARE * elapsed
        assert after.fds <= before.fds
        late.start(timeout=60)
        assert late.show("StatusText") == "running; 1 vCPU, 64 MiB; not on the bus"
        assert beating.show("StatusText") == "running; 1 vCPU, 64 MiB; not on the bus"

        begin = time.monotonic()
        beating.stop()
        assert time.monotonic() - begin < 30
        assert (beating.show("ActiveState"), beating.show("Result")) == ("inactive", "success")
        assert len(complaints(beating)) == 1

        beating.host.run(f"systemctl unmask --runtime {BUS_UNITS} && systemctl start {BUS_UNITS}", check=True)
        late.wait_on_bus()
        assert late.state == "running"
        assert late.show("StatusText") == "running; 1 vCPU, 64 MiB"
        assert [line.partition(":")[0] for line in complaints(late)] == ["nothing answers at /run/dbus/system_bus_socket"]
        assert "Traceback" not in late.journal() + beating.journal()
    finally:
        late.remove()


def test_a_bus_that_restarts_again_and_again(beating: UnitVm) -> None:
    """The name is back each time, on a connection of its own: nothing of the former ones is left."""
    pid, before = beating.main_pid(), Cost(beating)
    for _ in range(5):
        beating.host.run("systemctl reset-failed dbus.service; systemctl restart dbus.service", check=True)
        beating.wait_on_bus()
    beating.host.run("timeout 50 sh -c 'until busctl list | grep -q machine1; do sleep 0.1; done'")
    beating.call("Pause")
    beating.call("Resume")
    after = Cost(beating)
    assert (beating.main_pid(), beating.state) == (pid, "running")
    assert after.fds <= before.fds + 1, "logind's connection may come back while this is read"
    assert after.resident_bytes - before.resident_bytes < GROWTH_LIMIT_BYTES
    assert len(complaints(beating)) == 5
    assert beating.journal().count("D-Bus name acquired") == 6


def test_clients_that_nobody_wants(beating: UnitVm) -> None:
    """Calls without end, replies that nobody reads, descriptors in messages, verbs of strangers: all at once, for seconds.

    The bus limits the calls of one connection that wait for a reply, and lets no descriptors through to a VM; the VM takes
    messages in turns. Others are served meanwhile, and the VM is afterwards as it was.
    """
    host = beating.host
    # dbus-daemon has a line for each call that it refuses; so many that they would push all else out of the journal.
    host.run("mkdir -p /run/systemd/system/dbus.service.d", check=True)
    host.run(
        "printf '[Service]\\nLogFilterPatterns=~maximum number of pending\\n' > /run/systemd/system/dbus.service.d/test.conf"
    )
    before = Cost(beating)
    floods = {
        kind: f"runuser -u alice -- python3 /lab/bus_flood.py {kind} {beating.bus_name} {FLOOD_SEC} > /tmp/{kind} 2>&1"
        for kind in ("calls", "deaf", "verbs", "descriptors")
    }
    started = " ".join(
        f"systemd-run --quiet --collect --unit=flood-{kind} sh -c {shlex.quote(line)};" for kind, line in floods.items()
    )
    said = " ".join(f"/tmp/{kind}" for kind in floods)
    host.run(f"rm -f {said}; {started}", check=True)
    host.run(f"timeout 50 sh -c 'until [ $(cat {said} | grep -c begun) = {len(floods)} ]; do sleep 0.05; done'", check=True)
    try:
        slowest = 0.0
        for verb in ("Pause", "Resume") * 4:
            begin = time.monotonic()
            beating.call(verb)
            slowest = max(slowest, time.monotonic() - begin)
        assert slowest < 20, "an honest caller waited too long"
        host.run(f"timeout 50 sh -c 'until [ $(cat {said} | grep -c sent) = {len(floods)} ]; do sleep 0.1; done'", check=True)
        told = {kind: host.run(f"cat /tmp/{kind}").stdout for kind in floods}
        assert all("sent " in text for text in told.values()), told
        assert "LimitsExceeded" in told["calls"], told
        assert "NotSupported" in told["descriptors"], told
    finally:
        host.run(f"systemctl stop {' '.join(f'flood-{kind}' for kind in floods)}; rm -r /run/systemd/system/dbus.service.d")

    host.run(f"busctl --timeout=20 get-property {beating.bus_name} {OBJECT} {INTERFACE} State", check=True)
    after = Cost(beating)
    assert after.fds <= before.fds
    assert after.resident_bytes - before.resident_bytes < GROWTH_LIMIT_BYTES
    assert beating.state == "running"
    assert len(complaints(beating)) <= 1, "at most that polkit cannot be asked"
    assert "Traceback" not in beating.journal()
    _before, calm, elapsed = watch(beating, 1)
    assert calm.cpu_sec - _before.cpu_sec < IDLE_SHARE * elapsed
