"""Faults of the service manager, many VMs at once, and a VMM that is stopped or killed at any moment of its life."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from support.container import Container
from support.unit_vm import Host, UnitVm, firmware_config
from support.vmm_process import Cost, complaints

VMS = 50
KILLS = 50
TERMS = 20

# A start takes a third of a second, until the guest beats; a moment may lie before it, in it, or after it.
LATEST_MOMENT_SEC = 0.45


def moments(count: int) -> list[str]:
    """Seconds for sleep(1), from a generator whose seed is printed; VMSERVICE_SEED sets it."""
    seed = int(os.environ.get("VMSERVICE_SEED", time.time_ns() % 1_000_000))
    print(f"VMSERVICE_SEED={seed}")
    generator = random.Random(seed)
    return [f"{generator.uniform(0, LATEST_MOMENT_SEC):.3f}" for _ in range(count)]


def wait_machines(host: Host, count: int) -> None:
    """Returns when machined knows so many."""
    host.run(f"timeout 60 sh -c 'until [ $(machinectl list --no-legend | wc -l) = {count} ]; do sleep 0.1; done'", check=True)


def leftovers(host: Host, name: str) -> str:
    """What a VM could leave: in its directories and in shared memory, pseudoterminals, control groups, processes."""
    looked_at = (
        f"ls -A /run/vmservice /dev/shm /var/lib/vmservice/{name} 2> /dev/null | grep -v -e : -e '^$';"
        " ls /dev/pts | grep -v ptmx; ls -d /sys/fs/cgroup/machine.slice/vm@*; pgrep -u vmservice"
    )
    return host.run(f"({looked_at}) 2> /dev/null").stdout


# More than any host needs to fill the socket of the service manager.
FLOODS = 30


def untold(vm: UnitVm) -> list[str]:
    """What the VM complains of its service manager. Of the journal it may complain too: that has to wait for PID 1 at times."""
    return [line for line in complaints(vm) if "the service manager at /run/systemd/notify cannot be told" in line]


def test_a_manager_that_reads_nothing(faulty_container: Container) -> None:
    """PID 1 stands still until its socket is full: the VM works on, says so once, and its last status is told later."""
    vm = UnitVm(faulty_container, "unread")
    vm.configure(firmware_config())
    vm.start()
    try:
        before = Cost(vm)
        os.kill(faulty_container.leader, signal.SIGSTOP)
        try:
            for _ in range(FLOODS):  # a slow host turns more of them away, and sends only the newest status
                flood = faulty_container.run(f"python3 /lab/bus_flood.py toggles {vm.bus_name} 0.3")
                assert "sent " in flood.stdout, flood.stderr
                if untold(vm):
                    break
            # Some of the flood may have been turned away, so either state may be the last one.
            vm.call("Pause" if vm.state == "running" else "Resume")
            vm.call("Resume" if vm.state == "paused" else "Pause")
            pid = vm.host.run("pgrep --full 'vmservice run unread'", check=True).stdout
        finally:
            os.kill(faulty_container.leader, signal.SIGCONT)
        assert vm.main_pid() == int(pid)
        if vm.state == "paused":
            vm.call("Resume")
        vm.call("Pause")
        vm.call("Resume")
        vm.call("Pause")
        faulty_container.run(
            f"timeout 50 sh -c 'until systemctl show -P StatusText {vm.unit} | grep -q ^paused; do sleep 0.1; done'", check=True
        )
        assert len(untold(vm)) == 1
        assert Cost(vm).fds == before.fds
        vm.stop()
        assert vm.show("Result") == "success"
    finally:
        vm.remove()


def test_fifty_at_once(faulty_container: Container) -> None:
    """Each is ready, on the bus and registered; a stop of all is clean, and nothing of them is left."""
    host = faulty_container
    config = firmware_config("idle").replace("64M", "16M")
    names = " ".join(f"many{number}" for number in range(VMS))
    units = " ".join(f"vm@many{number}" for number in range(VMS))
    host.run(f"for name in {names}; do cat > /etc/vmservice/$name.toml <<< '{config}'; done", check=True)
    try:
        host.run(f"systemctl start {units}", check=True, timeout=120)
        assert host.run(f"systemctl is-active {units} | grep -cx active").stdout.strip() == str(VMS)
        assert host.run("busctl list --no-legend | grep -c '^org.vmservice.VM1.many'").stdout.strip() == str(VMS)
        wait_machines(host, VMS)
        assert host.run("machinectl list --no-legend | grep -c vmservice").stdout.strip() == str(VMS)
        host.run(f"systemctl stop {units}", check=True, timeout=120)
        failed = host.run(f"systemctl show --property=Result --value {units} | grep -v -e '^$' -e success").stdout
        assert failed == ""
        wait_machines(host, 0)
        assert leftovers(host, "many0") == ""
        told = host.run("journalctl --unit='vm@many*' SYSLOG_IDENTIFIER=vmservice --priority=warning --output=cat").stdout
        assert told == ""
    finally:
        host.run(f"systemctl kill --signal=KILL {units}; systemctl stop {units}; rm -f /etc/vmservice/many*.toml", timeout=120)


@pytest.fixture
def leaving(faulty_container: Container) -> Iterator[UnitVm]:
    """A VM that has what could be left behind: a pseudoterminal, memory in a file, a registration. It may fail without end."""
    vm = UnitVm(faulty_container, "leaving")
    memory = 'size = "16M"\nfile = "/var/lib/vmservice/leaving"'
    vm.configure(firmware_config().replace('size = "64M"', memory).replace('"journal"', '"pty"'))
    with vm.drop_in("[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestart=no\n"):
        yield vm


def repeat(vm: UnitVm, delays: list[str], then: Callable[[str], str]) -> None:
    """Start, wait so long, and do what `then` says, for each of `delays`; the first command that fails fails the test."""
    steps = (
        f"systemctl start --no-block {vm.unit} && sleep {delay} && {then(delay)} || {{ echo {delay}; exit 1; }}"
        for delay in delays
    )
    vm.host.run("; ".join(steps), check=True, timeout=180)


def test_killed_at_any_moment(leaving: UnitVm) -> None:
    vm, host = leaving, leaving.host
    gone = f"until systemctl show -P ActiveState {vm.unit} | grep -qE '^(inactive|failed)$'; do sleep 0.02; done"
    kill = f"{{ systemctl kill --signal=KILL {vm.unit} || true; }} 2> /dev/null && {{ {gone}; }}"
    try:
        for delays in (moments(KILLS)[start : start + 10] for start in range(0, KILLS, 10)):
            repeat(vm, delays, lambda _delay: kill)
            vm.start()
            assert vm.state == "running"
            assert host.run(f"machinectl show -P Leader {vm.name}", check=True).stdout.strip() == str(vm.main_pid())
            vm.stop()
            assert vm.show("Result") == "success"
            assert leftovers(host, vm.name) == ""
        wait_machines(host, 0)
        assert complaints(vm) == []
        assert "Traceback" not in vm.journal()
    finally:
        vm.remove()


def test_stopped_at_any_moment_of_its_start(leaving: UnitVm) -> None:
    """systemctl stop while Python starts, while the machine is built, while the guest boots, before and after READY=1."""
    vm, host = leaving, leaving.host

    def stop(_delay: str) -> str:
        return f"timeout 60 systemctl stop {vm.unit} && [ $(systemctl show -P Result {vm.unit}) = success ]"

    try:
        repeat(vm, moments(TERMS), stop)
        assert leftovers(host, vm.name) == ""
        wait_machines(host, 0)
        assert complaints(vm) == []
        assert "Traceback" not in vm.journal()
        vm.start()
        assert vm.state == "running"
    finally:
        vm.remove()
