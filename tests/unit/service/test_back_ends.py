"""What a VM's unit runs before the VM: the units of its disks in qcow2, tied to it by drop-ins; and what those units run."""

from __future__ import annotations

import _socket
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.net_space import ip, make_tap, net_space

from vmservice import cli
from vmservice.config.load import load_config
from vmservice.config.sections.disk import DiskDevice
from vmservice.errors import HostError
from vmservice.host import host_network, tap
from vmservice.host.interfaces import look_at
from vmservice.plug import qcow2_disk
from vmservice.service import back_ends, disk_daemon, tap_helper

NAME = "web"


class SystemCtl:
    """Notes what is asked; `answers` by the first word, which for one of them is an error."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers = {"show": "User=vm-web\nGroup=vm-web\nNeedDaemonReload=no\n"}
        self.fails = ""

    def run(self, *words: str, check: bool = True) -> str:
        self.asked.append(" ".join(words))
        if check and words[0] == self.fails:
            raise HostError(f"`systemctl {' '.join(words)}` fails")
        return self.answers.get(words[0], "")


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SystemCtl:
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{tmp_path}/run/vmservice/{NAME}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(back_ends, "config_path", lambda name, *, user: str(tmp_path / f"{name}.toml"))
    monkeypatch.setattr(disk_daemon, "config_path", lambda name, *, user: str(tmp_path / f"{name}.toml"))
    monkeypatch.setattr(host_network, "enter", lambda: None)
    noted = SystemCtl()
    monkeypatch.setattr(back_ends._Manager, "_run", lambda _self, *words, check=True: noted.run(*words, check=check))
    return noted


def configure(folder: Path, *disks: str) -> None:
    (folder / f"{NAME}.toml").write_text(
        '[kernel]\npath = "k"\n[cpus]\nboot = 1\nmax = 3\n' + "".join(f"[[disk]]\n{disk}\n" for disk in disks)
    )


def drop_in(folder: Path, unit: str, manager: str = "system") -> list[str]:
    return (folder / f"run/systemd/{manager}/{unit}.d/50-vmservice.conf").read_text().splitlines()


def test_each_disk_in_qcow2_has_its_units_tied_to_the_vm(tmp_path: Path, systemctl: SystemCtl) -> None:
    configure(tmp_path, 'format = "raw"\npath = "a"', 'name = "root"\nformat = "qcow2"\npath = "50% of it.qcow2"')
    assert cli.main(["start-back-ends", NAME]) == 0
    tied = ["[Unit]", "BindsTo=vm@web.service", "PartOf=vm@web.service", "Before=vm@web.service"]
    assert drop_in(tmp_path, "vm-disk@web:root.socket") == [
        *tied,
        *("[Socket]", "ListenStream=", f"ListenStream={tmp_path}/run/vmservice-disk/web/root"),
        *("SocketUser=vm-web", "SocketGroup=vm-web"),
    ]
    assert drop_in(tmp_path, "vm-disk@web:root.service") == [
        *tied,
        *("[Service]", "BindReadOnlyPaths=-/var/lib/vmservice/web", f'ReadWritePaths=-"{tmp_path}/50%% of it.qcow2"'),
        *("User=vm-web", "Group=vm-web"),
    ]
    assert [line for line in systemctl.asked if not line.startswith("show")] == [
        "stop vm-disk@web:root.service vm-disk@web:root.socket",
        "reset-failed vm-disk@web:root.service vm-disk@web:root.socket",
        "start vm-disk@web:root.socket",
        "start --no-block vm-disk@web:root.service",
    ]


def test_systemd_reads_its_files_again_only_if_it_has_to(tmp_path: Path, systemctl: SystemCtl) -> None:
    configure(tmp_path, 'format = "qcow2"\npath = "a"')
    systemctl.answers["show"] = "NeedDaemonReload=yes\n"
    back_ends.main([NAME])
    assert systemctl.asked.count("daemon-reload") == 1
    back_ends.main([NAME])
    assert systemctl.asked.count("daemon-reload") == 1, "nothing has changed"


def test_a_users_unit_has_no_sandbox_to_open(tmp_path: Path, systemctl: SystemCtl) -> None:
    configure(tmp_path, 'format = "qcow2"\npath = "a"')
    back_ends.main([NAME, "--user"])
    assert drop_in(tmp_path, "vm-disk@web:disk0.service", "user")[4:] == ["[Service]"]


@pytest.mark.parametrize("disk", ['format = "raw"\npath = "a"', 'format = "guess"\npath = "a"'])
def test_nothing_is_started_without_need_and_for_a_wrong_configuration(tmp_path: Path, systemctl: SystemCtl, disk: str) -> None:
    configure(tmp_path, disk)
    assert back_ends.main([NAME]) == 0
    assert [line for line in systemctl.asked if not line.startswith("show")] == []


def test_a_block_device_is_let_through_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qcow2_disk, "_is_block_device", lambda path: True)
    disk = DiskDevice("root", "/dev/vg/root", readonly=True)
    assert qcow2_disk.unit_needs(disk, "web") == (
        "disk",
        ["BindReadOnlyPaths=-/var/lib/vmservice/web", "PrivateDevices=no", 'DeviceAllow="/dev/vg/root" r'],
    )


def test_the_daemons_command_line(tmp_path: Path) -> None:
    image = tmp_path / "a,b.qcow2"
    image.touch()
    command = disk_daemon.daemon_command(DiskDevice("root", str(image), is_direct=True, discard=False, readonly=True, queues=3))
    assert command[0] == "/usr/bin/qemu-storage-daemon"
    file, disk = (json.loads(command[index]) for index in (2, 4))
    access = {"read-only": True, "discard": "ignore", "cache": {"direct": True}}
    assert file == {"driver": "file", "node-name": "file", "filename": str(image), "aio": "threads", **access}
    assert disk == {"driver": "qcow2", "node-name": "image", "file": "file", **access}
    export = "type=vhost-user-blk,id=disk,node-name=image,addr.type=fd,addr.str=3,writable=off,num-queues=3"
    assert command[5:] == ["--export", export]


@pytest.mark.parametrize(
    ("words", "listening", "status", "said"),
    [
        ([], "1", 64, "usage: vmservice disk-daemon NAME:DEVICE"),
        (["web"], "1", 64, "usage: vmservice disk-daemon NAME:DEVICE"),
        (["web:none"], "1", 78, 'there is no [[disk]] called none with format = "qcow2"'),
        (["web:disk0"], "1", 78, 'there is no [[disk]] called disk0 with format = "qcow2"'),
        (["web:disk1"], "", 71, "the socket of the disk is missing"),
        (["web:disk1"], "1", 69, "the disk disk1 is in qcow2, which takes /nowhere, and that is not installed"),
    ],
)
def test_what_the_daemons_unit_says_of_what_is_wrong(
    tmp_path: Path,
    systemctl: SystemCtl,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    listening: str,
    status: int,
    said: str,
) -> None:
    configure(tmp_path, 'format = "raw"\npath = "a"', 'format = "qcow2"\npath = "b"')
    monkeypatch.setattr(qcow2_disk, "DAEMON", "/nowhere")
    monkeypatch.setenv("LISTEN_FDS", listening)
    assert cli.main(["disk-daemon", *words]) == status
    assert said in capsys.readouterr().err


def test_the_daemon_takes_the_place_of_the_unit_program(
    tmp_path: Path, systemctl: SystemCtl, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(tmp_path, 'format = "qcow2"\npath = "b"')
    (tmp_path / "b").touch()
    ran: list[list[str]] = []
    monkeypatch.setattr(qcow2_disk, "DAEMON", "/bin/true")
    monkeypatch.setattr(os, "execv", lambda path, command: ran.append([path, *command]))
    monkeypatch.setenv("LISTEN_FDS", "1")
    disk_daemon.main(["web:disk0"])
    assert ran[0][:2] == ["/bin/true", "/bin/true"]


def test_the_disk_of_the_section_is_the_daemons(tmp_path: Path) -> None:
    configure(tmp_path, 'format = "qcow2"\npath = "b"')
    (_rng, disk) = load_config(NAME, str(tmp_path / f"{NAME}.toml")).devices
    assert isinstance(disk, DiskDevice)
    assert disk.queues == 3


class NotifySocket:
    """The service manager's end of sd_notify(3): `received` has each message, and whether it came with a descriptor."""

    def __init__(self, path: Path) -> None:
        self.received: list[tuple[str, bool]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(10)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while True:
            text, fds, _, _ = socket.recv_fds(self._socket, 4096, 4)
            if not text:
                return
            self.received.append((text.decode(), bool(fds)))
            for fd in fds:
                os.close(fd)

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NotifySocket]:
    manager = NotifySocket(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    yield manager
    manager.close()


def test_where_the_guest_says_that_it_is_ready_systemd_keeps_a_vsock_for_the_vm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manager: NotifySocket
) -> None:
    """By sd_notify(3): an older one of the name is dropped, the new one kept, and the manager waited for."""
    kept = socket.socket(socket.AF_UNIX)
    kept.bind(str(tmp_path / "vsock"))
    monkeypatch.setattr("vmservice.host.guest_listener.make_socket", lambda: _socket.socket(fileno=kept.detach()))
    back_ends._pass_listener()
    assert manager.received == [
        ("FDSTOREREMOVE=1\nFDNAME=vsock/notify", False),
        ("FDSTORE=1\nFDPOLL=0\nFDNAME=vsock/notify", True),
        ("BARRIER=1", True),
    ], "it waits until everything has been read"


