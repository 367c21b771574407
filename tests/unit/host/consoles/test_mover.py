"""The mover: what vCPUs leave is moved by a thread that sleeps otherwise, and no flood of a guest's holds a vCPU."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import statistics
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.console_log import Log
from support.movers import running_mover

from vmservice.host.consoles import mover as mover_module
from vmservice.host.consoles import stream as stream_module
from vmservice.host.consoles.base import PENDING_LIMIT_BYTES
from vmservice.host.consoles.file import FileConsole
from vmservice.host.consoles.journal import BURST_LINES, LINES_PER_SEC, JournalConsole
from vmservice.host.consoles.mover import Mover
from vmservice.host.consoles.open import open_console
from vmservice.host.consoles.pty import PtyConsole
from vmservice.host.consoles.stream import StreamConsole
from vmservice.host.journal_socket import JournalSocket

if TYPE_CHECKING:
    from vmservice.host.consoles.mover import Waits

TIMEOUT_SEC = 60.0
MIB = 1 << 20


class Noting:
    """A console that is due again after `again_sec`."""

    def __init__(self, again_sec: float | None = None) -> None:
        self.again_sec = again_sec
        self.moves = threading.Semaphore(0)
        self.count = 0

    def move(self) -> Waits:
        self.count += 1
        self.moves.release()
        return [], None if self.again_sec is None else time.monotonic() + self.again_sec


def switches() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw


def test_it_moves_who_wakes_it_and_who_is_due() -> None:
    with running_mover() as mover:
        woken, due = Noting(), Noting(again_sec=0.02)
        mover.add(woken)
        assert woken.moves.acquire(timeout=TIMEOUT_SEC)
        mover.add(due)
        for _ in range(5):
            assert due.moves.acquire(timeout=TIMEOUT_SEC)
        due.again_sec = None
        mover.wake(woken)
        assert woken.moves.acquire(timeout=TIMEOUT_SEC)
        mover.remove(due)
        mover.remove(woken)
        count = woken.count
        mover.wake(woken)
        time.sleep(0.02)
        assert woken.count == count


def test_it_sleeps_while_there_is_nothing_to_move() -> None:
    with running_mover() as mover:
        console = Noting()
        mover.add(console)
        assert console.moves.acquire(timeout=TIMEOUT_SEC)
        time.sleep(0.05)
        before = console.count
        time.sleep(0.3)
        assert console.count == before


def test_no_wake_up_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that came while the last was being taken back left the mover asleep for ever, since everybody took it for awake."""
    real_drain = mover_module._drain
    with running_mover() as mover:
        console = Noting()

        def drain(fd: int) -> None:
            mover.wake(console)  # as another thread may in that moment
            real_drain(fd)

        mover.add(console)
        assert console.moves.acquire(timeout=TIMEOUT_SEC)
        time.sleep(0.02)
        monkeypatch.setattr(mover_module, "_drain", drain)
        mover.wake(console)
        assert console.moves.acquire(timeout=TIMEOUT_SEC)
        time.sleep(0.02)
        monkeypatch.undo()
        while console.moves.acquire(blocking=False):
            pass
        mover.wake(console)
        assert console.moves.acquire(timeout=TIMEOUT_SEC)
        mover.remove(console)


def test_every_byte_of_four_threads_is_moved() -> None:
    class Counting(Noting):
        left = 0
        moved = 0

        def move(self) -> Waits:
            self.moved = self.left
            return [], None

    with running_mover() as mover:
        consoles = [Counting() for _ in range(4)]
        for console in consoles:
            mover.add(console)

        def leave(console: Counting) -> None:
            for _ in range(20_000):
                console.left += 1
                mover.wake(console)

        threads = [threading.Thread(target=leave, args=(console,)) for console in consoles]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        deadline = time.monotonic() + TIMEOUT_SEC
        while any(console.moved < console.left for console in consoles) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [console.moved for console in consoles] == [20_000] * 4


