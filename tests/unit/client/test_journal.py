"""`vmservice logs` and the last lines of `vmservice status`, from a journal in memory; tests/system reads a real one."""

from __future__ import annotations

import os
import signal
import sys

import pytest
from support.fake_journal import FakeJournal

from vmservice.cli import main
from vmservice.client import journal as client_journal
from vmservice.client.journal import VmJournal
from vmservice.client.logs import LastLines

Output = pytest.CaptureFixture[str]


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> FakeJournal:
    return FakeJournal(monkeypatch)


def lines_of(output: str) -> list[str]:
    """Without the time."""
    return [line.split(" ", 3)[3] for line in output.splitlines()]


def test_all_lines_of_one_vm(journal: FakeJournal, capsys: Output) -> None:
    journal.add("Starting vm@demo.service", UNIT="vm@demo.service", _PID="1", SYSLOG_IDENTIFIER="systemd", PRIORITY=6)
    journal.vmm("VM started")
    journal.vmm("VM started", "other")
    journal.guest("Linux version 6.12")
    journal.guest("login:", console="hvc")
    journal.add("I am demo, too", VM_NAME="demo", SYSLOG_IDENTIFIER="vm-demo")  # anybody's
    journal.add("vm@demo.service: killed", UNIT="vm@demo.service", _PID="4711", SYSLOG_IDENTIFIER="systemd")  # not systemd
    assert main(["logs", "demo"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out == (
        "Nov 27 02:00:05 systemd: Starting vm@demo.service\n"
        "Nov 27 02:00:06 vmservice: VM started\n"
        "Nov 27 02:00:08 serial: Linux version 6.12\n"
        "Nov 27 02:00:09 hvc: login:\n"
    )
    assert not journal.readers


def test_a_vm_of_the_users_own(journal: FakeJournal, capsys: Output) -> None:
    mine = {"_UID": str(os.getuid()), "SYSLOG_IDENTIFIER": "vmservice"}
    journal.add("mine", _SYSTEMD_USER_UNIT="vm@demo.service", **mine)
    journal.add("another user's", _SYSTEMD_USER_UNIT="vm@demo.service", _UID="4711", SYSLOG_IDENTIFIER="vmservice")
    journal.add("Started", USER_UNIT="vm@demo.service", **mine)
    journal.vmm("the system's")
    assert main(["logs", "--user", "demo"]) == 0
    assert lines_of(capsys.readouterr().out) == ["vmservice: mine", "vmservice: Started"]


@pytest.mark.parametrize(("count", "expected"), [("0", []), ("1", ["c"]), ("2", ["b", "c"]), ("9", ["a", "b", "c"])])
def test_the_last_ones(journal: FakeJournal, capsys: Output, count: str, expected: list[str]) -> None:
    for text in "abc":
        journal.vmm(text)
    journal.vmm("of another", "other")
    assert main(["logs", "-n", count, "demo"]) == 0
    assert lines_of(capsys.readouterr().out) == [f"vmservice: {text}" for text in expected]


@pytest.mark.parametrize("before", [0, 3])
def test_following(journal: FakeJournal, capsys: Output, monkeypatch: pytest.MonkeyPatch, before: int) -> None:
    """Each new line as it comes, until the person has seen enough; the first while the last ones of before are read."""
    for number in range(before):
        journal.guest(f"before {number}")
    shown: list[str] = []

    def show(line: object, *, flush: bool) -> None:
        assert flush
        shown.append(str(line).partition("serial: ")[2])
        if shown[-1] == "after 2":
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("builtins.print", show)

    def write() -> None:
        if len(journal.entries) < before + 3:
            journal.guest(f"after {len(journal.entries) - before}")

    journal.at_end = write
    assert main(["logs", "-f", "demo", "-n", "2"]) == 130
    assert shown == [*[f"before {number}" for number in range(before)][-2:], "after 0", "after 1", "after 2"]


def test_what_a_guest_writes_steers_no_terminal(journal: FakeJournal, capsys: Output) -> None:
    journal.guest(b"\x1b]0;title\x07\x9b2J\xff\x1b[2Jhello\r\x08")
    journal.guest("several\x1b[31m\nlines\u202e")
    journal.guest(["the first", "of two values"])
    journal.add("x", _SYSTEMD_UNIT="vm@demo.service", VM_CONSOLE="a\x1b[2Jb\nc", PRIORITY=6)
    assert main(["logs", "demo"]) == 0
    said = capsys.readouterr().out
    assert lines_of(said) == [
        "serial: \ufffd2J\ufffdhello^M^H",
        "serial: several",
        "serial: lines\\u202e",
        "serial: the first",
        "ab: x",
    ]


def test_a_traceback_is_many_lines(journal: FakeJournal, capsys: Output) -> None:
    journal.vmm("internal error: Traceback\n  File\nValueError")
    assert main(["logs", "demo", "-n", "1"]) == 0
    assert lines_of(capsys.readouterr().out) == [
        "vmservice: internal error: Traceback",
        "vmservice:   File",
        "vmservice: ValueError",
    ]


def test_no_line(journal: FakeJournal, capsys: Output) -> None:
    assert main(["logs", "demo"]) == 0
    assert capsys.readouterr() == ("", "vmservice: the journal has no line of vm@demo.service\n")


def test_what_an_account_may_not_read(journal: FakeJournal, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    sentence = "vmservice: this account may not read all of the journal; root and members of group systemd-journal may\n"
    assert main(["logs", "demo"]) == 0
    assert capsys.readouterr() == ("", sentence)
    journal.add("x", _SYSTEMD_USER_UNIT="vm@demo.service", _UID=str(os.getuid()))
    assert main(["logs", "--user", "demo"]) == 0
    assert capsys.readouterr().err == ""  # the user's own file is there
    assert LastLines("demo", user=False).note == sentence.removeprefix("vmservice: ").rstrip()


def test_no_journal_at_all(journal: FakeJournal, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_journal, "SYSTEM_FILES", ("/nowhere/*",))
    assert main(["logs", "demo"]) == 0
    assert capsys.readouterr() == ("", "vmservice: this host keeps no journal\n")


def test_a_journal_that_cannot_be_opened(journal: FakeJournal, capsys: Output) -> None:
    journal.refusal = OSError(24, "Too many open files")
    assert main(["logs", "demo"]) == 71
    assert capsys.readouterr().err == "vmservice: cannot open the journal: Too many open files (errno 24)\n"
    assert LastLines("demo", user=False).note == "cannot open the journal: Too many open files (errno 24)"


def test_without_the_library(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "systemd", None)
    assert main(["logs", "demo"]) == 69
    assert capsys.readouterr().err == "vmservice: the journal cannot be read: python3-systemd is not installed\n"


def test_the_last_lines_of_both(journal: FakeJournal) -> None:
    """A guest that talks all the time does not hide what the VMM said."""
    journal.vmm("VM started")
    for number in range(100):
        journal.guest(f"beat {number}")
    journal.add("Started", UNIT="vm@demo.service", _PID="1", SYSLOG_IDENTIFIER="systemd")
    last = LastLines("demo", user=False)
    assert last.note is None
    assert last.as_text() == (
        "\nLast lines of the VMM:\n  Nov 27 02:00:05 vmservice: VM started\n  Nov 27 02:01:46 systemd: Started\n"
        "\nLast lines of the guest:\n"
        + "".join(f"  Nov 27 02:01:4{number - 94} serial: beat {number}\n" for number in range(95, 100))
    )
    assert [line["text"] for line in last.as_list()] == ["VM started", *(f"beat {n}" for n in range(95, 100)), "Started"]
    assert last.as_list()[1]["source"] == "serial"


def test_the_real_reader_takes_these_calls() -> None:
    """The fake is no better than its likeness: the same calls on what is installed, whether or not this host has a journal."""
    pytest.importorskip("systemd.journal", reason="python3-systemd is not installed")
    with VmJournal("no-such-vm", user=False) as journal:
        assert (
            journal.last(3, guest=True)
            == journal.last(3, guest=False)
            == list(journal.lines(None))
            == list(journal.lines(2))
            == []
        )
        assert journal._reader.fileno() >= 0
        assert isinstance(journal._reader.get_timeout_ms(), int)
        journal._reader.process()
