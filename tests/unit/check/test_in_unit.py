"""The files of a configuration, judged for a unit as systemd could have it; tests/system has real ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from vmservice.check import in_unit
from vmservice.check.account import Account
from vmservice.check.in_unit import Judge, judge_files, judge_for_unit, judge_for_us
from vmservice.check.named import named_files
from vmservice.config.load import load_config

ACCOUNT = Account("made-up", 65533, 65533)
FIRMWARE = '[firmware]\npath = "firmware"\n'
DISK = '[[disk]]\nname = "root"\nformat = "raw"\n'

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can ask for another account")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the configuration and all its files are: open to every account in the unit, whatever the folders above are."""
    place = tmp_path / "etc"
    place.mkdir(mode=0o755)
    for name in ("firmware", "image", "secret"):
        (place / name).touch()
        (place / name).chmod(0o600 if name == "secret" else 0o666)
    return place


def judged(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, account: Account | None = ACCOUNT, **unit: Any) -> Judge:
    """For a unit that has the folder mounted into an empty directory, and `unit` of settings besides."""
    (folder / "web.toml").write_text(text)
    (folder / "web.toml").chmod(0o644)
    properties = {
        "TemporaryFileSystem": [[f"/{folder.parts[1]}", "ro"]],
        "BindPaths": [[str(folder), str(folder), False, 0]],
        **unit,
    }
    monkeypatch.setattr(in_unit, "read_unit", lambda _name: properties)
    monkeypatch.setattr(in_unit, "account_of", lambda _unit: account)
    return judge_for_unit(load_config("web", str(folder / "web.toml")))


@as_root
def test_all_is_well(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = judged(folder, monkeypatch, FIRMWARE + DISK + 'path = "image"\n')
    assert (judge.mistakes, judge.notes) == ([], [])


@as_root
def test_everything_that_is_wrong_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "logs").mkdir(mode=0o755)
    (folder / "hidden").mkdir()
    (folder / "hidden/image").touch()
    text = (
        '[firmware]\npath = "secret"\n[serial]\nmode = "file"\npath = "logs/console"\n'
        f'{DISK}path = "hidden/image"\n[[pmem]]\nname = "data"\npath = "firmware"\n'
    )
    judge = judged(
        folder,
        monkeypatch,
        text,
        InaccessiblePaths=[f"{folder}/hidden"],
        ReadOnlyPaths=[f"{folder}/firmware"],
    )
    assert judge.notes == []
    closed = "the account made-up of vm@web.service may not"
    assert [str(error).removeprefix(f"{folder}/web.toml: ") for error in judge.mistakes] == [
        f'disk root: path is "{folder}/hidden/image", which vm@web.service cannot see (InaccessiblePaths={folder}/hidden in'
        f" its unit); put it into /var/lib/vmservice/web, or give the unit a drop-in with BindPaths={folder}/hidden/image",
        f'pmem data: path is "{folder}/firmware", which vm@web.service can only read (ReadOnlyPaths={folder}/firmware in its'
        f" unit); put it into /var/lib/vmservice/web, or give the unit a drop-in with ReadWritePaths={folder}/firmware",
        f'firmware.path is "{folder}/secret", which {closed} read (mode 0600, of root:root); let it, or use a copy that it may',
        f'serial.path is "{folder}/logs/console", in {folder}/logs, a directory in which {closed} make files'
        " (mode 0755, of root:root); let it, or use another place",
    ]


