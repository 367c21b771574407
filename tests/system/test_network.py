"""Networks at taps, under systemd: descriptors that the VM's own process could not open, and taps that come and go with it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from support.releases import every_release
from support.unit_vm import UnitVm, firmware_config

pytestmark = every_release


class NetworkVm:
    def __init__(self, vm: UnitVm) -> None:
        self.vm = vm
        self.host = vm.host
        self.tap = f"vt-{vm.name}"
        self.unit = f"vm-tap@{vm.name}:lan.service"

    def configure(self, keys: str) -> None:
        self.vm.configure(f'{firmware_config()}[[network]]\nname = "lan"\n{keys}')

    def make_tap(self, words: str) -> None:
        self.host.run(f"ip tuntap add {self.tap} mode tap {words} && ip link set {self.tap} up", check=True)

    def links(self) -> dict[str, dict[str, object]]:
        found = json.loads(self.host.run("ip -j -d link", check=True).stdout)
        return {str(one["ifname"]): one for one in found}

    def fails(self) -> str:
        """What the VM says when it cannot be started. It would be tried again: the tap may come."""
        assert self.host.run(f"systemctl start {self.vm.unit}").returncode != 0
        self.host.run(f"systemctl stop {self.vm.unit}; systemctl reset-failed {self.vm.unit}")
        return self.vm.journal()

    def remove(self) -> None:
        self.vm.remove()
        self.host.run(f"ip link del {self.tap}; ip link del br-{self.vm.name}")


@pytest.fixture
def lan(vm: UnitVm) -> Iterator[NetworkVm]:
    lan = NetworkVm(vm)
    yield lan
    lan.remove()


def test_a_tap_that_the_administrator_has_made(lan: NetworkVm) -> None:
    vm = lan.vm
    lan.make_tap("user vmservice")
    lan.configure(f'tap = "{lan.tap}"\nmac = "02:00:00:00:00:01"\n')
    vm.start()
    assert vm.state == "running"
    (device,) = [one for one in vm.get("Devices") if one[0] == "network"]
    assert (device[1], device[2]["tap"]["data"], device[2]["mac"]["data"]) == ("lan", lan.tap, "02:00:00:00:00:01")
    assert device[2]["mtu"]["data"] == 1500
    assert "LOWER_UP" in lan.links()[lan.tap]["flags"]  # type: ignore[operator]
    pid = vm.main_pid()
    own = lan.host.run(f"nsenter --target {pid} --net ip -j link", check=True).stdout
    assert [one["ifname"] for one in json.loads(own)] == ["lo"], "the VMM itself sees no network"
    assert lan.host.run(f"nsenter --target {pid} --mount test -e /dev/net/tun").returncode != 0
    assert lan.host.run(f"readlink /proc/{pid}/fd/*", check=True).stdout.count("/net/tun\n") == 1
    vm.restart()
    assert vm.state == "running"
    pid = vm.main_pid()
    vm.host.run(f"systemctl kill --kill-whom=main --signal=KILL {vm.unit}", check=True)
    again = f'[ "$(systemctl show -P NRestarts {vm.unit})" = 1 ] && [ "$(systemctl is-active {vm.unit})" = active ]'
    vm.host.run(f"timeout 60 sh -c 'until {again}; do sleep 0.2; done'", timeout=90, check=True)
    assert vm.main_pid() != pid
    assert "LOWER_UP" in lan.links()[lan.tap]["flags"]  # type: ignore[operator]
    vm.stop()
    assert "LOWER_UP" not in lan.links()[lan.tap]["flags"]  # type: ignore[operator]


def test_a_vm_without_a_network_has_no_such_descriptor(vm: UnitVm) -> None:
    vm.start()
    opened = vm.host.run(f"readlink /proc/{vm.main_pid()}/fd/*", check=True).stdout
    assert "net/tun" not in opened
    assert "vhost" not in opened
    vm.stop()


def test_a_tap_comes_and_goes_with_its_vm(lan: NetworkVm) -> None:
    vm, bridge = lan.vm, f"br-{lan.vm.name}"
    lan.host.run(f"ip link add {bridge} type bridge", check=True)
    lan.configure(f'bridge = "{bridge}"\nqueues = 2\nmtu = 1400\n')
    vm.start()
    (device,) = [one for one in vm.get("Devices") if one[0] == "network"]
    tap = device[2]["tap"]["data"]
    link = lan.links()[tap]
    assert (link["master"], link["mtu"]) == (bridge, 1400)
    account = lan.host.run("id -u vmservice", check=True).stdout.strip()
    assert str(link["linkinfo"]["info_data"]["user"]) in (account, "vmservice")  # type: ignore[index]
    assert device[2]["bridge"]["data"] == bridge
    vm.restart()
    assert vm.state == "running"
    assert tap in lan.links()
    vm.stop()
    lan.host.run(f"timeout 50 sh -c 'while ip link show {tap} 2> /dev/null; do sleep 0.1; done'", check=True)


def test_what_is_missing(lan: NetworkVm) -> None:
    lan.configure(f'tap = "{lan.tap}"\n')
    expected = f"network lan: the tap {lan.tap} is not there, or does not belong to the account vmservice"
    assert expected in lan.fails()
    lan.make_tap("user root")
    assert f"network lan: the tap {lan.tap} belongs to another account; expected the account vmservice" in lan.fails()
    said = lan.host.run(f"vmservice check-config {lan.vm.name}")
    assert said.returncode == 0, said.stderr
    lan.configure('bridge = "br-none"\n')
    said = lan.host.run(f"vmservice check-config {lan.vm.name}")
    assert (said.returncode, "network lan: there is no bridge br-none" in said.stderr) == (78, True)
    assert f"the journal of {lan.unit} may say why" in lan.fails()
    why = lan.host.run(f"journalctl --no-pager --output=cat --unit={lan.unit}", check=True).stdout
    assert "vmservice: network lan: there is no bridge br-none" in why


def test_the_sandbox_of_the_helper(lan: NetworkVm) -> None:
    """On a scale of 0 (safe) to 10; it runs as root, with the one capability that it needs."""
    for unit, most in (("vm-tap@x:y.service", 3.0), (lan.vm.unit, 0.4)):
        line = lan.host.run(f"systemd-analyze security --no-pager {unit} | grep 'Overall exposure'", check=True).stdout
        assert float(line.partition(": ")[2].split()[0]) <= most, line
