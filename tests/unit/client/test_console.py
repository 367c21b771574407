"""A person who comes to a VM's console and leaves it, in a terminal and a process of their own."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
from support.movers import MoveNow
from support.process import CHECKOUT

from vmservice.client import console as consoles
from vmservice.errors import HostError, HostFacilityMissing
from vmservice.host.consoles.pty import PtyConsole
from vmservice.host.consoles.socket import open_socket_console

TIMEOUT_SEC = 60.0
PROGRAM = """
import sys
from vmservice.errors import VmmError
from vmservice.client.console import attach
try:
    attach("demo", sys.argv[1])
except VmmError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""
GREETING = b"vmservice: at the serial console of demo; Ctrl-] three times within a second leaves it\r\n"


class Log:
    def info(self, text: str) -> None: ...

    def warning(self, text: str) -> None:
        raise AssertionError(text)


@pytest.fixture
def console(tmp_path: Path) -> Iterator[PtyConsole]:
    console = PtyConsole(Log(), MoveNow(), "serial", str(tmp_path))
    yield console
    console.close()


class Person:
    def __init__(self, directory: Path, output: IO[bytes] | None = None, errors: IO[bytes] | None = None) -> None:
        self.screen, self.terminal = os.openpty()
        self.before = termios.tcgetattr(self.terminal)
        termios.tcsetwinsize(self.terminal, (24, 80))
        self.shown = b""
        self.process = subprocess.Popen(
            ["setsid", "--ctty", sys.executable, "-c", PROGRAM, directory],
            stdin=self.terminal,
            stdout=output or self.terminal,
            stderr=errors or self.terminal,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        )

    def type(self, data: bytes) -> None:
        os.write(self.screen, data)

    def wait_shown(self, text: bytes) -> None:
        self.wait(lambda: text in self.shown, f"{text!r} was not shown")

    def wait_end(self) -> int:
        self.wait(lambda: self.process.poll() is not None, "it does not end")
        while select.select([self.screen], [], [], 0)[0]:
            self.shown += os.read(self.screen, 4096)
        return self.process.wait()

    def wait(self, condition: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + TIMEOUT_SEC
        while not condition():
            assert time.monotonic() < deadline, f"{otherwise}; shown: {self.shown!r}"
            if select.select([self.screen], [], [], 0.02)[0]:
                self.shown += os.read(self.screen, 4096)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.screen)
        os.close(self.terminal)


@pytest.fixture
def come(tmp_path: Path) -> Iterator[Callable[[], Person]]:
    """Somebody comes; their terminal is closed afterwards."""
    persons: list[Person] = []

    def come() -> Person:
        persons.append(Person(tmp_path))
        return persons[-1]

    yield come
    for person in persons:
        person.close()


def test_several_in_turn(console: PtyConsole, come: Callable[[], Person]) -> None:
    for visit in range(3):
        person = come()
        person.wait_shown(GREETING)
        console.write(b"login %d: \r\n\x1b[1m" % visit)
        person.wait_shown(b"login %d: \r\n\x1b[1m" % visit)
        person.type(b"root\x03\r\x1d")
        received = b""
        while not received.endswith(b"\x1d"):
            assert select.select([console.input_fd], [], [], TIMEOUT_SEC)[0]
            received += os.read(console.input_fd, 100)
        assert received == b"root\x03\r\x1d", "raw: every key is the guest's"
        person.type(b"\x1d\x1d")
        assert person.wait_end() == 0
        assert person.shown.endswith(b"\r\nvmservice: left the serial console of demo\r\n")
        assert termios.tcgetattr(person.terminal) == person.before


def test_the_size_of_the_terminal_reaches_the_vm(console: PtyConsole, come: Callable[[], Person]) -> None:
    person = come()
    person.wait(lambda: console.size() == (80, 24), "the size at the beginning is not told")
    termios.tcsetwinsize(person.terminal, (50, 200))
    person.wait(lambda: console.size() == (200, 50), "another size is not told")