def test_run_by_hand_nobody_would_have_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("it is made for nobody")

    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setattr("vmservice.host.guest_listener.make_socket", refuse)
    back_ends._pass_listener()


# Networks


def network(folder: Path, keys: str) -> None:
    (folder / f"{NAME}.toml").write_text(f'[kernel]\npath = "k"\n[[network]]\nname = "lan"\n{keys}')


def test_a_network_has_its_descriptors_kept_and_nothing_made(
    tmp_path: Path, systemctl: SystemCtl, manager: NotifySocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with net_space():
        make_tap("vt-web", "multi_queue")
        monkeypatch.setattr(tap, "VHOST_DEVICE", "/dev/null")
        network(tmp_path, 'tap = "vt-web"\nqueues = 2\n')
        assert cli.main(["start-back-ends", NAME]) == 0
    kept = [(text.split("\n")[-1].removeprefix("FDNAME="), has_fd) for text, has_fd in manager.received if "FDNAME" in text]
    assert kept == [
        *(("tun/lan", False), ("tun/lan", True), ("tun/lan", True)),
        *(("vhost-net/lan", False), ("vhost-net/lan", True), ("vhost-net/lan", True)),
        *(("tap/lan", False), ("tap/lan", True)),
    ]
    assert [line for line in systemctl.asked if not line.startswith("show")] == []


def test_a_tap_that_is_made_has_a_unit_tied_to_the_vm(
    tmp_path: Path, systemctl: SystemCtl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    network(tmp_path, 'tap = "vb-web"\nbridge = "br0"\n')
    assert cli.main(["start-back-ends", NAME]) == 0
    assert drop_in(tmp_path, "vm-tap@web:lan.service") == [
        *("[Unit]", "BindsTo=vm@web.service", "PartOf=vm@web.service", "Before=vm@web.service"),
        *("[Service]", "Environment=VMSERVICE_ACCOUNT=vm-web VMSERVICE_TAP=vb-web"),
    ]
    assert [line for line in systemctl.asked if not line.startswith("show")] == [
        "reset-failed vm-tap@web:lan.service",
        "restart vm-tap@web:lan.service",
    ]


JOURNALCTL = """\
#!/bin/sh
[ "$*" = --sync ] || [ "$*" = "--quiet --output=cat --lines=1 _SYSTEMD_INVOCATION_ID=1234abcd" ] || exit 1
[ "$*" = --sync ] || cat "${0%/*}/last-line"
"""
FAILED = "Result=exit-code\nExecMainStatus=71\nInvocationID=1234abcd\n"


@pytest.mark.parametrize(
    ("shown", "last_line", "reason"),
    [
        (FAILED, "vmservice: network lan: there is no bridge br0\n", "network lan: there is no bridge br0"),
        (FAILED, "", "its result is exit-code, its exit status 71"),
        ("Result=success\nInvocationID=\n", "", "`systemctl restart vm-tap@web:lan.service` fails"),
    ],
)
def test_why_a_tap_was_not_made_is_in_the_journal_of_the_vm(
    tmp_path: Path,
    systemctl: SystemCtl,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    shown: str,
    last_line: str,
    reason: str,
) -> None:
    """It starts all the same, and says what it misses."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    (tmp_path / "journalctl").write_text(JOURNALCTL)
    (tmp_path / "journalctl").chmod(0o755)
    (tmp_path / "last-line").write_text(last_line)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    network(tmp_path, 'tap = "vb-web"\nbridge = "br0"\n')
    systemctl.answers["show"] += shown
    systemctl.fails = "restart"
    assert cli.main(["start-back-ends", NAME]) == 0
    assert capsys.readouterr().err == f"vmservice: vm-tap@web:lan.service has failed: {reason}\n"


def test_without_a_journal_there_is_still_the_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It may be missing, or stand still."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert back_ends._last_line("1234abcd") == ""
    (tmp_path / "journalctl").write_text("#!/bin/sh\nexec /usr/bin/sleep 60\n")
    (tmp_path / "journalctl").chmod(0o755)
    monkeypatch.setattr(back_ends, "_JOURNAL_SEC", 0.1)
    assert back_ends._last_line("1234abcd") == ""


def test_a_systemctl_that_is_not_there_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(back_ends, "config_path", lambda name, *, user: str(tmp_path / f"{name}.toml"))
    network(tmp_path, "")
    assert cli.main(["start-back-ends", NAME]) == 71
    assert capsys.readouterr().err == "vmservice: cannot run systemctl: No such file or directory (errno 2)\n"


@pytest.mark.parametrize(("words", "variable"), [([], "VMSERVICE_ACCOUNT"), (["--remove"], "VMSERVICE_TAP")])
def test_make_tap_by_hand_says_whose_work_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], variable: str
) -> None:
    monkeypatch.delenv(variable, raising=False)
    assert cli.main(["make-tap", "web:lan", *words]) == 64
    assert capsys.readouterr().err == (
        "vmservice: make-tap is what vm-tap@web:lan.service runs, for which start-back-ends sets"
        f" {variable}; it is not set here\n"
    )


def test_a_user_has_neither(tmp_path: Path, systemctl: SystemCtl, manager: NotifySocket) -> None:
    network(tmp_path, 'bridge = "br0"\n')
    assert cli.main(["start-back-ends", NAME, "--user"]) == 0
    assert systemctl.asked == []
    assert manager.received == []


def test_a_tap_is_made_for_an_account_and_removed(
    tmp_path: Path, systemctl: SystemCtl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tap_helper, "config_path", lambda name, *, user: str(tmp_path / f"{name}.toml"))
    monkeypatch.setenv("VMSERVICE_ACCOUNT", "4242")
    monkeypatch.setenv("VMSERVICE_TAP", "vb-web")
    network(tmp_path, 'tap = "vb-web"\nbridge = "br0"\nmac = "02:00:00:00:00:01"\nqueues = 2\n')
    with net_space():
        ip("link add br0 type bridge")
        ip("link set br0 mtu 1400")
        assert cli.main(["make-tap", "web:lan"]) == 0
        assert cli.main(["make-tap", "web:lan"]) == 0, "one that is left over is made anew"
        said = json.loads(subprocess.run(["ip", "-j", "-d", "link", "show", "vb-web"], check=True, capture_output=True).stdout)
        assert {"UP"} <= set(said[0]["flags"])
        assert (said[0]["master"], said[0]["mtu"], said[0]["address"]) == ("br0", 1400, "fe:00:00:00:00:01")
        info = said[0]["linkinfo"]["info_data"]
        assert (info["type"], str(info["user"]), info["multi_queue"], info["persist"]) == ("tap", "4242", True, True)
        assert cli.main(["make-tap", "web:lan", "--remove"]) == 0
        assert cli.main(["make-tap", "web:lan", "--remove"]) == 0
        assert look_at("vb-web") is None


def test_a_tap_that_somebody_uses_is_left_alone(
    tmp_path: Path, systemctl: SystemCtl, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tap_helper, "config_path", lambda name, *, user: str(tmp_path / f"{name}.toml"))
    monkeypatch.setenv("VMSERVICE_ACCOUNT", "root")
    network(tmp_path, "")
    with net_space():
        assert cli.main(["make-tap", "web:lan"]) == 0
        (device,) = load_config(NAME, str(tmp_path / f"{NAME}.toml")).devices[-1:]
        other = tap.Tap(device.tap, "other", 1)  # type: ignore[attr-defined]
        assert cli.main(["make-tap", "web:lan"]) == 71
        assert "already, and another program uses it" in capsys.readouterr().err
        assert other.is_attached()
        other.close()


WRONG = {
    'bridge = "br1"\n': "network lan: there is no bridge br1",
    'bridge = "lo"\n': "network lan: lo is no bridge",
    'bridge = "br0"\ntap = "eth7"\n': "network lan: there is an interface eth7 already, and it is no tap",
}


@pytest.mark.parametrize("keys", WRONG)
def test_a_tap_that_cannot_be_made(
    keys: str, tmp_path: Path, systemctl: SystemCtl, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tap_helper, "config_path", lambda name, *, user: str(tmp_path / f"{name}.toml"))
    monkeypatch.setenv("VMSERVICE_ACCOUNT", "root")
    network(tmp_path, keys)
    with net_space():
        ip("link add br0 type bridge")
        ip("link add eth7 type bridge")
        assert cli.main(["make-tap", "web:lan"]) == 71
        assert capsys.readouterr().err == f"vmservice: {WRONG[keys]}\n"
        left = json.loads(subprocess.run(["ip", "-j", "link"], check=True, capture_output=True).stdout)
        assert sorted(one["ifname"] for one in left) == ["br0", "eth7", "lo"]
