"""Where the vCPUs are, in the journal: whole, not too often unasked, and never the end of a VM."""

from __future__ import annotations

import time

import pytest

from vmservice.service import message_ids
from vmservice.service.dump import Dump
from vmservice.service.journal import Log
from vmservice.service.outbox import Outbox
from vmservice.vm.vm import Vm


class Described(Vm):
    """With vCPUs that are described by what a test says."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines

    def describe(self) -> list[str]:
        if self.lines == ["fail"]:
            raise ValueError("mmap closed or invalid")
        return self.lines


class Recorded(Log):
    def __init__(self) -> None:
        super().__init__("demo", Outbox())
        self.said: list[tuple[str, str]] = []

    def message(self, priority: int, text: str, message_id: str = "", **fields: str) -> None:
        self.said.append((text, message_id))


def test_each_line_is_whole_in_one_entry_or_another() -> None:
    log = Recorded()
    lines = [f"vCPU {index}: {'x' * 1000}" for index in range(40)]
    Dump(Described(lines), log).now("for a test")
    assert len(log.said) == 4
    assert {message_id for _text, message_id in log.said} == {message_ids.VM_DUMP}
    assert log.said[0][0].startswith("the vCPUs, for a test:\n")
    assert [line for text, _id in log.said for line in text.split("\n")[1:]] == lines
    assert all(len(text) < 16 * 1024 for text, _id in log.said)


def test_unasked_it_is_written_once_a_minute_and_asked_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    log = Recorded()
    dump = Dump(Described(["vCPU 0"]), log)
    for _ in range(100):
        dump.now("unasked")
        dump.soon("unasked")
    dump.wait()
    assert len(log.said) == 1
    for _ in range(2):
        dump.ask()
        dump.wait()
    assert len(log.said) == 3
    now[0] += 61
    dump.soon("unasked")
    dump.wait()
    assert len(log.said) == 4


def test_vcpus_that_cannot_be_looked_at_are_said_so() -> None:
    log = Recorded()
    dump = Dump(Described(["fail"]), log)
    dump.now("for a test")
    dump.wait()
    assert "the vCPUs cannot be described" in log.said[0][0]
    assert "mmap closed" in log.said[0][0]