def test_a_disk_that_takes_nothing_holds_no_other_console_and_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mover_module, "_PATIENCE_SEC", 0.1)
    log, stuck, may_write = Log(), threading.Event(), threading.Event()

    class Stuck(FileConsole):
        def _write(self, data: bytes) -> None:
            stuck.set()
            may_write.wait(TIMEOUT_SEC)

    mover = Mover()
    file = Stuck(str(tmp_path / "vm.log"), log, mover)
    other = Noting()
    mover.add(other)
    assert other.moves.acquire(timeout=TIMEOUT_SEC)
    file.write(b"line\n")
    assert stuck.wait(TIMEOUT_SEC)
    mover.wake(other)
    assert other.moves.acquire(timeout=TIMEOUT_SEC / 2), "another console waits for the disk"
    mover.remove(other)
    begin = time.monotonic()
    file.close()
    mover.close()
    assert time.monotonic() - begin < TIMEOUT_SEC / 2
    assert log.warnings == [f"console output is lost: {tmp_path}/vm.log: the disk does not take it"]
    may_write.set()
    assert file._mover._ended.acquire(timeout=TIMEOUT_SEC)  # type: ignore[attr-defined]
    os.close(file._fd)
    os.close(file._mover._fd)  # type: ignore[attr-defined]


def test_a_terminal_that_makes_us_wait_holds_no_other_console_and_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's, after su(1), which cannot be opened anew: stopped by Ctrl-S it held every console, and the end."""
    monkeypatch.setattr(mover_module, "_PATIENCE_SEC", 0.1)
    reader, writer = os.pipe()
    monkeypatch.setattr(stream_module, "own_description", lambda _fd: writer)
    mover, other = Mover(), Noting()
    terminal = open_console("tty", None, "demo", Log(), mover=mover)
    mover.add(other)
    assert other.moves.acquire(timeout=TIMEOUT_SEC)
    for _ in range(4):  # more than a pipe holds
        terminal.write(b"x" * 65536)
    time.sleep(0.05)
    mover.wake(other)
    assert other.moves.acquire(timeout=TIMEOUT_SEC / 2), "another console waits for the terminal"
    mover.remove(other)
    begin = time.monotonic()
    terminal.close()
    mover.close()
    assert time.monotonic() - begin < TIMEOUT_SEC / 2
    os.set_blocking(reader, False)
    deadline = time.monotonic() + TIMEOUT_SEC
    stuck = terminal._mover  # type: ignore[attr-defined]
    while not stuck._ended.acquire(blocking=False):
        assert time.monotonic() < deadline
        with contextlib.suppress(BlockingIOError):
            os.read(reader, 1 << 20)
    os.close(stuck._fd)
    os.close(reader)


