"""What the VMM says: fields in the journal, or lines for people; and never a wait."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from support.clock import Clock
from support.journal_log import deliver_to, journal_log
from support.machines import RecordingMachine

from vmservice.service import message_ids
from vmservice.service.journal import MESSAGE_LIMIT_CHARS, Log
from vmservice.service.outbox import Outbox
from vmservice.vm.events import EventKind, GuestEvent
from vmservice.vm.vm import Vm


class Pipe:
    """What a person would read on standard error."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)

    def text(self) -> str:
        try:
            return os.read(self.reader, 1 << 20).decode()
        except BlockingIOError:
            return ""

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.writer)


@pytest.mark.parametrize(("policy", "then"), [("reboot", "; it starts anew"), ("pause", "; VM paused")])
@pytest.mark.parametrize(
    ("kind", "priority", "what", "message_id"),
    [
        (EventKind.PANIC, "3", "the guest panicked", message_ids.GUEST_PANIC),
        (EventKind.WATCHDOG, "4", "the guest did not feed its watchdog", message_ids.GUEST_WATCHDOG),
    ],
)
def test_a_guest_that_is_lost(policy: str, then: str, kind: str, priority: str, what: str, message_id: str) -> None:
    machine = RecordingMachine(1)
    vm = Vm(
        name="demo",
        vcpus=1,
        max_vcpus=1,
        memory_bytes=1 << 20,
        build=lambda vcpus: machine,
        call_later=Clock().call_later,
        on_panic=policy,
        on_watchdog=policy,
    )
    vm.boot()
    with journal_log("demo") as (journal, log):
        log.state(vm)
        journal.entry()
        vm.subscribe(lambda changes: log.state(vm, changes))
        vm.on_guest_event(GuestEvent(machine, kind))
        entry = journal.entry()
        assert (entry["PRIORITY"], entry["MESSAGE"], entry["MESSAGE_ID"]) == (priority, what + then, message_id)
        assert (entry["VM_STATE"], entry["VM_LAST_EXIT"]) == (vm.state, kind)


def test_fields() -> None:
    with journal_log("web-1") as (journal, log):
        log.info("hello")
        assert journal.entry() == {
            "MESSAGE": "hello",
            "PRIORITY": "6",
            "SYSLOG_IDENTIFIER": "vmservice",
            "VM_NAME": "web-1",
        }
        log.warning("careful")
        assert journal.entry()["PRIORITY"] == "4"
        log.error("two\nlines")
        entry = journal.entry()
        assert (entry["PRIORITY"], entry["MESSAGE"]) == ("3", "two\nlines")
        log.bus_acquired()
        assert journal.entry()["MESSAGE_ID"] == message_ids.BUS_NAME_ACQUIRED
        log.bus_lost("gone")
        assert journal.entry()["MESSAGE_ID"] == message_ids.BUS_NAME_LOST
        log.error("x" * 100_000)
        assert journal.entry()["MESSAGE"] == "x" * (MESSAGE_LIMIT_CHARS - 1) + "…"
        log.error("a bad path \udcff")
        assert journal.entry()["MESSAGE"] == "a bad path ?"


