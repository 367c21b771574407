"""What vm-passt@NAME:DEVICE.service runs: it takes the VM's connection, and becomes passt or says why not."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmservice import cli
from vmservice.config.load import load_config
from vmservice.config.sections.network import NetworkDevice
from vmservice.host import passt as host_passt
from vmservice.plug import passt
from vmservice.service import back_ends, passt_daemon

NETWORK = 'name = "lan"\nmode = "passt"\n'


class Unit:
    """systemd's part: the socket, with the VM at its other end. `ran` is the command that took the program's place."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "web.toml"
        self.path = folder / "socket"
        self.ran: list[str] = []
        self.was_inherited: list[bool] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self.vm = socket.socket(socket.AF_UNIX)
        self.vm.settimeout(10)
        self.vm.connect(str(self.path))

    def take_listener(self) -> int:
        return self._listener.detach()

    def configure(self, *networks: str) -> None:
        self.file.write_text('[kernel]\npath = "k"\n' + "".join(f"[[network]]\n{one}\n" for one in networks))

    def execute(self, path: str, command: list[str]) -> None:
        self.ran = [path, *command]
        self.was_inherited.append(os.get_inheritable(int(command[command.index("--fd") + 1])))

    def close(self) -> None:
        self.vm.close()
        self._listener.close()


@pytest.fixture
def unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Unit]:
    unit = Unit(tmp_path)
    program = tmp_path / "passt"
    program.write_bytes(b"vhost-user")
    monkeypatch.setattr(passt_daemon, "config_path", lambda name, *, user: str(unit.file))
    monkeypatch.setattr(passt_daemon, "_LISTENER", unit.take_listener())
    monkeypatch.setattr(host_passt, "PASST", str(program))
    monkeypatch.setattr(passt_daemon, "PASST", str(program))
    monkeypatch.setattr(os, "execv", unit.execute)
    monkeypatch.setenv("LISTEN_FDS", "1")
    yield unit
    unit.close()


def network_of(folder: Path, keys: str) -> NetworkDevice:
    file = folder / "web.toml"
    file.write_text(f'[kernel]\npath = "k"\n[[network]]\n{NETWORK}{keys}')
    (found,) = (one for one in load_config("web", str(file)).devices if isinstance(one, NetworkDevice))
    return found


def test_the_program_becomes_passt_with_the_vms_connection(unit: Unit, tmp_path: Path) -> None:
    unit.configure(NETWORK)
    passt_daemon.main(["web:lan"])
    assert unit.ran[:2] == [str(tmp_path / "passt")] * 2
    assert unit.was_inherited == [True]


@pytest.mark.parametrize(
    ("keys", "options"),
    [
        ("", ["--mtu", "65520"]),
        ("mtu = 1400\n", ["--mtu", "1400"]),
        ('forward = ["8080:80"]\n', ["--tcp-ports", "8080-8080:80-80"]),
        ('forward = ["8000-8009:80-89/udp"]\n', ["--udp-ports", "8000-8009:80-89"]),
        ('forward = ["127.0.0.1:22/tcp"]\n', ["--tcp-ports", "127.0.0.1/22-22:22-22"]),
        ('forward = ["[::1]:22/tcp"]\n', ["--tcp-ports", "::1/22-22:22-22"]),
    ],
)
def test_the_command_line(tmp_path: Path, keys: str, options: list[str]) -> None:
    network = network_of(tmp_path, keys)
    command = passt_daemon.passt_command(network, 7, is_by_vhost_user=True)
    assert command[:4] == ["/usr/bin/passt", "--foreground", "--fd", "7"]
    command.remove("--vhost-user")
    assert command == passt_daemon.passt_command(network, 7, is_by_vhost_user=False)
    assert "--no-map-gw" in command, "the gateway's address is no way to the host's 127.0.0.1"
    at = command.index(options[0])
    assert command[at : at + 2] == options


