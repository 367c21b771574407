"""`vmservice check-config` judges a VM's files as its unit would meet them; each time `systemctl start` says the same."""

from __future__ import annotations

import pytest
from support.container import Container
from support.releases import every_release
from support.unit_vm import UnitVm, firmware_config


class Verdict:
    """What `check-config` and `systemctl start` make of one configuration."""

    def __init__(self, vm: UnitVm) -> None:
        checked = vm.host.run(f"vmservice check-config {vm.name}")
        self.text = checked.stdout + checked.stderr
        self.is_right = checked.returncode == 0
        assert checked.returncode in (0, 78)
        self.starts = vm.host.run(f"systemctl start {vm.unit}").returncode == 0
        vm.host.run(f"systemctl stop {vm.unit}; systemctl reset-failed {vm.unit}")


def disk(path: str, more: str = "readonly = true") -> str:
    return f'[[disk]]\nname = "root"\nformat = "raw"\npath = "{path}"\n{more}\n'


def config(more: str) -> str:
    return firmware_config("idle").replace('[serial]\nmode = "journal"\n', "") + more


def log(path: str) -> str:
    return f'[serial]\nmode = "file"\npath = "{path}"\n'


@pytest.fixture
def host(container: Container) -> Container:
    """With files of every account, and some of root's alone, in many places."""
    container.run(
        "mkdir -p /home/ann /srv/open /srv/closed && chmod 755 /home/ann && chmod 700 /srv/closed &&"
        " for folder in /root /home/ann /tmp /srv/open /srv/closed; do"
        " truncate -s 4M $folder/disk.raw $folder/secret.raw; chmod 666 $folder/disk.raw; chmod 600 $folder/secret.raw; done &&"
        " ln -sfn /home/ann/disk.raw /srv/open/link.raw && cp /lab/idle.bin /srv/open/ && chmod 600 /srv/open/idle.bin",
        check=True,
    )
    return container


WRONG = {
    "image in /root": (
        disk("/root/disk.raw"),
        'disk root: path is "/root/disk.raw", which {unit} cannot see (ProtectHome=yes in its unit);'
        " put it into /var/lib/vmservice/{name}, or give the unit a drop-in with ProtectHome=tmpfs and"
        " BindReadOnlyPaths=/root/disk.raw",
    ),
    "image in /home": (
        disk("/home/ann/disk.raw", ""),
        'disk root: path is "/home/ann/disk.raw", which {unit} cannot see (ProtectHome=yes in its unit);'
        " put it into /var/lib/vmservice/{name}, or give the unit a drop-in with ProtectHome=tmpfs and"
        " BindPaths=/home/ann/disk.raw",
    ),
    "image in /tmp": (disk("/tmp/disk.raw"), '"/tmp/disk.raw", which {unit} cannot see (PrivateTmp=yes in its unit)'),
    "link to /home": (
        disk("/srv/open/link.raw"),
        '"/srv/open/link.raw", which leads to "/home/ann/disk.raw", which {unit} cannot see (ProtectHome=yes in its unit)',
    ),
    "another VM's": (
        disk("/var/lib/vmservice/other/disk.raw"),
        "which {unit} cannot see (TemporaryFileSystem=/var/lib/vmservice in its unit)",
    ),
    "mode 0600": (
        disk("/srv/open/secret.raw"),
        'disk root: path is "/srv/open/secret.raw", which the account vmservice of {unit} may not read'
        " (mode 0600, of root:root); let it, or use a copy that it may",
    ),
    "closed directory": (
        disk("/srv/closed/disk.raw"),
        '"/srv/closed/disk.raw", in the directory /srv/closed, which is closed to the account vmservice of {unit}'
        " (mode 0700, of root:root)",
    ),
    "write to an image elsewhere": (
        disk("/srv/open/disk.raw", ""),
        '"/srv/open/disk.raw", which {unit} can only read (ProtectSystem=strict in its unit); put it into'
        " /var/lib/vmservice/{name}, or give the unit a drop-in with ReadWritePaths=/srv/open/disk.raw",
    ),
    "log elsewhere": (
        log("/var/log/web.log"),
        'serial.path is "/var/log/web.log", in a directory which {unit} can only read (ProtectSystem=strict in its unit);'
        " put it into /var/log/vmservice/{name}, or give the unit a drop-in with ReadWritePaths=/var/log",
    ),
}