def test_changes_of_state() -> None:
    machines: list[RecordingMachine] = []

    def build(_vcpus: int) -> RecordingMachine:
        machines.append(RecordingMachine())
        return machines[-1]

    vm = Vm(name="demo", vcpus=1, max_vcpus=2, memory_bytes=1 << 20, build=build, call_later=Clock().call_later)
    with journal_log("demo") as (journal, log):
        log.state(vm)
        vm.subscribe(lambda changes: log.state(vm, changes))

        def said() -> tuple[Any, ...]:
            entry = journal.entry()
            return entry["MESSAGE_ID"], entry["VM_STATE"], entry["PRIORITY"], entry["MESSAGE"]

        vm.boot()
        assert said() == (message_ids.VM_RUNNING, "running", "6", "VM started")
        vm.pause()
        assert said() == (message_ids.VM_PAUSED, "paused", "6", "VM paused")
        vm.resume()
        assert said() == (message_ids.VM_RESUMED, "running", "6", "VM resumed")
        vm.reboot()
        assert said() == (message_ids.GUEST_RESET, "running", "5", "the guest was reset: Reboot was asked for; it starts anew")
        vm.resize(2)
        vm.shutdown()
        assert said() == (message_ids.VM_SHUTDOWN, "shutdown", "6", "VM shut down (shutdown)"), "Resize is no change of state"
        vm.boot()
        said()
        vm.on_guest_event(GuestEvent(machines[-1], EventKind.ERROR, "cannot run vCPU 0: Bad address (errno 14)"))
        assert said() == (
            message_ids.GUEST_ERROR,
            "shutdown",
            "3",
            "the guest was stopped by an error: cannot run vCPU 0: Bad address (errno 14)",
        )
        for why in ("the guest did not power off within 120 seconds", "shutdown_timeout is 0"):
            vm.boot()
            said()
            vm.force_stop(why)
            entry = journal.entry()
            assert (entry["MESSAGE_ID"], entry["PRIORITY"]) == (message_ids.FORCED_STOP, "4")
            assert (entry["VM_STATE"], entry["VM_LAST_EXIT"]) == ("shutdown", "error")
            assert entry["MESSAGE"] == f"forced the VM to stop: {why}"
        vm.boot()
        said()
        vm.shutdown()
        assert said()[0] == message_ids.VM_SHUTDOWN
        assert journal.waiting() == []


def test_a_guest_that_had_panicked_is_forced_to_stop() -> None:
    """One line, by its own entry of the catalog; the panic had one when it happened."""
    machine = RecordingMachine()
    call_later = Clock().call_later
    vm = Vm(
        name="demo",
        vcpus=1,
        max_vcpus=1,
        memory_bytes=1 << 20,
        build=lambda _vcpus: machine,
        call_later=call_later,
        on_panic="pause",
    )
    with journal_log("demo") as (journal, log):
        vm.boot()
        log.state(vm)
        vm.subscribe(lambda changes: log.state(vm, changes))
        vm.on_guest_event(GuestEvent(machine, EventKind.PANIC))
        assert [journal.entry()["MESSAGE_ID"] for _ in range(2)][1] == message_ids.GUEST_PANIC
        vm.force_stop("the guest has panicked")
        entry = journal.entry()
        assert (entry["MESSAGE_ID"], entry["VM_LAST_EXIT"]) == (message_ids.FORCED_STOP, "panic")
        assert journal.waiting() == []


def test_for_people() -> None:
    pipe = Pipe()
    log = Log("demo", Outbox(), pipe.writer)
    log.info("hello")
    log.warning("careful")
    log.error("two\nlines \x1b[31mred\x07")
    assert pipe.text() == (
        "vmservice: demo: hello\n"
        "vmservice: demo: warning: careful\n"
        "vmservice: demo: error: two\n"
        "vmservice: demo: error: lines red^G\n"
    )
    pipe.close()


def test_on_the_journals_stream_without_its_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard error leads to the journal, but its native socket is not there: a container with a mounted stream."""
    pipe = Pipe()
    status = os.fstat(pipe.writer)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    nowhere = "/run/vmservice-nowhere"
    log = Log("demo", Outbox(), pipe.writer, nowhere, deliver_to(nowhere))
    log.warning("careful")
    assert pipe.text() == "<4>careful\n"
    monkeypatch.setenv("JOURNAL_STREAM", "0:0")
    log = Log("demo", Outbox(), pipe.writer)
    log.warning("careful")
    assert pipe.text() == "vmservice: demo: warning: careful\n"
    pipe.close()


def test_what_the_journal_never_took_is_on_standard_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """journald has gone for good: the process ends soon all the same, and its last words are on the stream."""
    pipe = Pipe()
    status = os.fstat(pipe.writer)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    place = tmp_path / "socket"
    place.touch()  # nobody listens at it
    outbox = Outbox()
    log = Log("demo", outbox, pipe.writer, str(place), deliver_to(str(place)))
    log.error("the last word")
    begin = time.monotonic()
    outbox.close()
    log.print_left()
    assert time.monotonic() - begin < 20
    assert pipe.text() == "<3>the last word\n"
    pipe.close()


def test_nobody_reads_standard_error() -> None:
    pipe = Pipe()
    log = Log("demo", Outbox(), pipe.writer)
    begin = time.monotonic()
    for _ in range(200):
        log.info("x" * 1000)
    assert time.monotonic() - begin < 20
    pipe.close()
    log.info("nobody at all")
