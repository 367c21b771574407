"""The system bus's policy, with each bus daemon that Debian has: who may do what with a VM."""

from __future__ import annotations

import pytest
from support.container import Container
from support.releases import every_release
from support.unit_vm import OBJECT, UnitVm, firmware_config

NAME = f"org.vmservice.VM1.demo {OBJECT} org.vmservice.VM1"


@pytest.fixture(params=["dbus-daemon", "dbus-broker"])
def host(request: pytest.FixtureRequest, container: Container) -> Container:
    if request.param == "dbus-daemon":
        return container
    broker: Container = request.getfixturevalue("broker_container")
    return broker


@pytest.fixture
def running(host: Container) -> UnitVm:
    vm = UnitVm(host, "demo")
    vm.configure(firmware_config())
    vm.start()
    return vm


@every_release
def test_everybody_may_look_and_the_group_may_control(running: UnitVm) -> None:
    host = running.host
    try:
        nobody = host.run(f"runuser -u nobody -- busctl get-property {NAME} State", check=True)
        assert nobody.stdout == 's "running"\n'
        host.run(f"runuser -u nobody -- busctl introspect org.vmservice.VM1.demo {OBJECT}", check=True)

        refused = host.run(f"runuser -u nobody -- busctl call {NAME} Pause")
        assert refused.returncode != 0
        assert running.state == "running"

        host.run(f"usermod --append --groups vmservice alice && runuser -u alice -- busctl call {NAME} Pause", check=True)
        assert running.state == "paused"
    finally:
        host.run("gpasswd --delete alice vmservice", check=True)
        running.remove()


def test_nobody_else_may_take_the_name_of_a_vm(host: Container) -> None:
    command = (
        "runuser -u nobody -- busctl call org.freedesktop.DBus / org.freedesktop.DBus RequestName su org.vmservice.VM1.x 4"
    )
    refused = host.run(command)
    assert refused.returncode != 0
    assert "denied" in refused.stderr.lower() or "not allowed" in refused.stderr.lower()
