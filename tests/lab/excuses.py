"""What failed in the lab for which neither the test nor vmservice is to blame: its emulated host.

docs/design.md, "Tests", says what has been seen of it, with guests of QEMU's too.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from lab.channel import CommandFailed, HostDied
from lab.host import nested_kvm
from support.unit_vm import Outcome

# One boot in some hundreds was reset. A fault of vmservice's own would soon be seen more often than that.
_RESETS_EXCUSED = 2
_FIND_RESETS = (
    "journalctl --sync; journalctl --no-pager --output=cat --unit='vm@*'"
    " --grep='triple fault of vCPU [0-9]+ at a place that KVM does not tell'"
)


class Host(Protocol):
    def run(self, command: str, *, timeout: float = 60) -> Outcome: ...


class Faults(NamedTuple):
    """Of the emulator, in one start of the host."""

    # Guests that a triple fault has ended so that KVM could not say where.
    resets: int = 0
    # Page faults of guests that had the registers of the host: proof, where there is one.
    mixed_up: int = 0


def faults(host: Host) -> Faults:
    """All there have been; none of a host that does not answer, or whose KVM is not emulated."""
    if nested_kvm():
        return Faults()
    try:
        # Where there are no resets it says "-- No entries --".
        resets = host.run(_FIND_RESETS).stdout.count("triple fault")
        return Faults(resets, int(host.run("python3 /lab/svm_faults.py mixed-up").stdout))
    except (HostDied, CommandFailed):
        return Faults()


class Excuses:
    """Of one run of the tests."""

    def __init__(self) -> None:
        self._resets_excused = 0

    def excuse(self, failure: Exception, host: Host, before: Faults) -> str | None:
        """Why a test that failed so may run again on a new host; None where it may not. `before` the test there were these."""
        if isinstance(failure, HostDied):
            return str(failure)
        now = faults(host)
        if now.mixed_up > before.mixed_up:
            return f"a guest went on with the registers of its host: {failure}"
        if now.resets > before.resets and self._resets_excused < _RESETS_EXCUSED:
            self._resets_excused += 1
            where = host.run("python3 /lab/svm_faults.py tell", timeout=180)
            return f"a guest was reset by a triple fault, asked for by nobody: {where.stdout}{where.stderr}{failure}"
        return None