def test_a_burst_of_lines_into_a_file_is_a_few_host_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cost a wake-up and a write."""
    with running_mover() as mover:
        console = FileConsole(str(tmp_path / "vm.log"), Log(), mover)
        writes: list[int] = []
        real_write = console._write

        def write(data: bytes) -> None:
            writes.append(len(data))
            real_write(data)

        monkeypatch.setattr(console, "_write", write)
        begin = time.monotonic()
        for number in range(3000):
            console.write(b"%05d\n" % number)
        elapsed_sec = time.monotonic() - begin
        console.close()
    assert (tmp_path / "vm.log").read_bytes() == b"".join(b"%05d\n" % number for number in range(3000))
    assert len(writes) <= 3 + elapsed_sec / 0.01


def test_without_a_console_there_is_no_thread() -> None:
    threads = len(os.listdir("/proc/self/task"))
    mover = Mover()
    assert len(os.listdir("/proc/self/task")) == threads
    mover.close()


def test_a_bug_in_a_console_is_told_also_to_who_asks_later() -> None:
    class Broken(Noting):
        def move(self) -> Waits:
            super().move()
            raise ValueError("a bug")

    mover, told = Mover(), list[Exception]()
    console = Broken()
    mover.add(console)
    assert console.moves.acquire(timeout=TIMEOUT_SEC)
    mover.close()
    mover.on_bug(told.append)
    assert [str(error) for error in told] == ["a bug"]


class DeafJournal:
    """journald that takes an entry now and then."""

    def __init__(self) -> None:
        self.entries = 0

    def send(self, fields: object) -> bool:
        time.sleep(0.0001)
        self.entries += 1
        return True

    def close(self) -> None: ...


def test_a_flood_of_lines_holds_no_vcpu() -> None:
    """64 chains of 1 MiB of newlines took half a minute of the vCPU's thread, with the devices' lock held."""
    journal = DeafJournal()
    began = time.monotonic()
    with running_mover() as mover:
        console = JournalConsole("demo", mover, journal)  # type: ignore[arg-type]
        took = []
        for _ in range(64):
            begin = time.thread_time()
            console.write(b"\n" * MIB)
            took.append(time.thread_time() - begin)
            assert len(console._printed) <= PENDING_LIMIT_BYTES
        # Processor time, since others have the interpreter too; and the median, for a host may count what it gives to others.
        assert statistics.median(took) < 0.05
        # Of what is lost the next line that is sent tells; the burst bounds what the host has to do.
        console.close()
    assert journal.entries <= BURST_LINES + LINES_PER_SEC * (time.monotonic() - began) + 1
    assert console._dropped == 0


def test_a_file_on_a_slow_disk_holds_no_vcpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, may_write = Log(), threading.Event()
    real_write = os.write

    def slow_write(fd: int, data: bytes) -> int:
        if fd == console._fd:
            may_write.wait(TIMEOUT_SEC)
        return real_write(fd, data)

    with running_mover() as mover:
        console = FileConsole(str(tmp_path / "vm.log"), log, mover)
        monkeypatch.setattr(os, "write", slow_write)
        begin = time.monotonic()
        for number in range(3000):
            console.write(b"%05d" % number + b"x" * 1000 + b"\n")
        assert time.monotonic() - begin < TIMEOUT_SEC / 2
        assert len(console._pending) <= PENDING_LIMIT_BYTES
        may_write.set()
        console.close()
        monkeypatch.undo()
    assert (tmp_path / "vm.log").read_bytes().startswith(b"00000xxx")
    assert len(log.warnings) == 1
    assert "it does not keep up" in log.warnings[0]


def test_a_line_without_its_end_comes_after_a_moment(tmp_path: Path) -> None:
    with running_mover() as mover:
        console = FileConsole(str(tmp_path / "vm.log"), Log(), mover)
        console.write(b"login: ")
        deadline = time.monotonic() + TIMEOUT_SEC
        while (tmp_path / "vm.log").read_bytes() != b"login: " and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / "vm.log").read_bytes() == b"login: "
        console.close()


def test_what_a_slow_reader_takes_is_made_up_for_without_the_guest() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with running_mover() as mover:
        console = StreamConsole("serial", mover, writer, -1)
        mover.add(console)
        data = b"".join(b"%06d\n" % number for number in range(12_000))
        console.write(data)
        seen = b""
        while len(seen) < len(data):
            assert select.select([reader], [], [], TIMEOUT_SEC)[0], "nobody moves what waits"
            seen += os.read(reader, 4096)
        assert seen == data
        console.close()
    os.close(reader)


def test_a_persons_terminal_is_followed_only_while_somebody_has_it_open() -> None:
    import termios

    with running_mover() as mover:
        console = PtyConsole(Log(), mover, "hvc")
        resized = threading.Semaphore(0)
        console.on_resized = resized.release
        console.follow_size()
        person = os.open(console.path, os.O_RDWR | os.O_NOCTTY)
        termios.tcsetwinsize(person, (43, 132))
        assert resized.acquire(timeout=TIMEOUT_SEC)
        assert console.size() == (132, 43)
        os.close(person)
        deadline = time.monotonic() + TIMEOUT_SEC
        while console._visitors and time.monotonic() < deadline:
            time.sleep(0.01)
        assert console._visitors == 0
        assert console.move()[1] is None, "nobody is there whose terminal could change"
        console.close()


def test_journald_gets_lines_from_the_movers_thread(tmp_path: Path) -> None:
    import socket

    path = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald, running_mover() as mover:
        journald.bind(path)
        journald.settimeout(TIMEOUT_SEC)
        console = JournalConsole("demo", mover, JournalSocket(path))
        console.write(b"one\r\ntwo\nlogin: ")
        seen = [journald.recv(4096) for _ in range(3)]
        assert [b"MESSAGE=one\n" in seen[0], b"MESSAGE=two\n" in seen[1], b"MESSAGE=login: \n" in seen[2]] == [True] * 3
        assert b"VM_LINE_BREAK=timeout\n" in seen[2]
        console.close()
