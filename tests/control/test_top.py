"""`vmservice top` as a process: once for programs, and live at a terminal of the test's own."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dbus_next.constants import MessageType
from support.bus_client import client, served_vm
from support.private_bus import PrivateBus
from support.process import CHECKOUT, VmProcess, running_sim

from vmservice.cli import main
from vmservice.client.bus import Bus
from vmservice.client.vms import Facts, facts
from vmservice.control.names import bus_name

Output = pytest.CaptureFixture[str]
TIMEOUT_SEC = 30.0
HEADER = ["NAME", "STATE", "VCPUS", "CPU", "USED", "EXITS/S", "READ/S", "WRITTEN/S", "RECEIVED/S", "SENT/S"]
SHELL_JOB = (sys.executable, str(Path(__file__).parents[1] / "support/shell_job.py"))
ENTER, LEAVE = b"\x1b[?1049h\x1b[?25l", b"\x1b[?25h\x1b[?1049l"


@pytest.fixture(autouse=True)
def system_bus(bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)


@contextlib.asynccontextmanager
async def hanging(bus: PrivateBus, name: str) -> Any:
    """Somebody with the VM's name who never answers."""
    async with client(bus.address) as peer:
        peer.bus.add_message_handler(lambda message: message.message_type is MessageType.METHOD_CALL)
        await peer.bus.request_name(bus_name(name))
        yield


