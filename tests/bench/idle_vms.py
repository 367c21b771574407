"""Runs in the container: many VMs at once whose guests halt: what they cost together, and each beyond its guest's memory."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from bench.bus_call import BusCaller
from bench.machines import LAB, MEMORY_MIB, ours, qemu, start
from bench.rows import BenchError, fail, note

# The processor time of a hundred is large enough to be measured; their share of memory is that of thirty in earlier notes.
FOR_CPU, FOR_MEMORY = 100, 30
IDLE_SEC = 10.0
# A hundred that all start at once are not idle sooner.
SETTLE_SEC = 10.0
CPU_ROW = f"{FOR_CPU} idle VMs, % of a core"
MEMORY_ROW = f"{FOR_MEMORY} idle VMs, MiB beyond the guest, each"
SWITCHES_ROW = f"{FOR_MEMORY} idle VMs, context switches a second, each"

Processes = list[subprocess.Popen[bytes]]


def _cpu_sec(processes: Processes) -> float:
    """What all threads of all processes have run, to the nanosecond."""
    files = (path for process in processes for path in Path(f"/proc/{process.pid}/task").glob("*/schedstat"))
    return sum(int(path.read_text().split()[0]) for path in files) / 1e9


def _switches(processes: Processes) -> int:
    """How often a thread of theirs was given a processor, whether it had slept or been preempted: proc(5), status."""
    files = (path for process in processes for path in Path(f"/proc/{process.pid}/task").glob("*/status"))
    lines = (line for path in files for line in path.read_text().splitlines())
    return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)


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
        raise BenchError(f"no mapping of process {pid} has the size of the guest's memory")
    return (total_kib - guest_kib) / 1024


def _idle(commands: list[list[str]], wait: Callable[[], None]) -> dict[str, float]:
    """Row → figure, of machines that `commands` start together; `wait` returns when they run."""
    processes: Processes = []
    try:
        for command in commands:
            processes.append(start(command, subprocess.DEVNULL))
        wait()
        time.sleep(SETTLE_SEC)
        cpu, switches = _cpu_sec(processes), _switches(processes)
        time.sleep(IDLE_SEC)
        cpu, switches = _cpu_sec(processes) - cpu, _switches(processes) - switches
        if any(process.poll() is not None for process in processes):
            raise BenchError(f"one of {commands[0]!r} ended")
        if len(commands) == FOR_CPU:
            return {CPU_ROW: cpu / IDLE_SEC * 100}
        shares = [_beyond_guest_mib(process.pid) for process in processes]
        return {SWITCHES_ROW: switches / IDLE_SEC / len(commands), MEMORY_ROW: sum(shares) / len(shares)}
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def _wait_for_names(names: list[str]) -> None:
    for name in names:
        BusCaller(f"org.vmservice.VM1.{name}").wait_for_name()


def measure(runs: int) -> None:
    image = LAB / "idle.bin"
    for count in (FOR_MEMORY, FOR_CPU):
        names = [f"idle{number}" for number in range(count)]
        our_commands = [ours(name, image, console='mode = "null"') for name in names]
        try:
            for _ in range(runs):
                for row, figure in _idle(our_commands, lambda names=names: _wait_for_names(names)).items():  # type: ignore[misc]
                    note(row, "vmservice", figure)
                for row, figure in _idle([qemu(image, console="null")] * count, lambda: None).items():
                    note(row, "peer", figure)
        except Exception as error:  # the other number of VMs may do
            fail(f"{count} idle VMs", error)
