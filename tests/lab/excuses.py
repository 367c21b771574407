"""What failed in the lab for which neither the test nor vmservice is to blame: its emulated host.

docs/design.md, "Tests", says what has been seen of it, with guests of QEMU's too.
"""

from __future__ import annotations

from typing import Protocol

from lab.channel import CommandFailed, HostDied
from lab.host import nested_kvm
from support.guest_evidence import MIXED_UP
from support.unit_vm import NoSuchLine, Outcome

# One boot in some hundreds was reset. A fault of vmservice's own would soon be seen more often than that.
_RESETS_EXCUSED = 2
_FIND_RESETS = (
    "journalctl --sync; journalctl --no-pager --output=cat --unit='vm@*'"
    " --grep='triple fault of vCPU [0-9]+ at a place that KVM does not tell'"
)


class Host(Protocol):
    def run(self, command: str, *, timeout: float = 60) -> Outcome: ...


class Excuses:
    """Of one run of the tests."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self._resets_excused = 0

    def resets(self, host: Host) -> int:
        """How many guests a triple fault has ended in this start of `host` so that KVM could not say where."""
        try:
            return host.run(_FIND_RESETS).stdout.count("triple fault")  # where there are none it says "-- No entries --"
        except (HostDied, CommandFailed):
            return 0

    def excuse(self, failure: Exception, host: Host, resets_before: int) -> str | None:
        """Why a test that failed so may run again on a new host; None where it may not."""
        if isinstance(failure, HostDied):
            return str(failure)
        if nested_kvm():
            return None
        if isinstance(failure, NoSuchLine) and MIXED_UP in str(failure):
            return str(failure)
        if self.resets(host) > resets_before and self._resets_excused < _RESETS_EXCUSED:
            self._resets_excused += 1
            where = host.run("python3 /lab/shutdowns.py tell", timeout=180)
            return f"a guest was reset by a triple fault, asked for by nobody: {where.stdout}{where.stderr}{failure}"
        return None
