"""A network by passt under systemd: a unit of its own that comes and goes with the VM, in a sandbox, with forwarded ports.

The guests here have no driver; `support/passt_driver.py` has one in a guest's place. Debian 13's passt serves vhost-user, that
of Debian 12 speaks over a stream.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.back_end_units import BackEndUnits
from support.container import Container
from support.releases import every_release
from support.unit_vm import UnitVm, firmware_config
from support.uplink import UPLINK

EXPOSURE_MAX = 2.2
_SUPPORT = Path(__file__).parents[1] / "support"


class PasstVm(BackEndUnits):
    """The VM `vm` with a network called `lan`, whose units are `service` and `socket`."""

    def __init__(self, vm: UnitVm) -> None:
        super().__init__(vm, "passt", "lan")
        self.configure()

    def configure(self, keys: str = 'forward = ["8080:80/tcp", "5300-5301:53-54/udp"]\n') -> None:
        self.vm.configure(firmware_config() + f'[[network]]\nname = "lan"\nmode = "passt"\n{keys}')

    def refused(self) -> str:
        """What the journal says of a start that fails; behind it what passt's unit says."""
        assert self.host.run(f"systemctl start {self.vm.unit}", timeout=120).returncode != 0
        self.host.run("journalctl --sync")
        return self.vm.journal() + self.said()


@pytest.fixture
def passt(vm: UnitVm) -> Iterator[PasstVm]:
    vm.host.run(UPLINK, check=True)
    yield PasstVm(vm)
    vm.remove()


@every_release
def test_passt_comes_and_goes_with_the_vm(passt: PasstVm) -> None:
    vm = passt.vm
    vm.start()
    assert vm.state == "running"
    assert (passt.state(passt.service), passt.state(passt.socket)) == ("active", "active")
    shown = passt.host.run(f"systemctl show --property=Slice,User --value {passt.service}", check=True).stdout.split()
    assert sorted(shown) == ["machine.slice", "vmservice"]
    listening = passt.host.run("ss --no-header --listening --tcp --udp --numeric", check=True).stdout
    for port in (8080, 5300, 5301):
        assert f":{port} " in listening
    first = passt.pid()
    vm.restart()
    assert vm.state == "running"
    assert passt.pid() not in (0, first)
    vm.stop()
    passt.wait(passt.service, "inactive")
    passt.wait(passt.socket, "inactive")
    assert passt.host.run(f"test -e /run/vmservice-passt/{vm.name}/lan").returncode != 0


def test_what_the_bus_says_of_it(passt: PasstVm) -> None:
    passt.configure('forward = ["8080:80"]\nmac = "02:00:00:00:00:07"\n')
    passt.vm.start()
    (network,) = (values for kind, name, values in passt.vm.get("Devices") if (kind, name) == ("network", "lan"))
    assert {key: value["data"] for key, value in network.items()} == {
        "mode": "passt",
        "mac": "02:00:00:00:00:07",
        "mtu": 65520,
        "link": "up",
        "forward": "8080:80/tcp",
        "socket": f"/run/vmservice-passt/{passt.vm.name}/lan",
        "vhost_user": True,
    }


@every_release
def test_a_vm_outlives_its_passt(passt: PasstVm) -> None:
    """Killed, restarted, in any state of the VM; each machine has one of its own."""
    vm, host = passt.vm, passt.host
    vm.start()
    first = passt.pid()
    host.run(f"kill -KILL {first}", check=True)
    passt.wait(passt.service, "failed")
    assert vm.state == "running"
    vm.call("Reboot")
    passt.wait(passt.service, "active")
    assert passt.pid() not in (0, first)
    vm.call("Pause")
    host.run(f"systemctl restart {passt.service}", check=True)
    vm.call("Resume")
    vm.call("Reboot")
    assert vm.state == "running"
    for _ in range(10):  # more often than systemd starts a unit that is not told otherwise
        vm.call("Reboot")
    passt.wait(passt.service, "active")
    assert vm.state == "running"
    vm.stop()
    assert vm.show("Result") == "success"


@every_release
def test_the_sandbox_of_passt(passt: PasstVm) -> None:
    passt.host.run("install -d /var/lib/vmservice/other && echo secret > /var/lib/vmservice/other/secret", check=True)
    passt.vm.start()
    status = passt.host.run(f"cat /proc/{passt.pid()}/status", check=True).stdout.split()
    for name in ("CapEff:", "CapPrm:", "CapAmb:"):
        assert int(status[status.index(name) + 1], 16) == 0, status
    assert status[status.index("Seccomp:") + 1] == "2"
    inside = f"nsenter --mount --target {passt.pid()} --root=/proc/{passt.pid()}/root --"
    assert passt.host.run(f"{inside} /bin/true").returncode != 0, "passt has an empty root of its own"
    overall = passt.host.run(f"systemd-analyze security --no-pager {passt.service} | tail -n 1", check=True).stdout
    assert float(overall.partition(": ")[2].split()[0]) <= EXPOSURE_MAX, overall


