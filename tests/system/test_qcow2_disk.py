"""A disk in qcow2 under systemd: its daemon is a unit of its own that comes and goes with the VM; the VM outlives its end."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from support.back_end_units import BackEndUnits
from support.container import Container
from support.releases import every_release
from support.unit_vm import NoSuchLine, UnitVm, firmware_config

pytestmark = every_release

EXPOSURE_MAX = 0.2


class DiskVm(BackEndUnits):
    """The VM `vm` with a disk called `root`, whose units are `service` and `socket`."""

    def __init__(self, vm: UnitVm, image: str = "") -> None:
        super().__init__(vm, "disk", "root")
        self.folder = f"/var/lib/vmservice/{vm.name}"
        self.image = image or f"{self.folder}/disk.qcow2"
        self.host.run(
            f"install -d -o vmservice -m 700 {self.folder} && qemu-img create -q -f qcow2 '{self.image}' 64M"
            f" && chown vmservice: '{self.image}'",
            check=True,
        )
        self.configure()

    def configure(self, keys: str = "") -> None:
        disk = f'[[disk]]\nname = "root"\nformat = "qcow2"\npath = "{self.image}"\n{keys}'
        self.vm.configure(firmware_config() + disk)

    def remove(self) -> None:
        self.vm.remove()
        self.host.run(f"rm -rf {self.folder} '{self.image}'")


@pytest.fixture
def disk(vm: UnitVm) -> Iterator[DiskVm]:
    disk = DiskVm(vm)
    yield disk
    disk.remove()


def test_the_daemon_comes_and_goes_with_the_vm(disk: DiskVm) -> None:
    vm = disk.vm
    vm.start()
    assert vm.state == "running"
    assert (disk.state(disk.service), disk.state(disk.socket)) == ("active", "active")
    shown = disk.host.run(f"systemctl show --property=Slice,User --value {disk.service}", check=True).stdout.split()
    assert sorted(shown) == ["machine.slice", "vmservice"]
    opened = disk.host.run(f"readlink /proc/{disk.pid()}/fd/*", check=True).stdout
    assert disk.image in opened
    first = disk.pid()
    vm.restart()
    assert vm.state == "running"
    assert disk.pid() not in (0, first)
    vm.stop()
    disk.wait(disk.service, "inactive")
    disk.wait(disk.socket, "inactive")
    assert disk.host.run(f"test -e /run/vmservice-disk/{vm.name}/root").returncode != 0


def test_a_vm_that_ends_by_itself_takes_its_daemon_along(disk: DiskVm) -> None:
    disk.vm.start()
    disk.vm.call("PowerButton")
    disk.vm.wait_inactive()
    disk.wait(disk.service, "inactive")
    disk.wait(disk.socket, "inactive")


def test_a_vmm_that_is_killed_is_started_anew_with_a_daemon(disk: DiskVm) -> None:
    disk.vm.start()
    first, daemon = disk.vm.main_pid(), disk.pid()
    disk.host.run(f"kill -KILL {first}", check=True)
    command = f"until [ $(systemctl show --property=MainPID --value {disk.vm.unit}) -gt {first} ]; do sleep 0.1; done"
    disk.host.run(f"timeout 60 sh -c '{command}'", check=True)
    disk.vm.wait_on_bus()
    assert disk.vm.state == "running"
    assert disk.pid() not in (0, daemon)


def test_a_daemon_that_dies_is_started_by_its_socket_and_the_vm_runs_on(disk: DiskVm) -> None:
    disk.vm.start()
    first = disk.pid()
    disk.host.run(f"kill -KILL {first}", check=True)
    disk.wait(disk.service, "failed")
    assert disk.vm.state == "running"
    disk.vm.call("Reboot")
    disk.wait(disk.service, "active")
    assert disk.pid() not in (0, first)
    assert disk.vm.state == "running"
    disk.vm.call("Pause")
    disk.host.run(f"systemctl restart {disk.service}", check=True)
    disk.vm.call("Resume")
    assert disk.vm.state == "running"
    disk.vm.call("Reboot")
    assert disk.vm.state == "running"


def test_the_sandbox_of_the_daemon(disk: DiskVm) -> None:
    disk.host.run(
        "install -d -o vmservice /var/lib/vmservice/other && echo secret > /var/lib/vmservice/other/secret", check=True
    )
    disk.vm.start()
    inside = f"nsenter --mount --target {disk.pid()} --"
    assert "secret" not in disk.host.run(f"{inside} cat /var/lib/vmservice/other/secret").stdout
    assert disk.host.run(f"{inside} touch {disk.folder}/more /etc/more").returncode != 0
    assert disk.host.run(f"{inside} sh -c ': >> {disk.image}'").returncode == 0
    status = disk.host.run(f"cat /proc/{disk.pid()}/status", check=True).stdout.split()
    assert int(status[status.index("CapBnd:") + 1], 16) == 0
    said = disk.host.run(f"systemd-analyze security --json=short {disk.service}")
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)
    overall = disk.host.run(f"systemd-analyze security --no-pager {disk.service} | tail -n 1", check=True).stdout
    exposure = float(overall.partition(": ")[2].split()[0])
    assert exposure <= EXPOSURE_MAX, overall


def test_no_other_vm_reaches_the_socket(disk: DiskVm, container: Container) -> None:
    other = UnitVm(container, "neighbour")
    other.configure(firmware_config())
    try:
        disk.vm.start()
        other.start()
        socket = f"/run/vmservice-disk/{disk.vm.name}/root"
        seen = {
            vm.name: container.run(f"nsenter --mount --target {vm.main_pid()} -- test -S {socket}").returncode
            for vm in (disk.vm, other)
        }
        assert seen == {disk.vm.name: 0, "neighbour": 1}
    finally:
        other.remove()


def test_an_image_with_an_odd_name_elsewhere(vm: UnitVm) -> None:
    vm.host.run("install -d -o vmservice '/srv/our images'", check=True)
    disk = DiskVm(vm, "/srv/our images/50%, done: a disk.qcow2")
    try:
        vm.start()
        assert disk.image in vm.host.run(f"readlink /proc/{disk.pid()}/fd/*", check=True).stdout
    finally:
        disk.remove()


def test_an_image_of_another_account(vm: UnitVm) -> None:
    disk = DiskVm(vm, "/srv/disk.qcow2")
    try:
        vm.host.run("chown root: /srv/disk.qcow2; chmod 600 /srv/disk.qcow2", check=True)
        assert vm.host.run(f"systemctl start {vm.unit}", timeout=120).returncode != 0
        vm.wait_for('path is "/srv/disk.qcow2", which cannot be read: Permission denied', 20)
        assert vm.show("ExecMainStatus") == "78"
    finally:
        disk.remove()


@pytest.mark.parametrize("case", ["no daemon", "no image", "raw image", "in use"])
def test_what_is_wrong_is_said(disk: DiskVm, case: str) -> None:
    host = disk.host
    status, said = {
        "no daemon": ("69", "the disk root is in qcow2, which takes /usr/bin/qemu-storage-daemon, and that is not installed"),
        "no image": ("78", f'path is "{disk.image}", which does not exist'),
        "raw image": ("78", f"{disk.image} is no image in qcow2"),
        "in use": ("71", "the qemu-storage-daemon of the disk root .*; the journal of vm-disk@"),
    }[case]
    prepare = {
        "no daemon": "mv /usr/bin/qemu-storage-daemon /usr/bin/away",
        "no image": f"rm {disk.image}",
        "raw image": f"echo something else > {disk.image}",
        "in use": "systemd-run --quiet --unit=holder qemu-storage-daemon"
        f" --blockdev driver=file,node-name=f,filename={disk.image} --blockdev driver=qcow2,node-name=d,file=f"
        " --export type=vhost-user-blk,id=e,node-name=d,addr.type=unix,addr.path=/run/holder,writable=on"
        " && timeout 50 sh -c 'until [ -S /run/holder ]; do sleep 0.1; done'",
    }[case]
    host.run(prepare, check=True)
    try:
        assert host.run(f"systemctl start {disk.vm.unit}", timeout=120).returncode != 0
        try:
            disk.vm.wait_for(said, 20)
        except NoSuchLine as error:
            raise AssertionError(f"{error}\n{disk.said()}") from error
        assert disk.vm.show("ExecMainStatus") == status
    finally:
        host.run("mv /usr/bin/away /usr/bin/qemu-storage-daemon; systemctl stop holder; rm -f /run/holder")