def test_once(bus: PrivateBus, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal it is so anyway; and one that hangs is there without figures."""
    limits: set[float | None] = set()

    async def patiently(bus: Bus, name: str, limit_sec: float | None) -> Facts:
        """No machine is too slow to look at those that answer, and nobody waits long for the one that does not."""
        limits.add(limit_sec)
        return await facts(bus, name, 0.2 if name == "stuck" else TIMEOUT_SEC)

    monkeypatch.setattr("vmservice.client.overview.facts", patiently)

    async def check() -> None:
        async with served_vm(bus.address, "web10") as served, served_vm(bus.address, "web2"), hanging(bus, "stuck"):
            served.vm.boot()
            for words in (["top", "--delay", "0.4"], ["top", "--once", "--delay", "0.4", "--sort", "name"]):
                assert await asyncio.to_thread(main, words) == 0
                said = capsys.readouterr()
                assert said.err == ""
                header, *rows = (line.split() for line in said.out.splitlines())
                assert header == HEADER
                assert {row[0]: row[1] for row in rows} == {"stuck": "?", "web2": "created", "web10": "running"}
                assert all(row[3].endswith("%") for row in rows)
            assert [row[0] for row in rows] == ["stuck", "web2", "web10"]
            assert await asyncio.to_thread(main, ["top", "--once", "--json", "--delay", "0.4", "--sort", "name"]) == 0
            stuck, web2, web10 = json.loads(capsys.readouterr().out)
            assert stuck["error"] == "the VM stuck did not answer within 0.2 seconds"
            assert web10["cpu_percent"] >= 0
            assert (web10["state"], web10["exits_per_sec"], web10["error"]) == ("running", None, None)
            assert set(stuck) == set(web2) == set(web10)
            assert limits == {0.2}, "half of the delay"

    asyncio.run(check())


def test_once_without_any(capsys: Output) -> None:
    assert main(["top", "--once", "--delay", "0.1"]) == 0
    assert capsys.readouterr() == ("", "vmservice: no VM is running\n")
    assert main(["top", "--json", "--delay", "0.1"]) == 0
    assert capsys.readouterr() == ("[]\n", "")


def test_programs_are_answered_without_a_bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/none")
    assert main(["top", "--json"]) == 69
    said = capsys.readouterr()
    assert said.out == "[]\n"
    assert said.err.startswith("vmservice: there is no system bus")


@pytest.mark.parametrize("delay", ["0", "0.05", "4000", "nan", "-1"])
def test_a_delay_that_makes_no_sense(delay: str, capsys: Output) -> None:
    assert main(["top", f"--delay={delay}"]) == 64
    assert "it takes 0.1 to 3600 seconds" in capsys.readouterr().err


class Terminal:
    """`vmservice top` at a terminal, as the leader of its session; `shown` is all that it has written."""

    def __init__(self, address: str, *shell: str, **fds: int) -> None:
        """`shell` is what runs it, given the numbers of `fds`, as a job of its own."""
        self.ours, theirs = pty.openpty()
        self.resize(100, 24)
        self.modes = termios.tcgetattr(theirs)
        self.shown = b""

        def take_terminal() -> None:
            fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "TERM": "xterm", "DBUS_SYSTEM_BUS_ADDRESS": address}
        environment["PYTHONWARNINGS"] = "ignore::DeprecationWarning"
        command = [*shell, *map(str, fds.values()), sys.executable, "-m", "vmservice", "top", "--delay", "0.2"]
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
            pass_fds=tuple(fds.values()),
            preexec_fn=take_terminal,  # noqa: PLW1509 - no other way to a controlling terminal
        )
        self.theirs = theirs

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

    def until(self, text: bytes, after: int = 0) -> int:
        """Returns when `text` is shown behind the first `after` bytes: where it ends."""
        deadline = time.monotonic() + TIMEOUT_SEC
        while text not in self.shown[after:]:
            ready, _, _ = select.select([self.ours], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"no {text!r} in {self.shown[after:]!r}"
            self.shown += os.read(self.ours, 4096)
        return self.shown.index(text, after) + len(text)

    def type(self, keys: bytes) -> None:
        os.write(self.ours, keys)

    def end(self) -> int:
        """The status of the process, when its terminal is as it was."""
        self.until(LEAVE, self.shown.rindex(ENTER))
        status = self.process.wait(TIMEOUT_SEC)
        assert termios.tcgetattr(self.theirs) == self.modes
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def sim(bus: PrivateBus, tmp_path: Path) -> Iterator[VmProcess]:
    with running_sim(tmp_path / "demo.toml", bus.address) as process:
        yield process


@pytest.fixture
def terminal(bus: PrivateBus, sim: VmProcess) -> Iterator[Terminal]:
    terminal = Terminal(bus.address)
    yield terminal
    terminal.close()


@pytest.mark.parametrize("key", [b"q", b"\x03"])
def test_it_is_live_until_a_key_ends_it(terminal: Terminal, key: bytes) -> None:
    at = terminal.until(b"1 VM, CPU ")
    at = terminal.until(b"demo", at)
    at = terminal.until(b"\x1b[H", at)  # and again, in place
    terminal.until(b"demo", at)
    terminal.type(key)
    assert terminal.end() == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, -15), (signal.SIGHUP, -1), (signal.SIGINT, 0)])
def test_a_signal_ends_it_and_the_terminal_is_as_it_was(terminal: Terminal, number: signal.Signals, status: int) -> None:
    terminal.until(b"demo")
    terminal.process.send_signal(number)
    assert terminal.end() == status


def test_it_follows_the_size(terminal: Terminal) -> None:
    at = terminal.until(b"SENT/S")
    terminal.resize(30, 10)
    terminal.process.send_signal(signal.SIGWINCH)
    at = terminal.until("…".encode(), at)
    terminal.type(b"q")
    assert terminal.end() == 0


def test_it_stops_and_goes_on_as_any_job(bus: PrivateBus) -> None:
    """Ctrl-Z gives the terminal back to the shell; in the foreground again, it is drawn anew."""
    report, reporting = os.pipe()
    ordered, order = os.pipe()
    terminal = Terminal(bus.address, *SHELL_JOB, report=reporting, order=ordered)
    try:
        with open(report, encoding="ascii", closefd=False) as said:
            assert said.readline().startswith("started ")
            terminal.until(b"0 VMs")
            terminal.type(b"\x1a")
            assert said.readline() == "stopped cooked\n"
            at = terminal.until(LEAVE)
            os.write(order, b"f")
            at = terminal.until(ENTER, at)
            terminal.until(b"0 VMs", at)
            terminal.type(b"q")
            assert said.readline() == "ended 0 cooked\n"
        assert terminal.end() == 0
    finally:
        terminal.close()
        for fd in (report, reporting, ordered, order):
            os.close(fd)


def test_the_end_of_the_bus_ends_it(own_bus: PrivateBus) -> None:
    own_bus.start()
    terminal = Terminal(own_bus.address)
    try:
        terminal.until(b"0 VMs")
        own_bus.kill()
        assert terminal.end() == 69
        terminal.until(b"vmservice: the connection to the system bus was lost")
    finally:
        terminal.close()