def test_no_other_vm_reaches_the_socket(passt: PasstVm, container: Container) -> None:
    other = UnitVm(container, "neighbour")
    other.configure(firmware_config())
    try:
        passt.vm.start()
        other.start()
        socket = f"/run/vmservice-passt/{passt.vm.name}/lan"
        seen = {
            vm.name: container.run(f"nsenter --mount --target {vm.main_pid()} -- test -S {socket}").returncode
            for vm in (passt.vm, other)
        }
        assert seen == {passt.vm.name: 0, "neighbour": 1}
    finally:
        other.remove()


@every_release
def test_a_low_port_takes_the_one_capability_for_it(passt: PasstVm) -> None:
    passt.configure('forward = ["80:8080/tcp"]\n')
    passt.vm.start()
    assert ":80 " in passt.host.run("ss --no-header --listening --tcp --numeric", check=True).stdout
    status = passt.host.run(f"cat /proc/{passt.pid()}/status", check=True).stdout.split()
    assert int(status[status.index("CapEff:") + 1], 16) == 0, "and passt gives it back"


@pytest.mark.parametrize(
    ("prepare", "forward", "status", "said"),
    [
        ("mv /usr/bin/passt /usr/bin/away", "8080", "69", "the network lan needs passt, and there is no /usr/bin/passt"),
        (
            "systemd-run --quiet --unit=holder --service-type=exec python3 -c"
            " 'import socket, time; s = socket.create_server((\"127.0.0.1\", 8080)); time.sleep(600)'"
            " && timeout 50 sh -c 'until ss --listening --tcp --numeric | grep --quiet :8080; do sleep 0.1; done'",
            "8080",
            "71",
            "the network lan forwards port 8080/tcp of the host, and somebody listens there already; ss -lntup says who",
        ),
        ("true", "198.51.100.1:8080", "71", "forwards port 8080/tcp of the host, and the host has no address 198.51.100.1"),
    ],
    ids=["no passt", "a port in use", "another host's address"],
)
def test_what_is_wrong_is_said(passt: PasstVm, prepare: str, forward: str, status: str, said: str) -> None:
    passt.configure(f'forward = ["{forward}"]\n')
    passt.host.run(prepare, check=True)
    try:
        journal = passt.refused()
        assert said in journal
        if status == "71":
            assert (
                f"the passt of the network lan has closed the connection; the journal of {passt.service} may say why" in journal
            )
        assert passt.vm.show("ExecMainStatus") == status
    finally:
        passt.host.run("[ ! -e /usr/bin/away ] || mv /usr/bin/away /usr/bin/passt; systemctl stop holder")


@every_release
def test_the_units_are_understood(container: Container) -> None:
    assert container.run("systemd-analyze verify --man=no vm-passt@web.service 2>&1", check=True).stdout == ""


# The data, by a driver of the test's own


@every_release
@pytest.mark.parametrize(
    ("scenario", "seen"),
    [
        ("traffic", ["arp ", "forwarded", "paused", "reset"]),
        ("killed", ["again: address 192.0.2.1", "after a pause: address 192.0.2.1"]),
        ("lies", ["a driver that lies has "]),
        ("datagrams", ["after datagrams: address 192.0.2.1"]),
    ],
)
def test_a_driver(passt: PasstVm, container: Container, scenario: str, seen: list[str]) -> None:
    """passt runs as its unit has it, and the driver is in the VM's place."""
    passt.configure(f'forward = ["{"5300:53/udp" if scenario == "datagrams" else "8080:80/tcp"}"]\n')
    folder = container.shared / "support"
    folder.mkdir(exist_ok=True)
    for name in ("passt_driver.py", "virtqueue.py"):
        shutil.copy(_SUPPORT / name, folder)
    container.run(f"systemctl start {passt.socket}", check=True)
    try:
        path = f"/run/vmservice-passt/{passt.vm.name}:lan"
        ran = container.run(f"cd /lab; PYTHONPATH=/lab python3 /lab/support/passt_driver.py {path} {passt.service} {scenario}")
        assert ran.returncode == 0, ran.stdout + ran.stderr + passt.said()
        is_by_vhost_user = container.release == "trixie" and scenario != "datagrams"
        way = "vhost-user, features 0x104008000" if is_by_vhost_user else "stream"
        assert f"{way}\naddress 192.0.2.1, mtu 65520" in ran.stdout
        for line in seen:
            assert line in ran.stdout
    finally:
        container.run(f"systemctl stop {passt.socket} {passt.service}")
