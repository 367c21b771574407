"""systemd's watchdog and a VMM in which something hangs: killed, started anew, and the journal says why."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.releases import every_release
from support.unit_vm import UnitVm, firmware_config

WATCHDOG_SEC = 4


@pytest.fixture
def watched(vm: UnitVm) -> Iterator[UnitVm]:
    """A VM that runs wedged.py, with less patience than its unit has."""
    folder = f"/run/systemd/system/{vm.unit}.d"
    lines = f"[Service]\\nWatchdogSec={WATCHDOG_SEC}\\nExecStart=\\nExecStart=/lab/wedged.py run %%i\\n"
    vm.host.run(f"mkdir -p {folder} && printf '{lines}' > {folder}/watchdog.conf && systemctl daemon-reload", check=True)
    vm.configure(firmware_config("beat", cpus=2))
    vm.start()
    yield vm
    vm.host.run(f"rm -r {folder}; systemctl daemon-reload", check=True)


@pytest.mark.parametrize(
    ("what", "named", "seen"),
    [
        ("device", "the lock of the devices for 1 second", "in hang"),
        ("loop", "no answer from the event loop for 1 second", "in hang"),
    ],
)
def test_a_vmm_that_hangs_is_killed_and_started_anew(watched: UnitVm, what: str, named: str, seen: str) -> None:
    pid = watched.main_pid()
    watched.host.run(f"printf {what} > /var/lib/vmservice/{watched.name}/wedge", check=True)
    wait_restarted(watched)
    told = watched.journal("--output=cat", "--priority=err")
    assert named in told
    assert "vCPU 1" in watched.journal("--output=cat", "--priority=notice", "--grep=the vCPUs, as there is no answer from")
    everything = watched.journal()
    assert seen in everything, "the stacks are missing"
    assert "Watchdog timeout" in everything
    watched.wait_on_bus()
    assert watched.main_pid() != pid
    assert watched.state == "running"
    watched.stop()
    assert watched.show("Result") == "success"


@every_release
def test_a_process_that_stands_still_is_killed_and_started_anew(watched: UnitVm) -> None:
    watched.host.run(f"systemctl kill --signal=STOP {watched.unit}", check=True)
    wait_restarted(watched)
    watched.wait_on_bus()
    assert watched.state == "running"


def test_a_vm_that_is_paused_is_not_killed(watched: UnitVm) -> None:
    """Nor one that cannot be interrupted, or is not there: a watchdog's time and a half goes by in each state."""
    pid = watched.main_pid()
    watched.call("Pause")
    watched.host.run(f"sleep {1.5 * WATCHDOG_SEC}")
    assert (watched.main_pid(), watched.state) == (pid, "paused")
    assert watched.show("NRestarts") == "0"


def wait_restarted(vm: UnitVm) -> None:
    restarted = f"[ $(systemctl show -P NRestarts {vm.unit}) = 1 ] && systemctl is-active --quiet {vm.unit}"
    vm.host.run(f"timeout 40 sh -c 'until {restarted}; do sleep 0.1; done'", timeout=60, check=True)


@every_release
def test_sigquit_writes_where_the_vcpus_are(vm: UnitVm) -> None:
    vm.configure(firmware_config("deaf", cpus=2, service="shutdown_timeout = 0"))
    vm.start()
    vm.host.run(f"systemctl kill --kill-whom=main --signal=QUIT {vm.unit}", check=True)
    vm.wait_for("vCPU 1")
    told = vm.journal("--output=cat", "--grep=the vCPUs, asked for by SIGQUIT")
    assert "vCPU 0" in told
    assert "rip" in told.lower()
    assert vm.state == "running"
    assert "Where the vCPUs of VM" in vm.journal("--catalog")
    vm.stop()
    assert vm.show("Result") == "success"