def test_a_guest_that_takes_nothing_keeps_nobody(console: PtyConsole, come: Callable[[], Person]) -> None:
    person = come()
    person.wait_shown(GREETING)
    for _ in range(20):
        person.type(b"x" * 1000)
    person.type(b"\x1d\x1d\x1d")
    assert person.wait_end() == 0


def test_a_vm_that_goes_sends_everybody_home(console: PtyConsole, come: Callable[[], Person]) -> None:
    person = come()
    person.wait_shown(GREETING)
    console.write(b"Power down\r\n")
    person.wait_shown(b"Power down")
    console.close()
    assert person.wait_end() == 0
    assert b"vmservice: the VM has closed the serial console of demo" in person.shown
    assert termios.tcgetattr(person.terminal) == person.before


def test_only_one_at_a_time(console: PtyConsole, come: Callable[[], Person]) -> None:
    first = come()
    first.wait_shown(GREETING)
    second = come()
    assert second.wait_end() == 1
    assert second.shown == b"HostError: somebody else is at the console of demo\r\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_gives_the_terminal_back_too(console: PtyConsole, come: Callable[[], Person], number: signal.Signals) -> None:
    person = come()
    person.wait_shown(GREETING)
    person.wait(lambda: termios.tcgetattr(person.terminal) != person.before, "the terminal is not raw")
    os.kill(person.process.pid, number)
    assert person.wait_end() == -number
    person.wait(lambda: termios.tcgetattr(person.terminal) == person.before, "the terminal is still raw")


def test_output_may_go_elsewhere(tmp_path: Path, console: PtyConsole) -> None:
    """Into a file: with nothing of ours in it, nor on a standard error that nobody sits at. Keys are those of a terminal."""
    shown, errors = tmp_path / "shown", tmp_path / "errors"
    console.write(b"demo login: \r\n")
    with shown.open("wb") as output, errors.open("wb") as error:
        person = Person(tmp_path, output, error)
    try:
        person.wait(lambda: shown.read_bytes() == b"demo login: \r\n", "it does not come to the file")
        assert console.size() == (80, 24), "of the terminal that is typed at"
        person.type(b"\x1d\x1d\x1d")
        assert person.wait_end() == 0
    finally:
        person.close()
    assert (shown.read_bytes(), errors.read_bytes(), person.shown) == (b"demo login: \r\n", b"", b"")


def test_a_vm_without_such_a_console(tmp_path: Path, console: PtyConsole) -> None:
    with pytest.raises(HostFacilityMissing, match=r'^demo has no hvc console to attach to: it must run, with mode = "pty" or'):
        consoles._open_console("demo", str(tmp_path), "hvc")
    with pytest.raises(HostFacilityMissing, match=r"^demo has no console to attach to"):
        consoles._open_console("demo", str(tmp_path / "gone"), None)


@pytest.mark.parametrize("target", ["/dev/sda", "/dev/pts/../sda", "/dev/pts/", "/dev/pts/1/../../sda", "/dev/tty"])
def test_a_link_to_something_else_is_not_followed(tmp_path: Path, target: str) -> None:
    (tmp_path / "serial").symlink_to(target)
    with pytest.raises(HostError, match="which is no pseudoterminal"):
        consoles._open_console("demo", str(tmp_path), None)


