"""What a guest's resets cost the journal, and a journal that was away when the unit started."""

from __future__ import annotations

import os
import time

import pytest
from support.clock import Clock
from support.datagrams import Listener, decode
from support.journal_log import deliver_to, journal_log
from support.machines import RecordingMachine

from vmservice.service.journal import LIMIT_ENTRIES, RESETS_BURST, RESETS_PERIOD_SEC, Log
from vmservice.service.outbox import Outbox
from vmservice.vm.vm import Vm


def test_resets_are_a_handful_of_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("vmservice.service.journal.time.monotonic", lambda: now[0])
    with journal_log() as (journal, log):
        vm = Vm(
            name="demo",
            vcpus=1,
            max_vcpus=1,
            memory_bytes=1 << 20,
            build=lambda _vcpus: RecordingMachine(),
            call_later=Clock().call_later,
        )
        vm.subscribe(lambda changes: log.state(vm, changes))
        vm.boot()
        assert journal.entry()["MESSAGE"] == "VM started"
        for _ in range(300):
            vm.reboot()
        said = [journal.entry()["MESSAGE"] for _ in range(RESETS_BURST)]
        text = "the guest was reset: Reboot was asked for; it starts anew"
        assert said == [text] * RESETS_BURST
        now[0] += RESETS_PERIOD_SEC
        vm.reboot()
        left_out = 300 - RESETS_BURST
        assert journal.entry()["MESSAGE"] == f"{text}, as {left_out} times before without a line here"
        vm.reboot()
        assert journal.entry()["MESSAGE"] == text
        vm.close()


@pytest.mark.parametrize(("invocation", "heard"), [("f00d", True), (None, False)], ids=["a unit", "a shell"])
def test_standard_error_that_leads_nowhere(monkeypatch: pytest.MonkeyPatch, invocation: str | None, heard: bool) -> None:
    """systemd gives a unit /dev/null while it cannot reach journald; its messages are for the journal all the same."""
    if invocation is None:
        monkeypatch.delenv("INVOCATION_ID", raising=False)
    else:
        monkeypatch.setenv("INVOCATION_ID", invocation)
    outbox = Outbox()
    with Listener() as journal:
        null = os.open(os.devnull, os.O_WRONLY)
        log = Log("demo", outbox, null, journal.path, deliver_to(journal.path))
        log.warning("careful")
        outbox.close()
        log.print_left()
        assert [decode(datagram)["MESSAGE"] for datagram in journal.waiting()] == (["careful"] if heard else [])
        os.close(null)


def test_a_journal_that_reads_nothing_holds_nobody_and_what_is_lost_is_counted() -> None:
    """Its socket is full: entries wait, up to a limit; when it reads again the rest is there, and a line for what is not."""
    sent = 5 * LIMIT_ENTRIES
    with journal_log() as (journal, log):
        begin = time.monotonic()
        for number in range(sent):
            log.info(f"entry {number}")
        assert time.monotonic() - begin < 20
        messages: list[str] = []
        while "missing" not in "".join(messages):
            messages.append(journal.entry()["MESSAGE"])
        log.info("the end")
        while messages[-1] != "the end":
            messages.append(journal.entry()["MESSAGE"])
    lost = [int(message.split()[0]) for message in messages if "messages are missing here" in message]
    numbers = [int(message.split()[1]) for message in messages if message.startswith("entry ")]
    assert numbers == sorted(set(numbers))
    assert len(numbers) + sum(lost) == sent
    assert len(numbers) >= LIMIT_ENTRIES
