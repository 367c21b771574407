"""Runs in the container: thirty VMs at once whose guests halt: what they cost together, and each beyond its guest's memory."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from bench.bus_call import BusCaller
from bench.machines import LAB, MEMORY_MIB, ours, qemu, start
from bench.rows import Samples, note

COUNT = 30
IDLE_SEC = 10.0
SETTLE_SEC = 3.0
NAMES = [f"idle{number}" for number in range(COUNT)]
CPU_ROW, MEMORY_ROW = f"{COUNT} idle VMs, % of a core", f"{COUNT} idle VMs, MiB beyond the guest, each"


def _cpu_sec(processes: list[subprocess.Popen[bytes]]) -> float:
    """What all threads of all processes have run, to the nanosecond."""
    files = (path for process in processes for path in Path(f"/proc/{process.pid}/task").glob("*/schedstat"))
    return sum(int(path.read_text().split()[0]) for path in files) / 1e9


def _beyond_guest_mib(pid: int) -> float:
    """The process's share of memory (Pss, as smaps_rollup adds it up) without the mapping that is as large as the guest's."""
    guest_kib = total_kib = size_kib = 0
    found = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        field, _, value = line.partition(":")
        if field == "Size":
            size_kib = int(value.split()[0])
            found |= size_kib == MEMORY_MIB << 10
        elif field == "Pss":
            total_kib += int(value.split()[0])
            if size_kib == MEMORY_MIB << 10:
                guest_kib += int(value.split()[0])
    if not found:
        raise SystemExit(f"no mapping of process {pid} has the size of the guest's memory")
    return (total_kib - guest_kib) / 1024


def _measure(commands: list[list[str]], wait: Callable[[], None]) -> tuple[float, float]:
    """% of a core that all take together, and MiB of each, in the mean."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            processes.append(start(command, subprocess.DEVNULL))
        wait()
        time.sleep(SETTLE_SEC)
        before = _cpu_sec(processes)
        time.sleep(IDLE_SEC)
        percent = (_cpu_sec(processes) - before) / IDLE_SEC * 100
        if any(process.poll() is not None for process in processes):
            raise SystemExit(f"one of {commands[0]!r} ended")
        return percent, sum(_beyond_guest_mib(process.pid) for process in processes) / len(processes)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def _wait_for_names() -> None:
    for name in NAMES:
        BusCaller(f"org.vmservice.VM1.{name}").wait_for_name()


def measure(runs: int) -> Samples:
    image = LAB / "idle.bin"
    quiet = 'mode = "null"'
    sides: dict[str, tuple[list[list[str]], Callable[[], None]]] = {
        "vmservice": ([ours(name, image, console=quiet) for name in NAMES], _wait_for_names),
        "peer": ([qemu(image, console="null")] * COUNT, lambda: time.sleep(SETTLE_SEC)),
    }
    samples: Samples = {}
    for _ in range(runs):
        for side, (commands, wait) in sides.items():
            percent, mib = _measure(commands, wait)
            note(samples, CPU_ROW, side, percent)
            note(samples, MEMORY_ROW, side, mib)
    return samples