@as_root
def test_what_systemd_hands_over_is_not_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory of StateDirectory= that is another account's is given to the VM's when it starts, with all that is in it."""
    text = FIRMWARE + DISK + 'path = "state/image"\n'
    state = folder / "state"
    state.mkdir(mode=0o700)
    (state / "image").touch(0o600)
    monkeypatch.setattr("vmservice.check.view._MADE_BELOW", {"StateDirectory": str(folder)})
    assert judged(folder, monkeypatch, text, StateDirectory=["state"]).mistakes == []
    os.chown(state, ACCOUNT.uid, ACCOUNT.gid)
    (error,) = judged(folder, monkeypatch, text, StateDirectory=["state"]).mistakes
    assert f'"{state}/image", which the account made-up of vm@web.service may not read and write (mode 0600' in str(error)


@as_root
def test_an_image_that_another_unit_writes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """qcow2: the VM reads it, and vm-disk@ is given it to write; the account is the same."""
    text = '[kernel]\npath = "firmware"\n[[disk]]\nname = "root"\nformat = "qcow2"\npath = "image"\n'
    assert judged(folder, monkeypatch, text, ReadOnlyPaths=[f"{folder}/image"]).mistakes == []
    (folder / "image").chmod(0o644)
    (error,) = judged(folder, monkeypatch, text).mistakes
    assert "may not read and write (mode 0644" in str(error)


def test_a_directory_of_the_units_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = FIRMWARE + '[serial]\nmode = "file"\npath = "/var/tmp/console"\n[memory]\nfile = "/var/tmp"\n'
    judge = judged(folder, monkeypatch, text, PrivateTmp=True, DynamicUser=True)
    assert judge.mistakes == []
    assert judge.notes[1].startswith(
        f'{folder}/web.toml: serial.path is "/var/tmp/console", which will be in a /var/tmp that only'
    )


def test_a_device_takes_settings_of_the_unit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = FIRMWARE + DISK + 'path = "/dev/zero"\n'
    closed: dict[str, Any] = {"DevicePolicy": "strict", "DeviceAllow": [["/dev/zero", "r"]], "DynamicUser": True}
    (mistake,) = judged(folder, monkeypatch, text, **closed).mistakes
    assert str(mistake) == (
        f'{folder}/web.toml: disk root: path is "/dev/zero", a device which vm@web.service may not use (DevicePolicy=strict'
        " in its unit); give the unit a drop-in with DeviceAllow=/dev/zero rw"
    )
    assert judged(folder, monkeypatch, text + "readonly = true\n", **closed).mistakes == []
    monkeypatch.setattr(os.path, "exists", lambda _path: True)
    (mistake,) = judged(folder, monkeypatch, text.replace("zero", "sdz"), PrivateDevices=True, DynamicUser=True).mistakes
    assert str(mistake).endswith(
        "which vm@web.service cannot see (PrivateDevices=yes in its unit); give the unit a drop-in with BindPaths=/dev/sdz and"
        " DeviceAllow=/dev/sdz rw"
    )


@as_root
def test_a_linked_device_is_mounted_by_its_link(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As LVM's volumes are: dev/vg0/web leads to dev/dm-3, and the unit has a dev of its own with the former only."""
    device, node = folder / "dev/vg0/web", folder / "dev/dm-3"
    device.parent.mkdir(parents=True)
    node.touch()
    node.chmod(0o666)
    device.symlink_to("../dm-3")
    text = FIRMWARE + DISK + f'path = "{device}"\n'
    own_dev: dict[str, Any] = {"TemporaryFileSystem": [[f"/{folder.parts[1]}", "ro"], [f"{folder}/dev", "ro"]]}
    binds = [[str(path), str(path), False, 0] for path in (folder, device)]
    judge = judged(folder, monkeypatch, text, **own_dev, BindPaths=binds)
    assert (judge.mistakes, judge.notes) == ([], [])
    node.chmod(0o600)
    (error,) = judged(folder, monkeypatch, text, **own_dev, BindPaths=binds).mistakes
    assert f'"{device}", which leads to "{node}", which the account made-up of vm@web.service may not' in str(error)
    (error,) = judged(folder, monkeypatch, text, **own_dev).mistakes
    assert f'path is "{device}", which vm@web.service cannot see (TemporaryFileSystem={folder}/dev in its unit)' in str(error)
    assert str(error).endswith(f"or give the unit a drop-in with BindPaths={device}")


