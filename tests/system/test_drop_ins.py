"""A VM of several files: what all VMs have, its own file, and its drop-ins."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.releases import every_release
from support.unit_vm import UnitVm, firmware_config

COMMON = "/etc/vmservice/common.d/50-test.toml"


@pytest.fixture
def folder(vm: UnitVm) -> Iterator[str]:
    """That of the VM's drop-ins. No VM has anything of it, or in common, afterwards."""
    folder = f"/etc/vmservice/{vm.name}.toml.d"
    vm.host.run(f"mkdir -p {folder} /etc/vmservice/common.d", check=True)
    yield folder
    vm.host.run(f"rm -r {folder} /etc/vmservice/common.d", check=True)


def write(vm: UnitVm, path: str, text: str) -> None:
    vm.host.run(f"cat > {path}", check=True, stdin=text.encode())


@every_release
def test_start_reload_and_check_config_read_all_files(vm: UnitVm, folder: str) -> None:
    own = f"/etc/vmservice/{vm.name}.toml"
    vm.configure(firmware_config("deaf"))
    write(vm, COMMON, '[cpus]\nmax = 3\n[memory]\nsize = "96M"\n[service]\nshutdown_timeout = 77\n')
    write(vm, f"{folder}/10-time.toml", "[service]\nshutdown_timeout = 99\n")
    vm.start()
    assert (vm.get("MaxVCPUs"), vm.get("Memory")) == (3, 64 << 20)
    checked = vm.host.run(f"vmservice check-config {vm.name}", check=True).stdout
    assert checked == f"read {COMMON}, {own}, {folder}/10-time.toml\n{own}: no problem found\n"

    write(vm, f"{folder}/20-time.toml", "[service]\nshutdown_timeout = 1\n")
    vm.host.run(f"systemctl reload {vm.unit}", check=True)
    vm.wait_for("[Rr]eloaded")
    write(vm, f"{folder}/30-wrong.toml", "[service]\non_reset = 7\non_panic = 8\n")
    assert vm.host.run(f"systemctl reload {vm.unit}").returncode == 1
    first = f'{folder}/30-wrong.toml: service.on_reset is 7; expected "reboot" or "exit"'
    assert f"{first} (and 1 more mistake)" in vm.wait_for("service.on_reset is 7")
    told = vm.host.run(f"vmservice check-config {vm.name}")
    assert told.returncode == 78
    assert told.stderr.splitlines() == [
        f"vmservice: {first}",
        f'vmservice: {folder}/30-wrong.toml: service.on_panic is 8; expected "reboot", "exit" or "pause"',
    ]
    assert vm.state == "running"
    vm.stop()
    assert "within 1 second" in vm.journal(), "the drop-in that was reloaded does not count"


def test_a_vm_that_is_its_drop_ins_alone(vm: UnitVm, folder: str) -> None:
    """And has a disk that another unit serves, which reads the same files."""
    vm.host.run(f"rm /etc/vmservice/{vm.name}.toml", check=True)
    assert vm.host.run(f"systemctl start {vm.unit}").returncode != 0, "a folder without a file is no VM"
    image = f"/srv/{vm.name}.qcow2"
    vm.host.run(f"qemu-img create -q -f qcow2 {image} 16M && chown vmservice: {image}", check=True)
    write(vm, COMMON, firmware_config())
    write(vm, f"{folder}/disk.toml", f'[[disk]]\nname = "root"\nformat = "qcow2"\npath = "{image}"\n')
    vm.start()
    state = vm.host.run(f"systemctl show --property=ActiveState --value vm-disk@{vm.name}:root.service", check=True)
    assert state.stdout == "active\n"
    vm.stop()
    vm.host.run(f"rm {image}", check=True)
