"""Consoles in files and terminals: what is opened, what is refused, and who waits for whom: nobody."""

from __future__ import annotations

import os
import select
import stat
import termios
from pathlib import Path

import pytest
from support.movers import MoveNow

from vmservice.errors import ConfigError
from vmservice.host.consoles.base import PARTIAL_LINE_SEC, WAITING_LIMIT_BYTES, NullConsole
from vmservice.host.consoles.file import FileConsole
from vmservice.host.consoles.open import open_console
from vmservice.host.consoles.pty import PtyConsole
from vmservice.host.consoles.stream import StreamConsole


class Warnings:
    def __init__(self) -> None:
        self.texts: list[str] = []
        self.messages: list[str] = []

    def info(self, text: str) -> None:
        self.messages.append(text)

    def warning(self, text: str) -> None:
        self.texts.append(text)


def test_a_file_is_appended_to_and_private(tmp_path: Path) -> None:
    path = tmp_path / "vm.log"
    for run in ("one", "two"):
        console = open_console("file", str(path), "demo", Warnings(), mover=MoveNow())
        console.write(f"{run}\r\n\x1b[0mraw ".encode())
        console.write(b"rest")
        assert console.input_fd == -1
        console.close()
        console.close()
    assert path.read_bytes() == b"one\r\n\x1b[0mraw resttwo\r\n\x1b[0mraw rest"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_one_host_write_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = FileConsole(str(tmp_path / "vm.log"), Warnings(), MoveNow())
    writes: list[bytes] = []

    def write(fd: int, data: bytes) -> int:
        writes.append(bytes(data))
        return len(data)

    monkeypatch.setattr(os, "write", write)
    for byte in b"hello\n" + b"x" * 5000:
        console.write(bytes((byte,)))
    assert [len(data) for data in writes] == [6, 4096]
    console.move()
    assert len(writes) == 2, "the line may end yet"
    console._pending_since -= PARTIAL_LINE_SEC
    console.move()
    assert len(writes[2]) == 904
    console.move()
    assert len(writes) == 3
    monkeypatch.undo()
    console.close()


def test_refused_files(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / "link").symlink_to(target)
    os.mkfifo(tmp_path / "fifo")
    for name, words in (
        ("link", "it is a symbolic link"),
        ("none/vm.log", "No such file or directory"),
        (".", "Is a directory"),
        ("fifo", "cannot be opened for writing"),
    ):
        with pytest.raises(ConfigError, match=words):
            open_console("file", str(tmp_path / name), "demo", Warnings(), mover=MoveNow())
    with pytest.raises(ConfigError, match="is not a regular file"):
        open_console("file", "/dev/zero", "demo", Warnings(), mover=MoveNow())
    with pytest.raises(ConfigError, match=r"needs a path"):
        open_console("file", None, "demo", Warnings(), mover=MoveNow())
    with pytest.raises(ConfigError, match="it can be journal, tty, file"):
        open_console("printer", None, "demo", Warnings(), mover=MoveNow())
    assert target.read_text() == "precious"


def test_a_file_has_a_limit_and_a_rotation_makes_room(tmp_path: Path) -> None:
    path, log = tmp_path / "vm.log", Warnings()
    console = FileConsole(str(path), log, MoveNow(), limit_bytes=10)
    for _ in range(5):
        console.write(b"1234\n")
    console.move()
    console.move()
    assert path.read_bytes() == b"1234\n1234\n"
    assert log.texts == [f"console output is lost: {path}: it has reached its limit of 10 bytes"]
    os.truncate(path, 0)
    console.write(b"5678\n")
    assert path.read_bytes() == b"5678\n"
    console.close()
    assert len(log.texts) == 1


def test_a_file_that_was_renamed_is_made_anew_when_asked(tmp_path: Path) -> None:
    """What was printed before belongs to the old one; whoever asked is told when it is done."""
    path, log, told = tmp_path / "vm.log", Warnings(), list[str]()
    console = FileConsole(str(path), log, MoveNow(), limit_bytes=20)
    console.write(b"before\n")
    os.rename(path, tmp_path / "vm.log.1")
    console.write(b"between\n")
    console.reopen(lambda: told.append("done"))
    assert told == ["done"]
    console.write(b"behind\n")
    assert (tmp_path / "vm.log.1").read_bytes() == b"before\nbetween\n"
    assert path.read_bytes() == b"behind\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    console.reopen(lambda: told.append("again"))
    console.write(b"the same\n")
    assert path.read_bytes() == b"behind\nthe same\n"
    console.write(b"limit\n")
    assert log.texts == [f"console output is lost: {path}: it has reached its limit of 20 bytes"]
    console.close()
    assert told == ["done", "again"]


def test_a_file_that_cannot_be_opened_anew_leaves_the_old_one(tmp_path: Path) -> None:
    """Somebody has put a link there, say."""
    path, log, told = tmp_path / "vm.log", Warnings(), list[str]()
    (tmp_path / "precious").write_bytes(b"")
    console = FileConsole(str(path), log, MoveNow())
    os.rename(path, tmp_path / "vm.log.1")
    path.symlink_to(tmp_path / "precious")
    console.reopen(lambda: told.append("done"))
    console.write(b"line\n")
    assert (tmp_path / "vm.log.1").read_bytes() == b"line\n"
    assert (tmp_path / "precious").read_bytes() == b""
    assert told == ["done"]
    assert log.texts == [
        f"the console file {path} cannot be opened for writing: it is a symbolic link;"
        " the console goes on in the file that was open before"
    ]
    console.close()


