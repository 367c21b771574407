"""machinectl and the VMs: the real systemd-machined has each VM from start to end, and a host without one has VMs too."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from support.container import Container
from support.releases import every_release
from support.unit_vm import UnitVm, firmware_config


def machines(host: Container) -> dict[str, dict[str, str]]:
    """What `machinectl list` has, by name."""
    listed = host.run("machinectl list --output=json", check=True).stdout
    return {str(machine["machine"]): machine for machine in json.loads(listed or "[]")}


def leader(vm: UnitVm) -> int:
    return int(vm.host.run(f"machinectl show --property=Leader --value {vm.name}", check=True).stdout)


def wait_gone(vm: UnitVm) -> None:
    vm.host.run(f"timeout 50 sh -c 'while machinectl show {vm.name} > /dev/null 2>&1; do sleep 0.1; done'", check=True)


@every_release
def test_machinectl_shows_a_vm(container: Container, vm: UnitVm) -> None:
    vm.start()
    machine = machines(container)[vm.name]
    assert (machine["class"], machine["service"]) == ("vm", "vmservice")
    assert leader(vm) == vm.main_pid()
    assert f"Unit: {vm.unit}" in container.run(f"machinectl status {vm.name}", check=True).stdout


@every_release
def test_poweroff_presses_the_power_button(vm: UnitVm) -> None:
    vm.start()
    vm.wait_for("beat 1")
    vm.host.run(f"machinectl poweroff {vm.name}", check=True)
    vm.wait_inactive()
    assert "power button" in vm.journal()
    assert "forced" not in vm.journal()
    assert vm.show("Result") == "success"
    wait_gone(vm)


@every_release
def test_reboot_powers_the_guest_down_and_starts_it_again(vm: UnitVm) -> None:
    """In the same start of the unit: the same process, and no failure."""
    vm.start()
    vm.wait_for("beat 3$")
    pid = vm.main_pid()
    vm.host.run(f"machinectl reboot {vm.name}", check=True)
    runs = f'journalctl --unit={vm.unit} --output=cat | grep -cx "VM started"'
    vm.host.run(f"timeout 50 sh -c 'until [ $({runs}) = 2 ]; do sleep 0.1; done'", check=True)
    assert vm.main_pid() == leader(vm) == pid
    assert vm.state == "running"
    assert vm.journal().count("power button") == 1
    assert "forced" not in vm.journal()
    assert vm.show("NRestarts") == "0"
    vm.host.run(
        f"timeout 50 sh -c 'until systemctl show -P StatusText {vm.unit} | grep -q ^running; do sleep 0.1; done'", check=True
    )
    vm.stop()
    assert vm.show("Result") == "success"
    assert vm.journal().count("power button") == 2


@every_release
def test_terminate_stops_the_unit(vm: UnitVm) -> None:
    vm.start()
    vm.wait_for("beat 1")
    vm.host.run(f"machinectl terminate {vm.name}", check=True)
    vm.wait_inactive()
    assert vm.show("Result") == "success"
    wait_gone(vm)


@every_release
@pytest.mark.parametrize(
    "end",
    [
        lambda vm: vm.stop(),
        lambda vm: vm.call("PowerButton"),
        lambda vm: vm.host.run(f"kill -KILL {vm.main_pid()} && systemctl stop {vm.unit}", check=True),
    ],
    ids=["stop", "the guest powers off", "SIGKILL"],
)
def test_it_is_gone_with_the_vm(vm: UnitVm, end: Callable[[UnitVm], object]) -> None:
    vm.start()
    vm.wait_for("beat 1")
    assert leader(vm) == vm.main_pid()
    end(vm)
    vm.wait_inactive()
    wait_gone(vm)


@every_release
def test_a_vm_that_starts_again_is_registered_anew(vm: UnitVm) -> None:
    """At once, when machined has not noticed yet that the former process is gone; and each time."""
    vm.start()
    for _ in range(5):
        vm.wait_for("beat 1")
        vm.restart()
        assert leader(vm) == vm.main_pid()
    assert vm.show("ActiveState") == "active"
    assert vm.state == "running"


def test_a_restart_after_a_failure_is_registered_too(vm: UnitVm) -> None:
    vm.start()
    for restarts in (1, 2):
        vm.host.run(f"kill -KILL {vm.main_pid()}", check=True)
        vm.host.run(
            f"timeout 50 sh -c 'until [ $(systemctl show -P NRestarts {vm.unit}) = {restarts} ]"
            f" && systemctl is-active --quiet {vm.unit}; do sleep 0.1; done'",
            check=True,
        )
        assert leader(vm) == vm.main_pid()


@every_release
def test_a_name_that_is_no_host_name_is_noted(container: Container) -> None:
    vm = UnitVm(container, "under_score")
    vm.configure(firmware_config())
    try:
        vm.start()
        assert "not registered with systemd-machined" in vm.wait_for("systemd-machined")
        assert "Invalid machine name" in vm.journal()
        assert vm.show("ActiveState") == "active"
    finally:
        vm.remove()


def test_a_machine_of_another_keeps_its_name(container: Container, vm: UnitVm) -> None:
    container.run("systemd-run --unit=other sleep 1000", check=True)
    pid = container.run("systemctl show --property=MainPID --value other", check=True).stdout.strip()
    manager = "org.freedesktop.machine1 /org/freedesktop/machine1 org.freedesktop.machine1.Manager"
    try:
        container.run(f"busctl call {manager} RegisterMachine sayssus {vm.name} 0 test container {pid} ''", check=True)
        vm.start()
        vm.wait_for("not registered with systemd-machined")
        assert leader(vm) == int(pid)
    finally:
        container.run("systemctl stop other")


def test_a_host_without_machined_has_vms_too(own_container: Container) -> None:
    own_container.run("systemctl mask --now --runtime systemd-machined.service", check=True)
    vm = UnitVm(own_container, "demo")
    vm.configure(firmware_config())
    vm.start()
    assert vm.wait_for("systemd-machined").count("not registered") == 1
    assert vm.state == "running"
    assert vm.show("Result") == "success"


def test_a_machined_that_hangs_delays_a_start_by_seconds(own_container: Container) -> None:
    own_container.run("systemctl start systemd-machined && systemctl kill --signal=STOP systemd-machined", check=True)
    vm = UnitVm(own_container, "demo")
    vm.configure(firmware_config())
    vm.start()
    assert "not registered with systemd-machined" in vm.journal()
    assert vm.state == "running"
    own_container.run("systemctl kill --signal=KILL systemd-machined", check=True)