@every_release
@pytest.mark.parametrize("case", WRONG)
def test_what_the_unit_could_not_use_is_told(vm: UnitVm, host: Container, case: str) -> None:
    text, expected = WRONG[case]
    host.run("mkdir -p /var/lib/vmservice/other && truncate -s 4M /var/lib/vmservice/other/disk.raw", check=True)
    vm.configure(config(text))
    verdict = Verdict(vm)
    assert verdict.text.startswith(f"vmservice: /etc/vmservice/{vm.name}.toml: ")
    assert verdict.text.count("\n") == 1
    assert expected.format(unit=vm.unit, name=vm.name) in verdict.text
    assert not verdict.is_right
    assert not verdict.starts


@every_release
def test_a_memory_file_that_is_not_there(vm: UnitVm, host: Container) -> None:
    text = firmware_config("idle")
    vm.configure(text.replace("[memory]\n", '[memory]\nfile = "/dev/shm/none"\n'))
    verdict = Verdict(vm)
    assert 'memory.file is "/dev/shm/none", which does not exist; expected a file, or a directory such as' in verdict.text
    assert (verdict.is_right, verdict.starts) == (False, False)
    for folder in ("/dev/shm", f"/var/lib/vmservice/{vm.name}", "/tmp"):
        vm.configure(text.replace("[memory]\n", f'[memory]\nfile = "{folder}"\n'))
        verdict = Verdict(vm)
        assert (verdict.is_right, verdict.starts) == (True, True), verdict.text


@every_release
def test_a_configuration_and_a_firmware_of_root_alone(vm: UnitVm, host: Container) -> None:
    """Both are told at once."""
    vm.configure(firmware_config("idle").replace("/lab/idle.bin", "/srv/open/idle.bin"))
    host.run(f"chmod 600 /etc/vmservice/{vm.name}.toml", check=True)
    verdict = Verdict(vm)
    who = f"the account vmservice of {vm.unit} may not read (mode 0600, of root:root)"
    assert f"the configuration is a file which {who}" in verdict.text
    assert f'firmware.path is "/srv/open/idle.bin", which {who}' in verdict.text
    assert (verdict.is_right, verdict.starts) == (False, False)


@every_release
def test_a_log_in_the_directory_that_the_unit_makes(vm: UnitVm, host: Container) -> None:
    """Before the first start, when it is not there yet, and after it."""
    vm.configure(config(log(f"/var/log/vmservice/{vm.name}/console.log")))
    assert host.run(f"test -e /var/log/vmservice/{vm.name}").returncode == 1
    for _ in range(2):
        verdict = Verdict(vm)
        assert (verdict.is_right, verdict.starts) == (True, True), verdict.text
        assert verdict.text == f"/etc/vmservice/{vm.name}.toml: no problem found\n"


@every_release
def test_an_image_in_its_own_folder(vm: UnitVm, host: Container) -> None:
    """Mode 0600, and of the account that the VM runs as; then of root, in a folder that is handed over at the start."""
    folder = f"/var/lib/vmservice/{vm.name}"
    vm.configure(config(disk(f"{folder}/disk.raw", "")))
    host.run(f"mkdir {folder} && cd {folder} && truncate -s 4M disk.raw && chmod 600 disk.raw", check=True)
    verdict = Verdict(vm)
    assert (verdict.is_right, verdict.starts) == (True, True), verdict.text
    host.run(f"chown root {folder}/disk.raw", check=True)
    verdict = Verdict(vm)
    assert "which the account vmservice of" in verdict.text
    assert "may not read and write (mode 0600, of root:" in verdict.text
    assert (verdict.is_right, verdict.starts) == (False, False)


@every_release
def test_a_log_in_tmp_is_said_to_be_the_units_own(vm: UnitVm, host: Container) -> None:
    vm.configure(config(log("/tmp/web.log")))
    verdict = Verdict(vm)
    assert f"which will be in a /tmp that only {vm.unit} sees, and gone when it ends" in verdict.text
    assert (verdict.is_right, verdict.starts) == (True, True)


