"""org.vmservice.Manager1 as it is installed: the bus starts it, it shows what becomes of VMs, and it can do nothing to them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.container import Container
from support.releases import every_release
from support.unit_vm import UnitVm, firmware_config

NAME = "org.vmservice.Manager1"
PATH = "/org/vmservice/Manager1"
UNIT = "vmservice-manager.service"
WATCHED = "/run/watched"
TAKE_NAME = f"busctl call org.freedesktop.DBus / org.freedesktop.DBus RequestName su {NAME} 4"
SCRIPT = Path(__file__).parents[1] / "support/manager_watch.py"


class Watch:
    """manager_watch.py, as a unit of its own."""

    def __init__(self, host: Container) -> None:
        self._host = host
        (host.shared / SCRIPT.name).write_bytes(SCRIPT.read_bytes())
        host.run(
            f"systemd-run --quiet --unit=watch --property=StandardOutput=truncate:{WATCHED}"
            f" /usr/bin/python3 /lab/{SCRIPT.name}",
            check=True,
        )
        self.until("watching")

    def lines(self) -> list[str]:
        return self._host.run(f"cat {WATCHED}", check=True).stdout.splitlines()

    def until(self, line: str, times: int = 1) -> None:
        """Returns when there was this line, so often."""
        count = f"grep --count --fixed-strings --line-regexp -- {shlex.quote(line)} {WATCHED}"
        loop = f'until [ "$({count})" -ge {times} ]; do sleep 0.1; done'
        waited = self._host.run(f"timeout 60 bash -c {shlex.quote(loop)}", timeout=90)
        assert waited.returncode == 0, f"no {line!r}, {times} times: {self.lines()}\n{self._journal()}"

    def close(self) -> None:
        self._host.run("systemctl stop watch.service; systemctl reset-failed watch.service")

    def _journal(self) -> str:
        return self._host.run(f"journalctl --no-pager --lines=30 --unit={UNIT} --unit=watch").stdout


@pytest.fixture
def pair(container: Container) -> Iterator[tuple[UnitVm, UnitVm]]:
    vms = UnitVm(container, "one"), UnitVm(container, "web-2")
    for vm in vms:
        vm.configure(firmware_config())
    container.run(f"systemctl stop {UNIT}", check=True)
    yield vms
    for vm in vms:
        vm.remove()


@pytest.fixture
def watch(container: Container, pair: tuple[UnitVm, UnitVm]) -> Iterator[Watch]:
    """With the VMs of `pair` there."""
    watch = Watch(container)
    yield watch
    watch.close()


def pid(host: Container) -> int:
    return int(host.run(f"systemctl show --property=MainPID --value {UNIT}", check=True).stdout)


@every_release
def test_the_bus_starts_it_for_anybody(container: Container, pair: tuple[UnitVm, UnitVm]) -> None:
    assert pid(container) == 0
    listed = container.run(f"runuser -u nobody -- busctl --json=short call {NAME} {PATH} {NAME} ListVMs", check=True).stdout
    shown = dict(json.loads(listed)["data"][0])
    assert {name: shown[name] for name in ("one", "web-2")} == {"one": f"{PATH}/vm/one", "web-2": f"{PATH}/vm/web_2d2"}
    assert container.run(f"stat --format=%U /proc/{pid(container)}", check=True).stdout == "vmservice-manager\n"

    tree = container.run(f"runuser -u nobody -- busctl tree --list {NAME}", check=True).stdout.split()
    assert {"/org/vmservice", PATH, f"{PATH}/vm", f"{PATH}/vm/one", f"{PATH}/vm/web_2d2"} <= set(tree)
    table = container.run(f"busctl introspect {NAME} {PATH}/vm/web_2d2", check=True).stdout
    assert '.Unit property s "vm@web-2.service" const' in " ".join(table.split())
    refused = container.run(f"runuser -u vmservice -- {TAKE_NAME}")
    assert refused.returncode != 0

    container.run(f"systemctl stop {UNIT}", check=True)
    assert container.run(f"systemctl show --property=Result --value {UNIT}", check=True).stdout == "success\n"
    container.run(f"busctl call {NAME} {PATH} {NAME} GetVM s one", check=True)


@every_release
def test_what_becomes_of_vms_is_told(container: Container, pair: tuple[UnitVm, UnitVm], watch: Watch) -> None:
    one, two = pair
    watch.until("one.ActiveState=inactive")
    one.start()
    watch.until("one.State=running")
    watch.until("one.BusName=org.vmservice.VM1.one")
    watch.until("one.ActiveState=active")
    one.call("Pause")
    watch.until("one.State=paused")
    one.call("Resume")
    watch.until("one.State=running", 2)
    one.stop()
    watch.until("one.ActiveState=inactive", 2)
    watch.until("one.BusName=", 2)

    container.run("cp /etc/vmservice/one.toml /etc/vmservice/three.toml", check=True)
    watch.until("+ three")
    container.run("rm /etc/vmservice/three.toml", check=True)
    watch.until("- three")

    two.configure(firmware_config().replace("/lab/beat.bin", "/nowhere"))
    assert container.run(f"systemctl start {two.unit}").returncode != 0
    watch.until("web-2.ActiveState=failed")
    (reason,) = [line for line in watch.lines() if line.startswith("web-2.Reason=") and line != "web-2.Reason="]
    assert "/nowhere" in reason
    container.run("rm /etc/vmservice/web-2.toml", check=True)
    watch.until("web-2.HasConfiguration=False")
    container.run(f"systemctl reset-failed {two.unit}", check=True)
    watch.until("- web-2")
    said = container.run(f"journalctl --no-pager --output=cat _SYSTEMD_UNIT={UNIT}", check=True).stdout
    assert said == ""


@every_release
def test_systemd_is_replaced_under_it(container: Container, pair: tuple[UnitVm, UnitVm], watch: Watch) -> None:
    before = pid(container)
    for number, command in enumerate(("daemon-reload", "daemon-reexec"), 1):
        container.run(f"systemctl {command}", check=True)
        pair[0].start()
        watch.until("one.ActiveState=active", number)
        pair[0].stop()
        watch.until("one.ActiveState=inactive", number + 1)
    assert pid(container) == before


@every_release
def test_the_bus_restarts(own_container: Container) -> None:
    host = own_container
    vm = UnitVm(host, "demo")
    vm.configure(firmware_config())
    vm.start()
    get = f"busctl get-property {NAME} {PATH}/vm/demo {NAME}.VM State"
    assert host.run(get, check=True).stdout == 's "running"\n'
    before = pid(host)
    host.run("systemctl restart dbus.service", check=True)
    vm.wait_on_bus()
    vm.call("Pause")
    host.run(f'timeout 60 sh -c \'until [ "$({get})" = "s \\"paused\\"" ]; do sleep 0.2; done\'', timeout=90, check=True)
    assert pid(host) == before


def test_with_dbus_broker(broker_container: Container) -> None:
    host = broker_container
    vm = UnitVm(host, "demo")
    vm.configure(firmware_config())
    watch = Watch(host)
    vm.start()
    watch.until("demo.State=running")
    watch.until("demo.ActiveState=active")
    vm.call("Pause")
    watch.until("demo.State=paused")
    host.run(f"runuser -u nobody -- busctl call {NAME} {PATH} {NAME} GetVM s demo", check=True)
    refused = host.run(f"runuser -u vmservice -- {TAKE_NAME}")
    assert refused.returncode != 0


@every_release
def test_its_sandbox(container: Container) -> None:
    assert container.run(f"systemd-analyze verify --man=no {UNIT} 2>&1", check=True).stdout == ""
    container.run(f"systemd-analyze security --no-pager --threshold=12 {UNIT}", check=True)


@every_release
def test_a_users_own(container: Container) -> None:
    container.run("loginctl enable-linger alice", check=True)
    try:
        container.run("timeout 30 sh -c 'until [ -S /run/user/1000/bus ]; do sleep 0.1; done'", check=True)
        alice = (
            "runuser --user alice -- env XDG_RUNTIME_DIR=/run/user/1000 DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/1000/bus"
        )
        call = f"{alice} busctl --user --json=short call {NAME} {PATH} {NAME} ListVMs"
        assert json.loads(container.run(call, check=True).stdout)["data"] == [[]]
        container.run(f"{alice} sh -c 'mkdir -p ~/.config/vmservice && touch ~/.config/vmservice/mine.toml'", check=True)
        assert json.loads(container.run(call, check=True).stdout)["data"] == [[["mine", f"{PATH}/vm/mine"]]]
        state = container.run(f"{alice} busctl --user get-property {NAME} {PATH}/vm/mine {NAME}.VM ActiveState", check=True)
        assert state.stdout == 's "inactive"\n'
        assert container.run(f"{alice} systemctl --user is-active {UNIT}", check=True).stdout == "active\n"
    finally:
        container.run("loginctl disable-linger alice; loginctl terminate-user alice; rm -rf /home/alice/.config", check=True)
        container.run("timeout 30 sh -c 'while [ -e /run/user/1000 ]; do sleep 0.1; done'", check=True)
