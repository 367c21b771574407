"""The console in the journal: lines, their fields, their limits, and a journal that is absent or deaf."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from support.datagrams import Listener
from support.movers import MoveNow

from vmservice.host.consoles import journal as console_journal
from vmservice.host.consoles.base import PENDING_LIMIT_BYTES
from vmservice.host.consoles.journal import BURST_LINES, LINE_LIMIT_BYTES, LINES_PER_SEC, SLICE_LINES, JournalConsole
from vmservice.host.journal_socket import JournalSocket

if TYPE_CHECKING:
    from vmservice.host.consoles.mover import Movable


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Sent(JournalSocket):
    """The entries, with no socket; `deaf` ones are refused as a full socket does it."""

    def __init__(self) -> None:
        self.entries: list[dict[str, str]] = []
        self.deaf = False
        self.closed = False

    def send(self, fields: object) -> bool:
        if self.deaf:
            return False
        self.entries.append(dict(fields))  # type: ignore[call-overload]
        return True

    def close(self) -> None:
        self.closed = True

    @property
    def messages(self) -> list[str]:
        return [entry["MESSAGE"] for entry in self.entries]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(console_journal, "time", clock)
    yield clock


def test_over_a_socket() -> None:
    with Listener() as journal:
        console = JournalConsole("web-1", MoveNow(), JournalSocket(journal.path))
        console.write(b"[    0.0] Linux version 6.12\r\n")
        assert journal.entry() == {
            "PRIORITY": "6",
            "SYSLOG_IDENTIFIER": "vm-web-1",
            "VM_NAME": "web-1",
            "VM_CONSOLE": "serial",
            "MESSAGE": "[    0.0] Linux version 6.12",
        }
        console.close()


def test_lines(clock: Clock) -> None:
    sent = Sent()
    console = JournalConsole("demo", MoveNow(), sent)
    for byte in b"one\r\ntw":
        console.write(bytes((byte,)))
    assert sent.messages == ["one"]
    console.write(b"o\n\nthree\r\r\nfour \x1b[1mbold\x1b[0m")
    assert sent.messages == ["one", "two", "", "three"]
    console.close()
    assert sent.messages[4:] == ["four bold"]
    assert sent.entries[4]["VM_LINE_BREAK"] == "eof"
    assert all("VM_LINE_BREAK" not in entry for entry in sent.entries[:4])
    assert sent.closed


def test_a_prompt_waits_a_moment(clock: Clock) -> None:
    sent = Sent()
    console = JournalConsole("demo", MoveNow(), sent)
    console.write(b"login: ")
    console.move()
    assert sent.entries == []
    clock.now += 1
    console.move()
    assert sent.messages == ["login: "]
    assert sent.entries[0]["VM_LINE_BREAK"] == "timeout"
    console.move()
    assert len(sent.entries) == 1
    console.write(b"root\n")
    assert sent.messages[1:] == ["root"]


def test_the_end_of_a_line_that_is_slow_to_come_is_no_line(clock: Clock) -> None:
    sent = Sent()
    console = JournalConsole("demo", MoveNow(), sent)
    console.write(b"slow")
    clock.now += 1
    console.move()
    console.write(b"\r\n\r\nnext\n")
    assert sent.messages == ["slow", "", "next"]


def test_a_long_line_comes_in_pieces(clock: Clock) -> None:
    sent = Sent()
    console = JournalConsole("demo", MoveNow(), sent)
    for _ in range(5):
        console.write(b"x" * 1000)
    assert [len(message) for message in sent.messages] == [LINE_LIMIT_BYTES, LINE_LIMIT_BYTES]
    console.write(b"\n")
    assert "".join(sent.messages) == "x" * 5000
    assert [entry.get("VM_LINE_BREAK") for entry in sent.entries] == ["line-max", "line-max", None]
    console.write(("x" + "é" * 3000).encode() + b"\n")
    assert "".join(sent.messages[3:]) == "x" + "é" * 3000, "no character is cut in two"
    console.write(b"\x80" * 5000 + b"\n")
    assert "".join(sent.messages[6:]).count("\ufffd") == 5000


def test_a_guest_that_prints_without_end(clock: Clock) -> None:
    sent = Sent()
    console = JournalConsole("demo", MoveNow(), sent)
    extra = 5000
    for _ in range(BURST_LINES + extra):
        console.write(b"spam\n")
    assert sent.messages == ["spam"] * BURST_LINES
    console.move()
    clock.now += 1
    assert console.move() == ([], None)
    for _ in range(LINES_PER_SEC + 7):
        console.write(b"more\n")
    assert sent.messages[BURST_LINES].startswith(f"{extra} lines of the console are missing here")
    assert sent.entries[BURST_LINES]["PRIORITY"] == "4"
    assert sent.messages[BURST_LINES + 1 :] == ["more"] * LINES_PER_SEC
    console.move()
    clock.now += 3600
    console.move()
    console.write(b"quiet\n")
    assert sent.messages[-2].startswith("7 lines")
    assert sent.messages[-1] == "quiet"


def test_a_flood_is_counted_and_not_cut(clock: Clock) -> None:
    """A mebibyte of newlines became a million objects at once: 74 MiB, and 0.2 s in which no other thread ran."""
    sent = Sent()
    console = JournalConsole("demo", MoveNow(), sent)
    console.write(b"\n" * BURST_LINES)
    for _ in range(BURST_LINES // SLICE_LINES):
        console.move()
    tracemalloc.start()
    try:
        for _ in range(8):
            console.write(b"\n" * PENDING_LIMIT_BYTES)
            console.move()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * PENDING_LIMIT_BYTES
    clock.now += 1
    console.move()
    assert sent.messages[-1].startswith(f"{8 * PENDING_LIMIT_BYTES} lines of the console are missing here")


def test_a_guest_past_its_rate_is_looked_after_ten_times_a_second(clock: Clock) -> None:
    class Counting(MoveNow):
        wakes = 0

        def wake(self, console: Movable, *, at_once: bool = False) -> None:
            self.wakes += 1
            super().wake(console)

    mover, sent = Counting(), Sent()
    console = JournalConsole("demo", mover, sent)
    console.write(b"\n" * (BURST_LINES + 1))
    while (due := console.move()[1]) is not None and due <= clock.now:
        pass
    assert due == pytest.approx(clock.now + 0.1)
    wakes = mover.wakes
    for _ in range(1000):
        console.write(b"spam\n" * 10)
    assert mover.wakes == wakes
    clock.now += 0.1
    console.move()
    assert sent.messages[-100:] == ["spam"] * 100
    assert sent.messages[-101].startswith("1 lines")


def test_what_did_not_fit_is_missing_where_it_was(clock: Clock) -> None:
    sent = Sent()
    console = JournalConsole("demo", Never(), sent)
    console.write(b"first\nsecond begins")
    console.write(b"x" * PENDING_LIMIT_BYTES)
    console.write(b"lost\nlost\n")
    console._printed[:] = b"first\nsecond begins"
    console.move()
    console.write(b"third\n")
    clock.now += 1
    console.move()
    assert sent.messages[:2] == ["first", "second begins"]
    assert sent.entries[1]["VM_LINE_BREAK"] == "line-max"
    assert sent.messages[2].startswith("3 lines of the console are missing here")
    assert sent.messages[3:] == ["third"]


def test_what_is_printed_between_two_slices_is_not_left(clock: Clock) -> None:
    """Its wake-up is over when the slices are, and what is printed behind it wakes nobody."""
    sent = Sent()
    console = JournalConsole("demo", Never(), sent)
    console.write(b"line\n" * (2 * SLICE_LINES - 1))
    due = console.move()[1]
    assert due == clock.now
    console.write(b"between\n")
    while due is not None and due <= clock.now:
        due = console.move()[1]
    assert sent.messages == ["line"] * (2 * SLICE_LINES - 1) + ["between"]


class Never(MoveNow):
    """Nothing is moved but by the test."""

    def wake(self, console: Movable, *, at_once: bool = False) -> None: ...


def test_a_deaf_journal(clock: Clock) -> None:
    sent = Sent()
    console = JournalConsole("demo", MoveNow(), sent)
    sent.deaf = True
    console.write(b"lost\nlost\n")
    sent.deaf = False
    console.write(b"heard\n")
    assert sent.messages[0].startswith("2 lines")
    assert sent.messages[1:] == ["heard"]


def test_an_absent_journal_costs_nothing_but_the_lines() -> None:
    journal = JournalSocket("/run/vmservice-nowhere/socket")
    console = JournalConsole("demo", MoveNow(), journal)
    console.write(b"one\ntwo\n")
    console.move()
    console.close()
    assert journal.lost > 0


def test_a_full_socket_does_not_block() -> None:
    with Listener() as listener:
        journal = JournalSocket(listener.path)
        console = JournalConsole("demo", MoveNow(), journal)
        for _ in range(5000):
            console.write(b"x" * 100 + b"\n")
        assert journal.lost > 0
        heard = len(listener.waiting())
        console.write(b"and again\n")
        assert b"lines of the console are missing" in listener.receive()
        assert b"and again" in listener.receive()
        assert heard > 0
        console.close()


def test_an_entry_that_is_too_large_is_counted() -> None:
    with Listener() as listener:
        journal = JournalSocket(listener.path)
        assert not journal.send({"MESSAGE": "x" * (8 << 20)})
        assert journal.lost == 1
        assert journal.send({"MESSAGE": "small"})
        journal.close()