def test_a_file_in_a_folder_that_is_a_link_on_the_host(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there, so that it is the file that is told, and not its folder."""
    for name in ("large", "lib"):
        (folder / name).mkdir()
    (folder / "large/log").touch()
    (folder / "lib/web").symlink_to("../large")
    log, binds = f"{folder}/lib/web/log", [[str(path), str(path), False, 0] for path in (folder, folder / "lib/web")]
    unit: dict[str, Any] = {"BindPaths": binds, "ReadOnlyPaths": [log], "TemporaryFileSystem": [[f"{folder}/lib", "ro"]]}
    text = f'{FIRMWARE}[serial]\nmode = "file"\npath = "{log}"\n'
    (error,) = judged(folder, monkeypatch, text, **unit, DynamicUser=True).mistakes
    assert f'serial.path is "{log}", which vm@web.service can only read (ReadOnlyPaths={log}' in str(error)


def test_a_memory_file_that_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (error,) = judged(folder, monkeypatch, FIRMWARE + '[memory]\nfile = "none"\n', DynamicUser=True).mistakes
    assert f'memory.file is "{folder}/none", which does not exist; expected a file, or a directory such as /dev/shm' in str(
        error
    )


def test_a_memory_file_that_the_unit_makes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own folder is there when the VM starts, and no file in it."""
    text = FIRMWARE + '[memory]\nfile = "/run/vmservice/not-yet{}"\n'
    assert judged(folder, monkeypatch, text.format(""), DynamicUser=True).mistakes == []
    (mistake,) = judged(folder, monkeypatch, text.format("/memory"), DynamicUser=True).mistakes
    assert 'memory.file is "/run/vmservice/not-yet/memory", which does not exist' in str(mistake)


def test_what_is_mounted_from_elsewhere_was_not_looked_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binds = [[str(folder), str(folder), False, 0], [f"{folder}/image", f"{folder}/firmware", False, 0]]
    judge = judged(folder, monkeypatch, FIRMWARE, BindPaths=binds, DynamicUser=True)
    assert judge.mistakes == []
    assert judge.notes[1:] == [
        f'not checked: what is in "{folder}/firmware", which firmware.path names: vm@web.service has {folder}/image there'
        " (BindPaths= in its unit), and it was looked for outside of the unit"
    ]


@pytest.mark.parametrize(
    ("unit", "note"),
    [
        (
            {"DynamicUser": True},
            "whether the account of vm@web.service may use the files, for systemd makes it when the VM starts",
        ),
        (
            {"RootDirectory": "/srv/root"},
            "what vm@web.service sees of the files and may use, for it has a root directory of its own",
        ),
    ],
)
def test_what_was_not_checked_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch, unit: dict[str, Any], note: str) -> None:
    judge = judged(folder, monkeypatch, FIRMWARE, None, **unit)
    assert judge.mistakes == []
    assert judge.notes[0].startswith(f"not checked: {note}")


def test_a_directory_that_only_root_may_look_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a dynamic user, who is there while the VM runs, are in /var/lib/private."""
    (folder / "state").mkdir()
    (folder / "state/image").touch()
    monkeypatch.setattr("vmservice.check.view._MADE_BELOW", {"StateDirectory": str(folder)})
    look = os.stat

    def closed(path: Any, **how: Any) -> os.stat_result:
        if path == f"{folder}/state":
            raise PermissionError(13, "Permission denied", path)
        return look(path, **how)

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "stat", closed)
    judge = judged(folder, monkeypatch, FIRMWARE + DISK + 'path = "state/image"\n', StateDirectory=["state"], DynamicUser=True)
    assert judge.mistakes == []
    (note,) = judge.notes
    assert note.startswith("not checked: whether the account of vm@web.service may use the files")


@pytest.mark.parametrize(
    ("group", "is_asked"),
    [
        ("0::/machine.slice/vm@web.service", False),
        ("1:name=systemd:/machine.slice/vm@web.service/.control\n0::/", False),
        ("0::/machine.slice/vm@web2.service", True),
        ("0::/user.slice/user-0.slice/session-1.scope", True),
        (None, True),
    ],
)
def test_within_the_unit_its_sandbox_is_not_counted_twice(
    folder: Path, monkeypatch: pytest.MonkeyPatch, group: str | None, is_asked: bool
) -> None:
    """There its reload checks the configuration, as the VM's account; systemd is not even asked."""
    if group is not None:
        (folder / "cgroup").write_text(f"{group}\n")
    asked: list[str] = []
    monkeypatch.setattr(in_unit, "CONTROL_GROUP", str(folder / "cgroup"))
    monkeypatch.setattr(in_unit, "read_unit", asked.append)
    (folder / "web.toml").write_text(FIRMWARE)
    judge = judge_files(load_config("web", str(folder / "web.toml")), is_system=True)
    assert judge.mistakes == []
    assert asked == (["web"] if is_asked else [])
    assert bool(judge.notes) is is_asked


