"""What a guest's resets cost the journal, and a journal that was away when the unit started."""

from __future__ import annotations

import os
import time

import pytest
from support.datagrams import Listener
from support.machines import RecordingMachine

from vmservice.host.journal_socket import JournalSocket
from vmservice.service import journal as journal_module
from vmservice.service.journal import RESETS_BURST, RESETS_PERIOD_SEC, Log
from vmservice.vm.vm import Vm


def test_resets_are_a_handful_of_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Listener() as journal:
        log = Log("demo", JournalSocket(journal.path))
        vm = Vm(name="demo", vcpus=1, max_vcpus=1, memory_bytes=1 << 20, build=lambda _vcpus: RecordingMachine())
        vm.subscribe(lambda changes: log.state(vm, changes))
        vm.boot()
        assert journal.entry()["MESSAGE"] == "the VM runs"
        for _ in range(300):
            vm.reboot()
        said = [journal.entry()["MESSAGE"] for _ in range(RESETS_BURST)]
        assert said == ["the guest was reset and starts anew"] * RESETS_BURST
        now[0] += RESETS_PERIOD_SEC
        vm.reboot()
        left_out = 300 - RESETS_BURST
        assert (
            journal.entry()["MESSAGE"] == f"the guest was reset and starts anew, as {left_out} times before without a line here"
        )
        vm.reboot()
        assert journal.entry()["MESSAGE"] == "the guest was reset and starts anew"
        log.close()
        vm.close()


@pytest.mark.parametrize(("invocation", "heard"), [("f00d", True), (None, False)], ids=["a unit", "a shell"])
def test_standard_error_that_leads_nowhere(monkeypatch: pytest.MonkeyPatch, invocation: str | None, heard: bool) -> None:
    """systemd gives a unit /dev/null while it cannot reach journald; its messages are for the journal all the same."""
    if invocation is None:
        monkeypatch.delenv("INVOCATION_ID", raising=False)
    else:
        monkeypatch.setenv("INVOCATION_ID", invocation)
    with Listener() as journal:
        monkeypatch.setattr(journal_module, "JournalSocket", lambda: JournalSocket(journal.path))
        null = os.open(os.devnull, os.O_WRONLY)
        log = Log("demo", stderr_fd=null)
        log.warning("careful")
        if heard:
            assert journal.entry()["MESSAGE"] == "careful"
        else:
            assert journal.waiting() == []
        log.close()
        os.close(null)
