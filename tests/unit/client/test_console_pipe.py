"""A program at a VM's console, through a pipe: what is sent, what comes out, and what ends it."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.movers import MoveNow
from support.process import CHECKOUT

from vmservice.client import console as consoles
from vmservice.client import console_pipe
from vmservice.errors import GuestNotResponding, HostError
from vmservice.host.consoles.mover import Mover
from vmservice.host.consoles.pty import PtyConsole
from vmservice.host.consoles.socket import open_socket_console

TIMEOUT_SEC = 20.0


class Log:
    def info(self, text: str) -> None: ...

    def warning(self, text: str) -> None:
        raise AssertionError(text)


class Guest:
    """A console at a socket, and a guest that answers what it takes with `answer` of it, before it has taken it."""

    def __init__(self, folder: Path, *, is_stream: bool = False) -> None:
        self._mover = Mover()
        self.console = open_socket_console(
            Log(), self._mover, "serial", directory=str(folder), passed_fd=-1, is_stream=is_stream
        )
        self.answer: Callable[[bytes], bytes] = lambda typed: b""
        self.typed = b""
        self.takes = True
        self._end = os.eventfd(0)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._end, select.POLLIN)
        poll.register(self.console.input_fd, select.POLLIN)
        while self._end not in (ready := dict(poll.poll())):
            assert ready
            with contextlib.suppress(BlockingIOError):
                data = self.console.read(4096)
                if not self.takes:
                    poll.unregister(self.console.input_fd)
                    continue
                self.console.write(self.answer(data))
                self.typed += data
                self.console.took(len(data), self.console.visit)

    def close(self) -> None:
        if self._end >= 0:
            os.eventfd_write(self._end, 1)
            self._thread.join()
            os.close(self._end)
            self._end = -1
            self.console.close()
            self._mover.close()


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    guest = Guest(tmp_path)
    yield guest
    guest.close()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these guests answer is there before it is seen that they have taken the input."""
    monkeypatch.setattr(console_pipe, "QUIET_SEC", 0.05)


def run(folder: Path, sent: bytes, output: str = "out") -> bytes:
    """What comes out where `sent` is the input, which ends."""
    (folder / "in").write_bytes(sent)
    with (folder / "in").open("rb") as source, (folder / output).open("w+b") as target:
        consoles.attach("demo", str(folder), input_fd=source.fileno(), output_fd=target.fileno())
        return os.pread(target.fileno(), 1 << 24, 0)


class Running:
    """It runs in a thread, between two pipes."""

    def __init__(self, folder: Path) -> None:
        source, self.input_fd = os.pipe()
        self.output_fd, target = os.pipe()
        self.error: Exception | None = None
        self._ours = [self.input_fd, self.output_fd]
        self._thread = threading.Thread(target=self._run, args=(folder, source, target))
        self._thread.start()

    def _run(self, folder: Path, source: int, target: int) -> None:
        try:
            consoles.attach("demo", str(folder), input_fd=source, output_fd=target)
        except Exception as error:
            self.error = error
        finally:
            os.close(source)
            os.close(target)

    def wait_for(self, text: bytes) -> None:
        seen = b""
        while text not in seen:
            assert select.select([self.output_fd], [], [], TIMEOUT_SEC)[0], seen
            data = os.read(self.output_fd, 4096)
            assert data, seen
            seen += data

    def end_input(self) -> None:
        self._ours.remove(self.input_fd)
        os.close(self.input_fd)

    def wait(self) -> None:
        self._thread.join(TIMEOUT_SEC)
        assert not self._thread.is_alive()

    def close(self) -> None:
        for fd in self._ours:
            os.close(fd)
        self.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Running]]:
    running: list[Running] = []

    def start() -> Running:
        running.append(Running(tmp_path))
        return running[-1]

    yield start
    for one in running:
        one.close()


def test_a_line_in_and_what_is_printed_out(guest: Guest, tmp_path: Path) -> None:
    """What had waited for somebody, then the answer. No byte of the input means anything to the command."""
    guest.console.write(b"demo login: ")
    guest.answer = lambda typed: b"Password: \x1b[1m"
    assert run(tmp_path, b"root\n\x1d\x1d\x1d\x03") == b"demo login: Password: \x1b[1m"
    assert guest.typed == b"root\n\x1d\x1d\x1d\x03"
    assert run(tmp_path, b"x") == b"Password: \x1b[1m", "and the place is free again"


def test_much_of_it_and_a_reader_who_comes_late(guest: Guest, start: Callable[[], Running]) -> None:
    """Whoever writes all before they read anything is not kept waiting for ever."""
    guest.answer = bytes.upper
    sent = b"".join(b"line %06d\n" % number for number in range(100_000))
    running = start()
    for at in range(0, len(sent), 65536):
        os.write(running.input_fd, sent[at : at + 65536])
    running.wait_for(b"LINE 099999\n")
    running.end_input()
    running.wait()
    assert (running.error, guest.typed) == (None, sent)


