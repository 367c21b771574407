"""What a VM takes of the host: processor time and memory of its unit's control group, or of its process without a unit."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

# Documentation/admin-guide/cgroup-v2.rst. A host with control groups of version 1 alone has none of these files.
CGROUPS = "/sys/fs/cgroup"

# clock_getcpuclockid(3): the clock of a process is its inverted number, shifted by three, and this in the lowest bits.
_CPUCLOCK_SCHED = 2
_PAGE_BYTES = os.sysconf("SC_PAGESIZE")


@dataclass(frozen=True)
class Usage:
    """`cpu_sec` is the processor time since the start, `at` when that was read, by time.monotonic(). None is not known."""

    cpu_sec: float | None
    memory_bytes: int | None
    at: float


def usage(control_group: str, pid: int | None) -> Usage:
    """Of the group if there is one, else of the process; so is the memory where the kernel does not count a group's."""
    cpu_sec = memory_bytes = None
    if control_group:
        cpu_sec, memory_bytes = _group_cpu_sec(control_group), _group_memory_bytes(control_group)
    if pid is not None:
        cpu_sec = _process_cpu_sec(pid) if not control_group else cpu_sec
        memory_bytes = _process_memory_bytes(pid) if memory_bytes is None else memory_bytes
    return Usage(cpu_sec, memory_bytes, time.monotonic())


def cpu_percent(before: Usage | None, after: Usage | None) -> float | None:
    """How much of one processor was used between the two, in percent: 200 is two of them, whole."""
    if before is None or after is None or before.cpu_sec is None or after.cpu_sec is None or after.at <= before.at:
        return None
    used_sec = after.cpu_sec - before.cpu_sec
    return 100 * used_sec / (after.at - before.at) if used_sec >= 0 else None  # it was started anew meanwhile


def _group_cpu_sec(group: str) -> float | None:
    for line in _read(f"{CGROUPS}{group}/cpu.stat").splitlines():
        key, _, value = line.partition(" ")
        if key == "usage_usec" and value.isdecimal():
            return int(value) / 1e6
    return None


def _group_memory_bytes(group: str) -> int | None:
    text = _read(f"{CGROUPS}{group}/memory.current").strip()
    return int(text) if text.isdecimal() else None


def _process_cpu_sec(pid: int) -> float | None:
    try:
        return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)
    except OSError:
        return None


def _process_memory_bytes(pid: int) -> int | None:
    _size, _, rest = _read(f"/proc/{pid}/statm").partition(" ")
    resident = rest.partition(" ")[0]
    return int(resident) * _PAGE_BYTES if resident.isdecimal() else None


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
