"""What several tests ask of a Linux guest and its VM."""

from __future__ import annotations

import re

from support.unit_vm import UnitVm

# For a guest that never comes: several that boot on one emulated processor take minutes.
BOOT_TIMEOUT_SEC = 300

# Warnings of a guest's kernel that are not about our machine.
EXPLAINED = (
    r"amd_pstate: the _CPC object is not present"  # the lab's processor says it is AMD's; power management is the host's
    r"|PCI: (Fatal: No config space access function found|System does not support PCI)"  # so it is, with transport "mmio"
    r"|nd_pmem .*: unable to guarantee persistence of writes"  # so of all virtio-pmem, for it is no NVDIMM; flushes come anyway
    r"|hrtimer: interrupt took|clocksource: .*|sched_clock: .*"  # the emulated host is slow
)


def serial_console(vm: UnitVm) -> str:
    """What the guest's programs wrote to its serial console, a line for each of theirs. Of one that it was slow to finish the
    journal has the parts."""
    printed = vm.journal("--output=cat", "VM_CONSOLE=serial").replace("\n", "")
    return printed.replace("vmservice guest:", "\nvmservice guest:")


def unexplained_warnings(console: str) -> list[str]:
    """What the guest's kernel said at level warning and above, as its /init repeats it, and we have no reason for."""
    return [line for line in re.findall("guest: warning (.*)", console) if not re.search(EXPLAINED, line)]


def belongings(vm: UnitVm) -> tuple[int, int]:
    """How many threads and file descriptors the VMM has."""
    counted = vm.host.run(f"ls /proc/{vm.main_pid()}/task | wc -l; ls /proc/{vm.main_pid()}/fd | wc -l", check=True).stdout
    threads, fds = counted.split()
    return int(threads), int(fds)