def test_a_pseudoterminal_of_somebody_else_is_not_opened(
    tmp_path: Path, console: PtyConsole, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fstat

    def of_another(fd: int) -> os.stat_result:
        fields = list(real(fd))
        fields[4] = os.getuid() + 1
        return os.stat_result(fields, {"st_rdev": real(fd).st_rdev})

    monkeypatch.setattr(os, "fstat", of_another)
    with pytest.raises(HostError, match=r"^/dev/pts/\d+ is no longer the console of demo$"):
        consoles._open_console("demo", str(tmp_path), None)


def test_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    assert consoles.runtime_directory("demo", user=False) == "/run/vmservice/demo"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert consoles.runtime_directory("demo", user=True) == "/run/user/7/vmservice/demo"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert consoles.runtime_directory("demo", user=True) == f"/run/user/{os.getuid()}/vmservice/demo"


# At a socket


class Served:
    """A console at a socket, with what the event loop does for it until it is closed."""

    def __init__(self, directory: Path, label: str = "serial") -> None:
        self.console = open_socket_console(Log(), MoveNow(), label, directory=str(directory), passed_fd=-1, is_stream=False)
        self.typed = b""
        self._done, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while self._done not in (ready := select.select([self.console.input_fd, self._done], [], [])[0]):
            if ready:
                with contextlib.suppress(BlockingIOError):
                    data = self.console.read(100)
                    self.typed += data
                    self.console.took(len(data), self.console.visit)

    def close(self) -> None:
        os.write(self._stop, b"x")
        self._thread.join()
        self.console.close()
        os.close(self._done)
        os.close(self._stop)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path)
    yield served
    served.close()


def test_several_in_turn_at_a_socket(served: Served, come: Callable[[], Person]) -> None:
    for visit in range(2):
        person = come()
        person.wait_shown(GREETING)
        served.console.write(b"login %d: " % visit)
        person.wait_shown(b"login %d: " % visit)
        served.typed = b""
        person.type(b"root\x03\r")
        person.wait(lambda: served.typed == b"root\x03\r", "what was typed does not arrive")
        person.type(b"\x1d\x1d\x1d")
        assert person.wait_end() == 0
        assert termios.tcgetattr(person.terminal) == person.before


def test_only_one_at_a_time_at_a_socket(served: Served, come: Callable[[], Person]) -> None:
    first = come()
    first.wait_shown(GREETING)
    first.wait(lambda: served.console.is_attached, "nobody is there")
    second = come()
    assert second.wait_end() == 1
    assert second.shown.endswith(b"HostError: somebody else is at the console of demo\r\n")
    assert termios.tcgetattr(second.terminal) == second.before


def test_a_socket_of_somebody_else_is_not_connected_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by a link of the VM's, which is not trusted, nor with another owner."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    directory = tmp_path / "demo"
    directory.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(elsewhere / "s"))
        other.listen()
        (directory / "serial.sock").symlink_to(elsewhere / "s")
        with pytest.raises(HostError, match=r"serial\.sock is not the console of demo$"):
            consoles._open_console("demo", str(directory), None)
        (directory / "serial.sock").unlink()
        (directory / "serial.sock").hardlink_to(elsewhere / "s")
        os.close(consoles._open_console("demo", str(directory), None)[1])
        real = os.stat
        status = real(directory)
        fields = list(status)
        fields[4] = os.getuid() + 1
        monkeypatch.setattr(
            os, "stat", lambda path, **more: os.stat_result(fields) if path == str(directory) else real(path, **more)
        )
        with pytest.raises(HostError, match=r"serial\.sock is not the console of demo$"):
            consoles._open_console("demo", str(directory), None)


def test_a_socket_that_nobody_listens_at(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(tmp_path / "hvc.sock"))
    with pytest.raises(HostError, match=r"^cannot connect to .*/hvc\.sock, a console of demo: Connection refused"):
        consoles._open_console("demo", str(tmp_path), None)


def test_a_socket_that_systemd_holds_is_the_serial_console(tmp_path: Path) -> None:
    directory = tmp_path / "vmservice/demo"
    activated = tmp_path / "vmservice-console"
    activated.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(activated / "demo"))
        listener.listen()
        label, fd = consoles._open_console("demo", str(directory), None)
        assert label == "serial"
        os.close(fd)
        with pytest.raises(HostFacilityMissing):
            consoles._open_console("demo", str(directory), "hvc")
