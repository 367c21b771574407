"""Guests that do harm by what they do or do not: deaf to the button, wedged, resetting without end, gone in the middle."""

from __future__ import annotations

import time

import pytest
from support.container import Container
from support.unit_vm import UnitVm, firmware_config
from support.vmm_process import complaints

PROMPT_SEC = 20.0


@pytest.mark.parametrize("variant", ["deaf", "wedged", "flood"])
def test_a_guest_that_ignores_the_button(vm: UnitVm, variant: str) -> None:
    """Halted for good, in a loop that it never leaves, or printing: it can be paused, and is forced when its time is over."""
    vm.configure(firmware_config(variant, service="shutdown_timeout = 1"))
    vm.start()
    begin = time.monotonic()
    for verb in ("Pause", "Resume", "PowerButton"):
        vm.call(verb)
    assert time.monotonic() - begin < PROMPT_SEC
    begin = time.monotonic()
    vm.stop()
    assert time.monotonic() - begin < 1 + PROMPT_SEC
    assert vm.show("Result") == "success"
    assert complaints(vm) == ["forced the VM to stop: the guest did not power off within 1 second"]


def test_a_guest_that_resets_without_end(vm: UnitVm) -> None:
    """Hundreds of resets a second are a handful of lines; callers are served; a stop waits for no more than one reset."""
    vm.configure(firmware_config("reset"))
    vm.start()
    vm.host.run("sleep 2")
    begin = time.monotonic()
    assert (vm.state, vm.get("LastExit")) == ("running", "reset")
    vm.call("Pause")
    assert vm.state == "paused"
    vm.call("Resume")
    assert time.monotonic() - begin < PROMPT_SEC
    vm.host.run("journalctl --sync")
    assert 1 <= vm.journal().count("the guest was reset") <= 10
    begin = time.monotonic()
    vm.stop()
    assert time.monotonic() - begin < PROMPT_SEC
    assert (vm.show("Result"), complaints(vm)) == ("success", [])


def test_a_stop_while_the_vm_is_resized(vm: UnitVm) -> None:
    """The guest does not answer the Resize: whoever asked is told, and the stop is an ordinary one."""
    vm.configure(firmware_config().replace("boot = 1", "boot = 1\nmax = 2"))
    vm.start()
    vm.wait_for("beat 1$")
    resize = f"busctl --timeout=60 call {vm.bus_name} /org/vmservice/VM1 org.vmservice.VM1 Resize y 2"
    vm.host.run(f"systemd-run --quiet --unit=resize --property=StandardError=file:/tmp/resize {resize}", check=True)
    busy = vm.bus_name + " /org/vmservice/VM1 org.vmservice.VM1 Resize y 1"
    vm.host.run(
        f"timeout 50 sh -c 'until busctl call {busy} 2>&1 | grep -q \"a Resize to 2\"; do sleep 0.05; done'", check=True
    )
    begin = time.monotonic()
    vm.stop()
    assert time.monotonic() - begin < PROMPT_SEC
    assert "power button" in vm.journal()
    assert (vm.show("Result"), complaints(vm)) == ("success", [])
    vm.host.run("timeout 50 sh -c 'while systemctl is-active --quiet resize; do sleep 0.05; done'", check=True)
    told = vm.host.run("cat /tmp/resize; rm /tmp/resize").stdout
    assert "the VM was shut down before the guest had answered a Resize to 2 vCPUs" in told
    vm.host.run("systemctl reset-failed resize")


def test_a_stop_right_after_a_reboot(vm: UnitVm) -> None:
    """The guest's new life is asked like its former one."""
    vm.start()
    vm.wait_for("beat 1$")
    vm.host.run(
        f"busctl call {vm.bus_name} /org/vmservice/VM1 org.vmservice.VM1 Reboot & systemctl stop {vm.unit}; wait", check=True
    )
    assert vm.show("Result") == "success"
    assert complaints(vm) == []


def test_machined_restarts_or_dies_under_a_vm(faulty_container: Container) -> None:
    """It finds the VM again, and its signals reach it."""
    vm = UnitVm(faulty_container, "kept")
    vm.configure(firmware_config())
    vm.start()
    try:
        vm.wait_for("beat 1$")
        pid = vm.main_pid()
        for command in ("systemctl restart systemd-machined", "systemctl kill --signal=KILL systemd-machined"):
            faulty_container.run(f"systemctl reset-failed systemd-machined; {command}", check=True)
            leader = f"machinectl show --property=Leader --value {vm.name}"
            faulty_container.run(f"timeout 50 sh -c 'until [ \"$({leader})\" = {pid} ]; do sleep 0.1; done'", check=True)
        assert vm.main_pid() == pid
        faulty_container.run(f"machinectl poweroff {vm.name}", check=True)
        vm.wait_inactive()
        assert (vm.show("Result"), complaints(vm)) == ("success", [])
    finally:
        vm.remove()


def test_without_logind(faulty_container: Container) -> None:
    """A host without it has VMs too; one line says what they lack. When it comes, they are told of the host's sleep."""
    vm = UnitVm(faulty_container, "sleepless")
    vm.configure(firmware_config())
    faulty_container.run("systemctl mask --runtime --now systemd-logind", check=True)
    try:
        vm.start()
        lacks = "systemd-logind is not there: the VM is not paused when the host sleeps"
        vm.wait_for(lacks)
        faulty_container.run("systemctl unmask --runtime systemd-logind; systemctl start systemd-logind", check=True)
        locked = f"systemd-inhibit --list --no-legend | grep -q 'vmservice {vm.name} '"
        faulty_container.run(f'timeout 50 sh -c "until {locked}; do sleep 0.1; done"', check=True)
        faulty_container.run("systemctl mask --runtime --now systemd-logind", check=True)
        assert vm.state == "running"
        vm.stop()
        assert vm.journal().count(lacks) == 1
        assert (vm.show("Result"), complaints(vm)) == ("success", [])
    finally:
        faulty_container.run("systemctl unmask --runtime systemd-logind")
        vm.remove()
