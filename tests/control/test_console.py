"""`vmservice console` and the bus: why there is nothing to attach to, and a whole process that one talks to."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.bus_client import served_vm
from support.private_bus import PrivateBus
from support.process import CHECKOUT, VmProcess, running_sim

from vmservice.cli import main

if TYPE_CHECKING:
    from vmservice.plug.backend import DeviceDetails

Output = pytest.CaptureFixture[str]
TIMEOUT_SEC = 20.0


@pytest.fixture(autouse=True)
def session(bus: PrivateBus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bus of the test is the session's, and the person's folders are the test's."""
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", bus.address)
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "vmservice").mkdir()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "vmservice/demo.toml"


def said(capsys: Output, *arguments: str) -> str:
    """What the command says that ends with 69."""
    assert main(["console", *arguments]) == 69
    return capsys.readouterr().err.removeprefix("vmservice: ").removesuffix("\n")


def test_no_such_vm(config: Path, capsys: Output) -> None:
    assert said(capsys, "--user", "demo") == f"the VM demo does not exist: it does not run, and there is no {config}"
    config.touch()
    text = said(capsys, "demo")
    assert text.startswith("the VM demo does not exist: it does not run, and there is no /etc/vmservice/demo.toml")
    assert text.endswith(f"; for that of {config} run the command with --user")
    assert said(capsys, "--user", "dmo").endswith("dmo.toml; did you mean demo?")


def test_one_of_drop_ins_alone_is_there(config: Path, capsys: Output) -> None:
    config.with_name("demo.toml.d").mkdir()
    config.with_name("demo.toml.d").joinpath("cpus.toml").touch()
    assert said(capsys, "--user", "demo") == "the VM demo is not running; `systemctl --user start vm@demo` starts it"


def test_one_that_does_not_run(config: Path, capsys: Output) -> None:
    config.touch()
    assert said(capsys, "--user", "demo") == "the VM demo is not running; `systemctl --user start vm@demo` starts it"


def test_without_a_bus(config: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", f"unix:path={tmp_path}/none")
    assert said(capsys, "--user", "demo").startswith("demo has no console to attach to: it must run, with mode")


JOURNAL: DeviceDetails = ("console", "serial", {"mode": "journal"})
FILE: DeviceDetails = ("console", "hvc", {"mode": "file", "path": "/x"})
STREAM: DeviceDetails = ("port", "agent", {"mode": "journal", "console": False})
TTY: DeviceDetails = ("port", "tty", {"mode": "journal", "console": True})
BY_HAND: DeviceDetails = ("console", "serial", {"mode": "pty", "path": "/dev/pts/7"})


@pytest.mark.parametrize(
    ("devices", "label", "words"),
    [
        (
            [JOURNAL, FILE],
            None,
            'the serial console of demo cannot be attached to in mode "journal": in {config} set serial.mode to "socket" and'
            ' serial.log to "journal", which keeps what is printed there; then restart the VM',
        ),
        (
            [JOURNAL, FILE],
            "hvc",
            'the hvc console of demo cannot be attached to in mode "file": in {config} set console.mode to "socket" and'
            ' console.log to "file", with its path in log_path, which keeps what is printed there; then restart the VM',
        ),
        (
            [JOURNAL, STREAM],
            "agent",
            'the agent console of demo cannot be attached to in mode "journal": in {config}, [[port]] "agent", set mode to'
            ' "socket"; then restart the VM',
        ),
        (
            [TTY],
            "tty",
            'the tty console of demo cannot be attached to in mode "journal": in {config}, [[port]] "tty", set mode to "socket"'
            ' and log to "journal", which keeps what is printed there; then restart the VM',
        ),
        ([JOURNAL], "hvc", "demo has no console hvc: [console] is not there, or off, in {config}; it has serial"),
        (
            [JOURNAL, TTY],
            "x",
            'demo has no console x: a [[port]] called "x" is not there, or off, in {config}; it has serial, tty',
        ),
        ([], None, "demo has no console: [serial] and [console] are off in {config}"),
        ([BY_HAND], None, "demo was not started by its unit: its serial console is at /dev/pts/7"),
    ],
)
def test_one_whose_console_cannot_be_attached_to(
    bus: PrivateBus, config: Path, capsys: Output, devices: list[DeviceDetails], label: str | None, words: str
) -> None:
    """The sentence names the key."""

    async def check() -> None:
        async with served_vm(bus.address) as served:
            served.devices = devices
            served.vm.boot()  # which tells of them
            arguments = ["--user", "demo", *([label] if label else [])]
            assert await asyncio.to_thread(said, capsys, *arguments) == words.format(config=config)

    asyncio.run(check())


@pytest.fixture
def sim(bus: PrivateBus, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VmProcess]:
    """With the console of the example, but for the place of its log."""
    directory = tmp_path / "run/vmservice/demo"
    directory.mkdir(parents=True)
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(directory))
    serial = f'[serial]\nmode = "socket"\nlog = "file"\nlog_path = "{tmp_path}/log"\n'
    with running_sim(config, bus.address, serial) as process:
        yield process


def attached() -> subprocess.Popen[bytes]:
    """Its input stays open."""
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "-W", "ignore", "-m", "vmservice", "console", "--user", "demo"]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, **pipes)


def test_a_program_reads_what_the_log_has_too(sim: VmProcess, tmp_path: Path) -> None:
    """The guest prints on and on, so the input stays open until the second line; the VM ends the other one."""
    with attached() as program:
        assert program.stdout is not None
        try:
            lines = [program.stdout.readline() for _ in range(3)]
            assert lines[1:] == [b"simulated guest: heartbeat %d\r\n" % number for number in (1, 2)]
            with attached() as second:
                try:
                    assert second.wait(TIMEOUT_SEC) == 71
                    assert second.stderr is not None
                    assert second.stderr.read() == b"vmservice: somebody else is at the serial console of demo\n"
                finally:
                    second.kill()
            sim.send(signal.SIGTERM)
            assert program.wait(TIMEOUT_SEC) == 0
            assert b"power button pressed, going down" in program.stdout.read()
            assert sim.wait() == 0
        finally:
            program.kill()
    assert (tmp_path / "log").read_bytes().startswith(b"".join(lines))


def test_a_program_that_is_interrupted(sim: VmProcess) -> None:
    with attached() as program:
        assert program.stdout is not None
        assert program.stderr is not None
        try:
            assert program.stdout.readline() == b"simulated guest: 1 vCPUs, no KVM\r\n"
            program.send_signal(signal.SIGINT)
            assert program.wait(TIMEOUT_SEC) == 130
            assert program.stderr.read() == b""
        finally:
            program.kill()
