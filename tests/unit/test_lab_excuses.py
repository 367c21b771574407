"""Which failures of the lab's tests are its host's: these alone run again."""

from __future__ import annotations

import pytest
from lab import excuses
from lab.channel import CommandFailed, Completed, HostDied
from lab.excuses import Excuses
from support.guest_evidence import MIXED_UP
from support.unit_vm import NoSuchLine

RESET = "the guest was reset: triple fault of vCPU 3 at a place that KVM does not tell on this host, which has reset it"


class Host:
    """Its journal has these lines of resets."""

    def __init__(self) -> None:
        self.resets: list[str] = []

    def run(self, command: str, *, timeout: float = 60) -> Completed:
        if "shutdowns.py tell" in command:
            return Completed(command, 0, "triple fault: rip 0x1", "", False)
        assert "journalctl" in command
        return Completed(command, 0, "\n".join(self.resets) or "-- No entries --", "", False)


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(excuses, "nested_kvm", lambda: False)


def test_a_host_that_died_is_to_blame() -> None:
    assert Excuses().excuse(HostDied("no answer"), Host(), 0) == "no answer"


@pytest.mark.parametrize("failure", [AssertionError("3 == 4"), NoSuchLine("no line"), CommandFailed("false"), KeyError("x")])
def test_nothing_else_is_excused_while_no_guest_was_reset(failure: Exception) -> None:
    host = Host()
    host.resets = [RESET]
    assert Excuses().excuse(failure, host, 1) is None


def test_a_silent_guest_is_excused_by_evidence_only() -> None:
    assert Excuses().excuse(NoSuchLine(f"rip 0xffffffffc0, which is __svm_vcpu_run+0xa0 {MIXED_UP}"), Host(), 0) is not None


def test_guests_that_were_reset_are_excused_twice() -> None:
    host = Host()
    found = Excuses()
    for number in range(1, 4):
        before = found.resets(host)
        host.resets.append(RESET)
        excuse = found.excuse(AssertionError("silence"), host, before)
        assert ("triple fault: rip 0x1" in (excuse or "")) is (number <= 2)


def test_where_kvm_nests_only_a_host_that_died_is_excused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(excuses, "nested_kvm", lambda: True)
    host = Host()
    host.resets = [RESET]
    assert Excuses().excuse(NoSuchLine(MIXED_UP), host, 0) is None
    assert Excuses().excuse(HostDied("gone"), host, 0) == "gone"
