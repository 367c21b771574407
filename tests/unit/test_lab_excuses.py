"""Which failures of the lab's tests are its host's: these alone run again."""

from __future__ import annotations

import pytest
from lab import excuses
from lab.channel import CommandFailed, Completed, HostDied
from lab.excuses import Excuses, Faults, faults
from lab.svm_faults import entry_of_guests
from support.unit_vm import NoSuchLine

RESET = "the guest was reset: triple fault of vCPU 3 at a place that KVM does not tell on this host, which has reset it"
KALLSYMS = """\
0000000000039060 A svm_data\t[kvm_amd]
ffffffffc08b2790 t __svm_sev_es_vcpu_run\t[kvm_amd]
ffffffffc0840000 t svm_init\t[kvm_amd]
ffffffffc08b2620 t __svm_vcpu_run\t[kvm_amd]
ffffffffc08b2700 d svm_x86_ops\t[kvm_amd]
ffffffffc08b2650 t kvm_exit\t[kvm]
ffffffff81000000 T _text
"""


class Host:
    """Its journal has these lines of resets, and its kernel has noted so many guests at a place of the host's."""

    def __init__(self) -> None:
        self.resets: list[str] = []
        self.mixed_up = 0

    def run(self, command: str, *, timeout: float = 60) -> Completed:
        said = "\n".join(self.resets) or "-- No entries --"
        if "svm_faults.py" in command:
            said = "triple fault: rip 0x1" if "tell" in command else f"{self.mixed_up}\n"
        return Completed(command, 0, said, "", False)


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(excuses, "nested_kvm", lambda: False)


def test_a_host_that_died_is_to_blame() -> None:
    assert Excuses().excuse(HostDied("no answer"), Host(), Faults()) == "no answer"


@pytest.mark.parametrize("failure", [AssertionError("3 == 4"), NoSuchLine("no line"), CommandFailed("false"), KeyError("x")])
def test_nothing_else_is_excused_while_nothing_was_noted(failure: Exception) -> None:
    host = Host()
    host.resets = [RESET]
    host.mixed_up = 7
    assert Excuses().excuse(failure, host, Faults(1, 7)) is None


def test_a_guest_with_the_registers_of_its_host_is_excused() -> None:
    host = Host()
    before = faults(host)
    host.mixed_up = 3
    excuse = Excuses().excuse(AssertionError("systemctl start: exit status 1"), host, before)
    assert excuse == "a guest went on with the registers of its host: systemctl start: exit status 1"


def test_guests_that_were_reset_are_excused_twice() -> None:
    host = Host()
    found = Excuses()
    for number in range(1, 4):
        before = faults(host)
        host.resets.append(RESET)
        excuse = found.excuse(AssertionError("silence"), host, before)
        assert ("triple fault: rip 0x1" in (excuse or "")) is (number <= 2)


def test_where_kvm_nests_only_a_host_that_died_is_excused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(excuses, "nested_kvm", lambda: True)
    host = Host()
    host.resets = [RESET]
    host.mixed_up = 1
    assert Excuses().excuse(NoSuchLine("no line"), host, Faults()) is None
    assert Excuses().excuse(HostDied("gone"), host, Faults()) == "gone"


def test_the_place_of_the_host_is_the_function_that_enters_a_guest() -> None:
    assert entry_of_guests(KALLSYMS) == (0xFFFFFFFFC08B2620, 0xFFFFFFFFC08B2790)
