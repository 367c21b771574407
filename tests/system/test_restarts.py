"""What a unit does after its VM has failed: a VMM that crashed is started again, a guest that is lost too, but neither for
ever, and what no new start would help is left alone."""

from __future__ import annotations

import itertools

import pytest
from support.container import Container
from support.releases import every_release
from support.unit_vm import UnitVm, firmware_config


def wait_restarts(vm: UnitVm, count: int, timeout: int = 30) -> None:
    """Returns when it has been started anew so often, and is up."""
    reached = f"[ $(systemctl show -P NRestarts {vm.unit}) -ge {count} ] && systemctl is-active --quiet {vm.unit}"
    vm.host.run(f"timeout {timeout} sh -c 'until {reached}; do sleep 0.1; done'", timeout=timeout + 30, check=True)


@every_release
@pytest.mark.parametrize("signal", ["KILL", "SEGV", "ABRT"])
def test_a_vmm_that_crashed_is_started_anew(vm: UnitVm, signal: str) -> None:
    vm.start()
    vm.wait_for("beat 1")
    pid = vm.main_pid()
    vm.host.run(f"kill -{signal} {pid}", check=True)
    wait_restarts(vm, 1)
    vm.wait_on_bus()
    assert vm.main_pid() != pid
    assert vm.state == "running"
    vm.stop()
    assert vm.show("Result") == "success"


@every_release
def test_a_sigbus_ends_a_vmm_with_a_sentence(vm: UnitVm) -> None:
    """It comes from an access to a page that is gone, and the process cannot speak then."""
    vm.start()
    vm.wait_for("beat 1")
    vm.host.run(f"kill -BUS {vm.main_pid()}", check=True)
    wait_restarts(vm, 1)
    said = vm.journal("--output=cat", "--priority=err")
    assert "was ended by SIGBUS: a page of its memory is gone. Either somebody has cut short the file that [memory]" in said
    vm.stop()
    assert vm.journal("--output=cat", "--priority=err").count("SIGBUS:") == 1


@every_release
@pytest.mark.parametrize("unit", ["/usr/lib/systemd/system/vm@.service", "/usr/lib/systemd/user/vm@.service"])
def test_the_restart_settings_are_known_to_systemd(container: Container, unit: str) -> None:
    """RestartSteps= is from 254; to 252 it would be an unknown key, once in the journal at each load."""
    for instance in ("one", "two"):
        container.run(f"systemctl cat vm@{instance}.service", check=True)
    container.run(f"systemd-analyze verify --man=no {unit}", check=True)
    # Such complaints begin with the file and the line: /usr/lib/systemd/system/vm@.service:24: Unknown key …
    # What else systemd says here is not about units: on a busy host it may reap a service that has just said STOPPING=1, as
    # machined and hostnamed do when they are idle, before it reads that ("Cannot find unit for notify message of PID …").
    complaints = container.run("journalctl --output=cat _PID=1 --grep='^/.*(service|conf):[0-9]+: '").stdout.splitlines()
    # The drop-ins of other tests lie in /run/systemd/system.
    assert [line for line in complaints if not line.startswith("/run/systemd/system/")] == []
    version = int(container.run("systemctl --version", check=True).stdout.split()[1])
    steps = container.run("systemctl show -P RestartSteps vm@one.service", check=True).stdout.strip()
    assert steps == ("5" if version >= 254 else "")
    assert container.run("systemctl show -P RestartUSec vm@one.service", check=True).stdout == "2s\n"


def test_a_guest_that_panics_at_boot_is_started_more_and_more_slowly(vm: UnitVm) -> None:
    vm.configure(firmware_config("panic"))
    restarted = f"until [ $(systemctl show -P NRestarts {vm.unit}) -ge 2 ]; do sleep 0.1; done"
    vm.host.run(f"systemctl start --no-block {vm.unit}; timeout 50 sh -c '{restarted}'", check=True)
    times = vm.journal("--output=short-unix", "--grep=the guest panicked").splitlines()
    seconds = [float(line.split()[0]) for line in times]
    pauses = [later - former for former, later in itertools.pairwise(seconds)]
    assert pauses == sorted(pauses)
    assert pauses[0] > 1.9


@every_release
@pytest.mark.parametrize(
    ("text", "says", "line"),
    [
        (firmware_config("panic"), "the guest panicked", "the guest panicked; VM shut down"),
        (firmware_config("reset", service='on_reset = "exit"'), "the guest was reset", "VM shut down (reset)"),
    ],
    ids=["panics", "resets"],
)
def test_a_guest_that_is_lost_again_and_again_is_given_up(vm: UnitVm, text: str, says: str, line: str) -> None:
    vm.configure(text)
    # The unit's own limit, sooner.
    with vm.drop_in("[Unit]\nStartLimitBurst=4\n[Service]\nRestartSec=100ms\nRestartMaxDelaySec=infinity\nRestartSteps=0\n"):
        vm.host.run(f"systemctl start --no-block {vm.unit}", check=True)
        vm.host.run(f"timeout 60 sh -c 'until systemctl is-failed --quiet {vm.unit}; do sleep 0.1; done'", check=True)
        assert vm.show("NRestarts") == "4"
        assert vm.show("StatusText").startswith(f"{says}; the unit starts it anew, until its start limit is reached")
        journal = vm.journal()
        assert journal.count(line) == 4
        assert "Start request repeated too quickly" in journal
        refused = vm.host.run(f"systemctl start {vm.unit}")
        assert refused.returncode != 0
        vm.configure(firmware_config())
        vm.host.run(f"systemctl reset-failed {vm.unit}", check=True)
        vm.start()
        assert vm.state == "running"


@every_release
@pytest.mark.parametrize(
    ("text", "status"),
    [("[kernel\n", 78), (firmware_config().replace("/lab/beat.bin", "/lab/none.bin"), 78)],
    ids=["no TOML", "no firmware"],
)
def test_what_no_new_start_would_help_is_not_started_anew(vm: UnitVm, text: str, status: int) -> None:
    vm.configure(text)
    assert vm.host.run(f"systemctl start {vm.unit}; sleep 3; ! systemctl is-active --quiet {vm.unit}").returncode == 0
    assert vm.show("ExecMainStatus") == str(status)
    assert vm.show("NRestarts") == "0"
    assert vm.show("ActiveState") == "failed"


@every_release
def test_a_name_that_another_has_is_not_tried_again(container: Container, vm: UnitVm) -> None:
    """Exit status 69."""
    container.run(
        "systemd-run --quiet --collect --unit=squatter --uid=vmservice -- python3 -c '"
        "import asyncio, dbus_next, dbus_next.aio as aio\n"
        "async def own():\n"
        "    bus = await aio.MessageBus(bus_type=dbus_next.BusType.SYSTEM).connect()\n"
        f'    await bus.request_name("{vm.bus_name}")\n'
        "    await asyncio.sleep(1000)\n"
        "asyncio.run(own())'",
        check=True,
    )
    try:
        vm.wait_on_bus()
        assert container.run(f"systemctl start {vm.unit}; sleep 3; ! systemctl is-active --quiet {vm.unit}").returncode == 0
        assert vm.show("ExecMainStatus") == "69"
        assert vm.show("NRestarts") == "0"
    finally:
        container.run("systemctl stop squatter")