def test_a_full_disk_is_said_once(tmp_path: Path) -> None:
    log = Warnings()
    console = FileConsole(str(tmp_path / "vm.log"), log, MoveNow())
    fd = os.open("/dev/full", os.O_WRONLY)
    os.dup2(fd, console._fd)
    os.close(fd)
    for _ in range(3):
        console.write(b"lost\n")
        console.move()
    assert len(log.texts) == 1
    assert log.texts[0].endswith("No space left on device")
    console.close()


def test_a_reader_that_does_not_read(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    console = StreamConsole("serial", MoveNow(), writer, -1)
    for _ in range(100):
        console.write(b"x" * 4096)
    received = 0
    while select.select([reader], [], [], 0)[0]:
        received += len(os.read(reader, 1 << 20))
        console.move()
    assert WAITING_LIMIT_BYTES < received < 100 * 4096
    os.close(reader)
    console.write(b"nobody there\n")
    console.close()
    console.write(b"closed\n")
    console.close()


def test_standard_output(tmp_path: Path) -> None:
    """A file: written after what is there. A pipe: made non-blocking without changing it for others."""
    saved = os.dup(1)
    reader, writer = os.pipe()
    path = tmp_path / "out"
    try:
        with open(path, "wb") as file:
            file.write(b"before ")
            file.flush()
            os.dup2(file.fileno(), 1)
            console = open_console("tty", None, "demo", Warnings(), mover=MoveNow())
            console.write(b"guest")
            console.close()
        os.dup2(writer, 1)
        console = open_console("tty", None, "demo", Warnings(), mover=MoveNow())
        console.write(b"guest")
        assert os.get_blocking(1)
        assert console.input_fd == 0
        console.close()
    finally:
        os.dup2(saved, 1)
        os.close(saved)
    assert path.read_bytes() == b"before guest"
    assert os.read(reader, 100) == b"guest"
    os.close(reader)
    os.close(writer)


def test_pseudoterminal() -> None:
    log = Warnings()
    console = open_console("pty", None, "demo", log, mover=MoveNow())
    assert isinstance(console, PtyConsole)
    assert (log.messages, log.texts) == ([f"the serial console is at {console.path}"], [])
    for _ in range(2):  # a person comes, goes, and comes again
        person = os.open(console.path, os.O_RDWR | os.O_NOCTTY)
        console.write(b"login: \r\n")
        assert os.read(person, 100) == b"login: \r\n", "raw: nothing is translated"
        os.write(person, b"root\r\x03")
        assert select.select([console.input_fd], [], [], 10)[0]
        assert os.read(console.input_fd, 100) == b"root\r\x03"
        os.close(person)
    for _ in range(100):
        console.write(b"nobody reads\n" * 100)
    console.close()
    console.close()
    assert console.input_fd == -1


def test_nobody_at_a_pseudoterminal_holds_the_guest_and_whoever_comes_sees_the_end() -> None:
    console = PtyConsole(Warnings(), MoveNow())
    for number in range(20_000):
        console.write(b"line %d\r\n" % number)
    person = os.open(console.path, os.O_RDWR | os.O_NOCTTY)
    seen = b""
    while not seen.endswith(b"line 19999\r\n"):
        assert select.select([person], [], [], 10)[0], seen[-100:]
        seen += os.read(person, 4096)
        console.move()
    assert WAITING_LIMIT_BYTES < len(seen) < 3 * WAITING_LIMIT_BYTES
    assert seen.startswith(b"line 0\r\n")
    os.close(person)
    console.close()


def test_a_link_to_the_pseudoterminal(tmp_path: Path) -> None:
    (tmp_path / "hvc").symlink_to("/nowhere")  # of a process that was killed
    console = PtyConsole(Warnings(), MoveNow(), "hvc", str(tmp_path))
    assert os.readlink(tmp_path / "hvc") == console.path
    console.close()
    assert os.listdir(tmp_path) == []
    log = Warnings()
    PtyConsole(log, MoveNow(), "hvc", str(tmp_path / "gone")).close()
    assert log.texts == [
        f"cannot make {tmp_path}/gone/hvc, by which `vmservice console` would find the console: No such file or directory"
    ]


def test_size() -> None:
    console = PtyConsole(Warnings(), MoveNow())
    assert console.size() == (0, 0)
    person = os.open(console.path, os.O_RDWR | os.O_NOCTTY)
    termios.tcsetwinsize(person, (43, 132))
    assert console.size() == (132, 43)
    os.close(person)
    console.close()
    assert console.size() == (0, 0)
    reader, writer = os.pipe()
    console_in_pipe = StreamConsole("serial", MoveNow(), writer, -1)
    assert console_in_pipe.size() == (0, 0)
    console_in_pipe.close()
    os.close(reader)
    assert NullConsole("serial").size() == (0, 0)


@pytest.mark.parametrize("mode", ["null", "off"])
def test_nowhere(mode: str) -> None:
    console = open_console(mode, None, "demo", Warnings(), mover=MoveNow())
    assert isinstance(console, NullConsole)
    console.write(b"x")
    console.close()
    assert console.input_fd == -1