@pytest.mark.parametrize(
    ("words", "listening", "status", "said"),
    [
        ([], "1", 64, "usage: vmservice passt-daemon NAME:DEVICE"),
        (["web"], "1", 64, "usage: vmservice passt-daemon NAME:DEVICE"),
        (["web:lan"], "", 71, "the socket of the network is missing"),
    ],
)
def test_how_it_is_run(
    unit: Unit,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    listening: str,
    status: int,
    said: str,
) -> None:
    monkeypatch.setenv("LISTEN_FDS", listening)
    assert cli.main(["passt-daemon", *words]) == status
    assert said in capsys.readouterr().err
    os.close(passt_daemon._LISTENER)


@pytest.mark.parametrize(
    ("networks", "device", "status", "said"),
    [
        ([NETWORK], "other", 78, 'there is no [[network]] called other with mode = "passt"'),
        ([NETWORK + 'forward = ["x"]\n'], "lan", 78, 'network[0].forward has "x"'),
        ([NETWORK + 'forward = ["198.51.100.1:80"]\n'], "lan", 71, "the host has no address 198.51.100.1"),
    ],
)
def test_what_is_wrong_ends_the_connection(
    unit: Unit, capsys: pytest.CaptureFixture[str], networks: list[str], device: str, status: int, said: str
) -> None:
    """Else the VM would wait, and systemd would start the unit again for a connection that still waits."""
    unit.configure(*networks)
    assert cli.main(["passt-daemon", f"web:{device}"]) == status
    assert said in capsys.readouterr().err
    assert unit.vm.recv(1) == b""
    assert unit.ran == []


def test_a_host_without_passt(unit: Unit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unit.configure(NETWORK)
    (tmp_path / "passt").unlink()
    assert cli.main(["passt-daemon", "web:lan"]) == 69
    assert "the network lan needs passt, and there is no" in capsys.readouterr().err
    assert unit.vm.recv(1) == b""


@pytest.mark.parametrize(
    ("program", "forward", "is_by_vhost_user"),
    [(b"vhost-user", '["80:80/tcp"]', True), (b"vhost-user", '["80", "53/udp"]', False), (b"an old one", "[]", False)],
)
def test_vhost_user_is_taken_where_passt_has_it_and_no_datagram_is_forwarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: bytes, forward: str, is_by_vhost_user: bool
) -> None:
    (tmp_path / "passt").write_bytes(program)
    monkeypatch.setattr(host_passt, "PASST", str(tmp_path / "passt"))
    network = network_of(tmp_path, f"forward = {forward}\n")
    assert passt.is_by_vhost_user(network) == is_by_vhost_user


def test_the_units_of_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tied to the VM as a disk's are."""
    asked: list[str] = []

    def run(_manager: object, *words: str, check: bool = True) -> str:
        asked.append(" ".join(words))
        return "User=vm-web\nGroup=vm-web\nNeedDaemonReload=no\n"

    network_of(tmp_path, 'forward = ["80:8080"]\n')
    monkeypatch.setattr(back_ends._Manager, "_run", run)
    monkeypatch.setattr(back_ends, "config_path", lambda name, *, user: str(tmp_path / f"{name}.toml"))
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{tmp_path}/run/vmservice/web")
    assert cli.main(["start-back-ends", "web"]) == 0
    drop_in = (tmp_path / "run/systemd/system/vm-passt@web:lan.service.d/50-vmservice.conf").read_text()
    assert "BindsTo=vm@web.service" in drop_in
    assert "\nAmbientCapabilities=CAP_NET_BIND_SERVICE\n" in drop_in
    socket_drop_in = (tmp_path / "run/systemd/system/vm-passt@web:lan.socket.d/50-vmservice.conf").read_text()
    assert f"ListenStream={tmp_path}/run/vmservice-passt/web/lan\n" in socket_drop_in
    assert "start vm-passt@web:lan.socket" in asked


@pytest.mark.parametrize(
    ("forward", "capable"),
    [("[]", False), ('["8080:80"]', False), ('["1024"]', False), ('["1023"]', True), ('["8080", "53/udp"]', True)],
)
def test_the_capability_comes_with_low_ports_only(tmp_path: Path, forward: str, capable: bool) -> None:
    kind, lines = passt.unit_needs(network_of(tmp_path, f"forward = {forward}\n"), "web")
    assert kind == "passt"
    assert bool(lines) == capable