def test_an_input_that_stays_open_keeps_it_there(guest: Guest, start: Callable[[], Running]) -> None:
    """However long the guest says nothing: that is how a script waits."""
    guest.answer = lambda typed: typed.upper()
    running = start()
    for word in (b"one\n", b"two\n"):
        os.write(running.input_fd, word)
        running.wait_for(word.upper())
        assert not select.select([running.output_fd], [], [], 0.2)[0], "neither more of it, nor its end"
    running.end_input()
    running.wait()
    assert running.error is None


def test_a_guest_that_never_pauses(guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_pipe, "QUIET_SEC", TIMEOUT_SEC)
    monkeypatch.setattr(console_pipe, "LATEST_SEC", 0.3)
    guest.answer = lambda typed: b"tick\r\n"
    ended = threading.Event()

    def print_on() -> None:
        while not ended.is_set():
            guest.console.write(b"tick\r\n")
            ended.wait(0.01)

    thread = threading.Thread(target=print_on)
    thread.start()
    try:
        assert set(run(tmp_path, b"x").split(b"\r\n")[:-1]) == {b"tick"}
    finally:
        ended.set()
        thread.join()


def test_through_a_pseudoterminal(tmp_path: Path, start: Callable[[], Running]) -> None:
    console = PtyConsole(Log(), MoveNow(), "serial", str(tmp_path))
    running = start()
    os.write(running.input_fd, b"root\n")
    assert select.select([console.input_fd], [], [], TIMEOUT_SEC)[0]
    assert console.read(100) == b"root\n"
    console.write(b"Password: ")
    running.wait_for(b"Password: ")
    running.end_input()
    running.wait()
    assert running.error is None
    console.close()


def test_a_vm_that_ends(guest: Guest, start: Callable[[], Running]) -> None:
    guest.answer = lambda typed: b"going down\r\n"
    running = start()
    os.write(running.input_fd, b"poweroff\n")
    running.wait_for(b"going down\r\n")
    guest.close()
    running.wait()
    assert running.error is None


def test_a_vm_that_ends_before_it_has_taken_all(guest: Guest, start: Callable[[], Running]) -> None:
    guest.takes = False
    guest.console.write(b"demo login: ")
    running = start()
    running.wait_for(b"demo login: ")
    os.write(running.input_fd, b"root\n")
    client = guest.console.fds()["client"]
    poll = select.poll()
    poll.register(client, select.POLLIN)
    assert poll.poll(TIMEOUT_SEC * 1000)
    guest.close()
    running.wait()
    assert str(running.error) == "the VM has closed the serial console of demo before it had taken all of the input"


def test_a_guest_that_takes_nothing(guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_pipe, "PATIENCE_SEC", 0.2)
    guest.takes = False
    with pytest.raises(GuestNotResponding, match=r"^the serial console of demo has taken nothing of what was sent for 0\.2 s"):
        run(tmp_path, b"root\n")


@pytest.mark.parametrize(
    ("is_stream", "words"),
    [(False, "^somebody else is at the serial"), (True, "closed before it said anything: somebody else is at it, or the VM")],
)
def test_somebody_else_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_stream: bool, words: str) -> None:
    monkeypatch.setattr(console_pipe, "QUIET_SEC", TIMEOUT_SEC)
    guest = Guest(tmp_path, is_stream=is_stream)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as first:
            first.connect(str(tmp_path / "serial.sock"))
            first.sendall(b"x")
            with pytest.raises(HostError, match=words):
                run(tmp_path, b"root\n")
    finally:
        guest.close()


def test_a_reader_who_goes_ends_it(guest: Guest, tmp_path: Path) -> None:
    """As soon as they go: the input stays open, and the guest prints nothing."""
    source, keeps_open = os.pipe()
    reader, target = os.pipe()
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        consoles.attach("demo", str(tmp_path), input_fd=source, output_fd=target)
    for fd in (source, keeps_open, target):
        os.close(fd)


def test_what_cannot_be_written_or_read_is_said(guest: Guest, tmp_path: Path) -> None:
    guest.console.write(b"demo login: ")
    folder = os.open(tmp_path, os.O_RDONLY)
    full = os.open("/dev/full", os.O_WRONLY)
    null = os.open("/dev/null", os.O_RDWR)
    with pytest.raises(HostError, match=r"^cannot write to standard output: No space left on device"):
        consoles.attach("demo", str(tmp_path), input_fd=null, output_fd=full)
    with pytest.raises(HostError, match=r"^cannot read standard input: Is a directory"):
        consoles.attach("demo", str(tmp_path), input_fd=folder, output_fd=null)
    for fd in (folder, full, null):
        os.close(fd)


@pytest.mark.parametrize("closed", ["<&-", ">&-"])
def test_a_descriptor_that_is_closed(guest: Guest, closed: str) -> None:
    """The console would be opened in its place."""
    program = f"exec {sys.executable} -W ignore -m vmservice console demo {closed}"
    done = subprocess.run(
        ["sh", "-c", program],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SEC,
        check=False,
    )
    assert (done.returncode, done.stderr.startswith("vmservice: console needs an open standard input and output")) == (64, True)