@every_release
@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ("ReadWritePaths=/srv/open", disk("/srv/open/disk.raw", "")),
        ("ProtectHome=tmpfs\nBindPaths=/home/ann/disk.raw", disk("/home/ann/disk.raw", "")),
        ("BindReadOnlyPaths=/tmp/disk.raw", disk("/tmp/disk.raw")),
        ("ReadWritePaths=/var/log", log("/var/log/web.log")),
        ("PrivateTmp=no\nReadWritePaths=/tmp", disk("/tmp/disk.raw", "")),
    ],
)
def test_drop_ins_count(vm: UnitVm, host: Container, settings: str, text: str) -> None:
    vm.configure(config(text))
    host.run("install -m 666 /dev/null /var/log/web.log", check=True)
    with vm.drop_in(settings):
        verdict = Verdict(vm)
    host.run("rm /var/log/web.log", check=True)
    assert (verdict.is_right, verdict.starts) == (True, True), verdict.text


@every_release
def test_a_device_that_udev_has_linked(vm: UnitVm, host: Container) -> None:
    """As LVM's volumes are, and /dev/disk/by-id: the unit has the node at the link's place. A file stands for the node, for a
    container has no block device."""
    device = "/dev/vg0/web"
    host.run(f"mkdir -p /dev/vg0 && truncate -s 4M /dev/dm-3 && chmod 666 /dev/dm-3 && ln -sfn ../dm-3 {device}", check=True)
    vm.configure(config(disk(device, "")))
    hidden = Verdict(vm)
    assert f'"{device}", which {vm.unit} cannot see (PrivateDevices=yes in its unit)' in hidden.text
    advice = hidden.text.partition("a drop-in with ")[2].strip()
    assert advice == f"BindPaths={device} and DeviceAllow={device} rw"
    assert (hidden.is_right, hidden.starts) == (False, False)
    with vm.drop_in(advice.replace(" and ", "\n")):
        verdict = Verdict(vm)
    host.run("rm -r /dev/vg0 /dev/dm-3", check=True)
    assert (verdict.is_right, verdict.starts) == (True, True), verdict.text
    assert verdict.text == f"/etc/vmservice/{vm.name}.toml: no problem found\n"


@every_release
@pytest.mark.parametrize(
    ("settings", "text", "expected"),
    [
        ("BindPaths=/home/ann/disk.raw", disk("/home/ann/disk.raw"), "cannot see (ProtectHome=yes in its unit)"),
        (
            "BindReadOnlyPaths=/srv/closed/disk.raw",
            disk("/srv/closed/disk.raw"),
            "in the directory /srv/closed, which is closed to the account vmservice",
        ),
        ("InaccessiblePaths=/srv/open", disk("/srv/open/disk.raw"), "cannot see (InaccessiblePaths=/srv/open in its unit)"),
        ("LoadCredential=key:/srv/none", "", "its unit has LoadCredential=key:/srv/none, and that file does not exist"),
        ("User=nobody\nGroup=nogroup", disk("/srv/open/secret.raw"), "which the account nobody of"),
        ("User=nosuch", "", "User=nosuch"),
        ("User=root\nGroup=root", disk("/home/ann/disk.raw"), "cannot see (ProtectHome=yes in its unit)"),
    ],
)
def test_what_drop_ins_take_away(vm: UnitVm, host: Container, settings: str, text: str, expected: str) -> None:
    vm.configure(config(text))
    with vm.drop_in(settings):
        verdict = Verdict(vm)
    assert expected in verdict.text
    assert (verdict.is_right, verdict.starts) == (False, False)


@every_release
def test_what_could_not_be_checked_is_said(vm: UnitVm, host: Container) -> None:
    vm.configure(config(disk("/srv/open/disk.raw")))
    asked = host.run(f"setpriv --reuid=nobody --regid=nogroup --clear-groups vmservice check-config {vm.name}")
    assert asked.returncode == 0
    note = f"vmservice: not checked: whether the account of {vm.unit} may use the files, for only root can find that out\n"
    assert asked.stderr == note
    with vm.drop_in("DynamicUser=yes\nUser=vm-%i"):
        checked = host.run(f"vmservice check-config {vm.name}")
    assert checked.returncode == 0, checked.stderr
    assert "for systemd makes it when the VM starts (DynamicUser=yes)" in checked.stderr
