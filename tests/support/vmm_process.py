"""What the process of a VM costs its host, and what it has told the journal: for tests that break something around it."""

from __future__ import annotations

import os

from support.unit_vm import UnitVm

_TICKS_PER_SEC = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Cost:
    """A VMM's use of the host at one moment."""

    def __init__(self, vm: UnitVm) -> None:
        pid = vm.main_pid()
        told = vm.host.run(f"cat /proc/{pid}/stat; ls /proc/{pid}/fd | wc -l", check=True).stdout.splitlines()
        fields = told[0].rpartition(")")[2].split()  # proc_pid_stat(5), from field 3 on
        self.cpu_sec = (int(fields[11]) + int(fields[12])) / _TICKS_PER_SEC
        self.threads = int(fields[17])
        self.resident_bytes = int(fields[21]) * _PAGE_BYTES
        self.fds = int(told[1])


def complaints(vm: UnitVm) -> list[str]:
    """What the VMM itself says at priority warning and above, all starts of the unit."""
    vm.host.run("journalctl --sync", check=True)
    return vm.journal("--output=cat", "--priority=warning", "SYSLOG_IDENTIFIER=vmservice").splitlines()


def beats(vm: UnitVm) -> int:
    """The number of the last heartbeat in the journal, 0 where there is none."""
    vm.host.run("journalctl --sync", check=True)
    lines = vm.journal("--output=cat", f"SYSLOG_IDENTIFIER=vm-{vm.name}").splitlines()
    return next((int(line.split()[1]) for line in reversed(lines) if line.startswith("beat ")), 0)