def test_a_host_without_the_unit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "web.toml").write_text(FIRMWARE)
    monkeypatch.setenv("PATH", "/nonexistent")
    judge = judge_for_unit(load_config("web", str(folder / "web.toml")))
    assert judge.mistakes == []
    assert judge.notes == [
        "not checked: what vm@web.service sees of the files and may use, for systemd does not tell of that unit here"
    ]


def test_an_account_that_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (error,) = judged(folder, monkeypatch, FIRMWARE, None, User="vm-web", Group="vm-web").mistakes
    assert "vm@web.service has User=vm-web Group=vm-web; one of them is not on this host" in str(error)


@as_root
def test_credentials_that_systemd_would_not_find(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {
        "LoadCredential": [["a", "/nonexistent"], ["b", "/nonexistent"], ["c", "name"]],
        "SetCredential": [["b", [120]]],
    }
    (error,) = judged(folder, monkeypatch, FIRMWARE, **given).mistakes
    assert str(error) == f"{folder}/web.toml: its unit has LoadCredential=a:/nonexistent, and that file does not exist"


def test_a_users_own_vm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to be written to is asked of whoever asks; what is to be read was opened before."""
    (folder / "web.toml").write_text('[firmware]\npath = "none"\n[serial]\nmode = "file"\npath = "console"\n')
    config = load_config("web", str(folder / "web.toml"))
    assert judge_for_us(config).mistakes == []
    monkeypatch.setattr(os, "access", lambda path, _mode: not str(path).endswith("/etc"))
    (error,) = judge_for_us(config).mistakes
    assert f'serial.path is "{folder}/console", in {folder}, a directory in which your account may not make files' in str(error)


def test_every_file_that_a_configuration_can_name(folder: Path) -> None:
    text = (
        '[kernel]\npath = "/k"\ninitramfs = "/i"\n[memory]\nfile = "/m"\n[serial]\nmode = "file"\npath = "/s"\n'
        '[console]\nmode = "file"\npath = "/c"\n[[port]]\nname = "a"\nconsole = true\nlog = "file"\nlog_path = "/l"\n'
        '[[port]]\nname = "b"\nmode = "file"\npath = "/p"\n'
        '[[disk]]\nformat = "raw"\npath = "/d"\n[[disk]]\nformat = "raw"\npath = "/e"\nephemeral = true\n'
        '[[disk]]\nformat = "qcow2"\npath = "/q"\n[[pmem]]\npath = "/r"\nreadonly = true\n'
        '[credentials]\n"x.y" = { file = "/x" }\n[cloud-init]\nuser_data = "/u"\n[vsock]\n'
    )
    (folder / "web.toml").write_text(text)
    found = named_files(load_config("web", str(folder / "web.toml")))
    assert [(one.what, one.path, one.use, one.writer_is_other) for one in found] == [
        ("the configuration", f"{folder}/web.toml", "read", False),
        ("kernel.path", "/k", "read", False),
        ("kernel.initramfs", "/i", "read", False),
        ("memory.file", "/m", "back", False),
        ("serial.path", "/s", "make", False),
        ('credentials."x.y": file', "/x", "read", False),
        ("console.path", "/c", "make", False),
        ("port[0].log_path", "/l", "make", False),
        ("port[1].path", "/p", "make", False),
        ("disk disk0: path", "/d", "write", False),
        ("disk disk1: path", "/e", "read", False),
        ("disk disk2: path", "/q", "write", True),
        ("cloud-init.user_data", "/u", "read", False),
        ("pmem pmem0: path", "/r", "read", False),
        ("vsock: its device", "/dev/vhost-vsock", "write", False),
    ]
