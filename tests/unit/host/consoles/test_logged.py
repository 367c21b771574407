"""A console with a log: what the guest prints is at both ends, and neither end waits for the other."""

from __future__ import annotations

import os
import select
import socket
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.console_log import Log
from support.datagrams import Listener
from support.movers import MoveNow, running_mover

from vmservice.host.consoles.base import PENDING_LIMIT_BYTES, WAITING_LIMIT_BYTES
from vmservice.host.consoles.file import FileConsole
from vmservice.host.consoles.journal import JournalConsole
from vmservice.host.consoles.logged import LoggedConsole
from vmservice.host.consoles.pty import PtyConsole
from vmservice.host.consoles.socket import SocketConsole, open_socket_console
from vmservice.host.journal_socket import JournalSocket

if TYPE_CHECKING:
    from vmservice.host.consoles.base import Console
    from vmservice.host.consoles.mover import Wakes

TIMEOUT_SEC = 20.0


def front_in(folder: Path, mover: Wakes) -> SocketConsole:
    return open_socket_console(Log(), mover, "serial", directory=str(folder), passed_fd=-1, is_stream=False)


def come(folder: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(TIMEOUT_SEC)
    client.connect(str(folder / "serial.sock"))
    return client


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_SEC
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_lines_are_in_the_journal_and_bytes_at_the_socket(tmp_path: Path) -> None:
    with Listener() as journal, running_mover() as mover:
        record = JournalConsole("demo", mover, JournalSocket(journal.path))
        console: Console = LoggedConsole(front_in(tmp_path, mover), record)
        with come(tmp_path) as client:
            console.write(b"\x1b[1mdemo\x1b[0m login: \r\n")
            assert client.recv(100) == b"\x1b[1mdemo\x1b[0m login: \r\n"
        entry = journal.entry()
        assert (entry["MESSAGE"], entry["VM_CONSOLE"]) == ("demo login: ", "serial")
        console.close()


def test_what_nobody_has_read_is_in_the_log_and_waits_for_who_comes(tmp_path: Path) -> None:
    """A client that is there and reads nothing, and nobody at all: the log misses no byte, and the guest never waits."""
    with running_mover() as mover:
        console = LoggedConsole(front_in(tmp_path, mover), FileConsole(str(tmp_path / "log"), Log(), mover))
        printed = b"".join(b"%06d\r\n" % number for number in range(WAITING_LIMIT_BYTES // 4))
        assert len(printed) < PENDING_LIMIT_BYTES
        with come(tmp_path) as client:
            # Before that, what nobody is there to read has the limit of what waits for a client.
            wait_until(lambda: console.is_attached)
            for at in range(0, len(printed), 4096):
                console.write(printed[at : at + 4096])
            assert client.recv(8) == b"000000\r\n"
        console.write(b"nobody is there\r\n")
        console.close()
    assert (tmp_path / "log").read_bytes() == printed + b"nobody is there\r\n"


def test_a_disk_that_takes_nothing_keeps_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the guest nor who reads at the socket; what is typed arrives."""
    may_write = threading.Event()
    real_write = os.write

    def slow_write(fd: int, data: bytes) -> int:
        if fd == record._fd:
            may_write.wait(TIMEOUT_SEC)
        return real_write(fd, data)

    with running_mover() as mover:
        record = FileConsole(str(tmp_path / "log"), Log(), mover)
        console = LoggedConsole(front_in(tmp_path, mover), record)
        monkeypatch.setattr(os, "write", slow_write)
        with come(tmp_path) as client:
            for _ in range(2 * PENDING_LIMIT_BYTES // 1024):
                console.write(b"x" * 1023 + b"\n")
                left = 1024
                while left:
                    left -= len(client.recv(left))
            assert len(record._pending) <= PENDING_LIMIT_BYTES
            client.sendall(b"root\r")
            assert select.select([console.input_fd], [], [], TIMEOUT_SEC)[0]
            assert console.read(100) == b"root\r"
        may_write.set()
        console.close()
        monkeypatch.undo()


def test_a_journal_that_takes_nothing_keeps_nobody(tmp_path: Path) -> None:
    """And each line is there, or counted, when it takes something again."""

    class Deaf(JournalSocket):
        is_deaf = True

        def send(self, fields: object) -> bool:
            if self.is_deaf:
                return False
            told.append(dict(fields)["MESSAGE"])  # type: ignore[call-overload]
            return True

    told: list[str] = []
    with running_mover() as mover:
        journal = Deaf("/nowhere")
        console = LoggedConsole(front_in(tmp_path, mover), JournalConsole("demo", mover, journal))
        with come(tmp_path) as client:
            for number in range(1000):
                console.write(b"%04d\n" % number)
                seen = b""
                while len(seen) < 5:
                    seen += client.recv(5 - len(seen))
                assert seen == b"%04d\n" % number
        journal.is_deaf = False
        console.close()
    lines = [text for text in told if text.isdecimal()]
    missing = 1000 - len(lines)
    assert lines == [f"{number:04d}" for number in range(missing, 1000)]
    words = f"{missing} lines of the console are missing here: the guest printed more than the journal takes"
    assert told == [*([words] if missing else []), *lines]


def test_whoever_follows_it_follows_what_can_be_typed_at(tmp_path: Path) -> None:
    """A pseudoterminal: its size, its input, its visits, and its link; and both are closed."""
    front = PtyConsole(Log(), MoveNow(), "hvc", str(tmp_path))
    console: Console = LoggedConsole(front, FileConsole(str(tmp_path / "log"), Log(), MoveNow(), "hvc"), "log")
    assert (console.label, console.input_fd, console.keeps_input) == ("hvc", front.input_fd, False)
    resized: list[tuple[int, int]] = []
    console.on_resized = lambda: resized.append(console.size())
    console.follow_size()
    termios.tcsetwinsize(front._terminal, (43, 132))
    console.look_at_size()
    assert resized == [(132, 43)]
    for name in ("on_attached", "on_room", "on_resized", "on_visit"):
        callback = print
        setattr(console, name, callback)
        assert getattr(front, name) is callback
        assert getattr(console, name) is callback
    assert (console.is_attached, console.has_room(), console.visit) == (True, True, 0)
    assert set(console.fds()) == {"output", "terminal", "log.file"}
    assert console.details() == {"mode": "pty", "path": front.path, "log": "file", "log_path": "log"}
    fds = list(console.fds().values())
    console.close()
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    assert not (tmp_path / "hvc").is_symlink()
