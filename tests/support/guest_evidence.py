"""Runs on a VM's host, as root: what tells why a Linux guest says nothing, of the process PID that runs it.

    guest_evidence.py PID

Prints, under headings: what each thread ran in 2 seconds, in the guest and outside; the host's clock; KVM's counters;
KVM's trace of 2 seconds, as counts of exits by reason and guest RIP; and what the guest's kernel has printed, from its memory,
which `quiet` keeps from the console. A part that this host does not have says so. Nothing changes in the guest. How to read it:

* No exit but for interrupts, at a few RIPs: a loop of the guest's; the printk text tells how far it had come.
* A RIP in the host's own __svm_vcpu_run (/proc/kallsyms): what runs the host, an emulator, has put the host's registers in the
  place of the guest's. lab/svm_faults.py counts those.
* A RIP in user space, or in the kernel where no loop is, behind "smp: Brought up": the guest has lost its way.
* Thousands of writes of the TSC deadline: a clock that stands still.
* No entry at all, and system time instead of guest time: KVM does not get into the guest.
* printk ends in "Kernel panic": it says why.
"""

from __future__ import annotations

import collections
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

WINDOW_SEC = 2.0
TRACING = Path("/sys/kernel/tracing")
KVM_STATISTICS = Path("/sys/kernel/debug/kvm")
SHOWN_RIPS = 40
# More than a whole boot.
SHOWN_PRINTK = 40_000
# Smaller mappings are not a Linux guest's memory.
LEAST_MEMORY = 16 << 20
PRINTK_BYTES = 256 << 10


def threads(pid: int) -> None:
    """proc(5), stat: fields 14, 15 and 43 are utime, stime and guest_time in ticks; guest_time is a part of utime. The name,
    field 2, may hold blanks."""

    def times() -> dict[str, tuple[str, list[int]]]:
        found = {}
        for task in sorted(Path(f"/proc/{pid}/task").iterdir(), key=lambda path: int(path.name)):
            name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
            fields = rest.split()
            found[task.name] = (
                f"{name} ({fields[0]}, {wait_channel(task)})",
                [int(fields[field - 3]) for field in (14, 15, 43)],
            )
        return found

    before = times()
    time.sleep(WINDOW_SEC)
    tick_ms = 1000 // os.sysconf("SC_CLK_TCK")
    for task, (name, now) in times().items():
        then = before.get(task, ("", [0, 0, 0]))[1]
        user, system, guest = ((after - earlier) * tick_ms for after, earlier in zip(now, then, strict=True))
        print(f"{task} {name}: in {WINDOW_SEC:.0f} s user {user} ms, of it guest {guest} ms, system {system} ms; in all {now}")


def wait_channel(task: Path) -> str:
    return (task / "wchan").read_text() or "0"


def clock(_pid: int) -> None:
    source = Path("/sys/devices/system/clocksource/clocksource0")
    print(f"{(source / 'current_clocksource').read_text().strip()} of {(source / 'available_clocksource').read_text().strip()}")
    print("load", Path("/proc/loadavg").read_text().strip())
    log = subprocess.run(["dmesg"], capture_output=True, text=True, check=False).stdout.splitlines()
    print("\n".join(line for line in log if re.search("tsc|clocksource", line, re.IGNORECASE)))
    print("\n".join(["dmesg ends with:", *log[-10:]]))


def statistics(pid: int) -> None:
    """Each counter of KVM's that is not zero, and by how much it grew. kvm_stat reads the same files."""
    mounted("debugfs", Path("/sys/kernel/debug"))

    def counters() -> dict[str, int]:
        files = (path for folder in KVM_STATISTICS.glob(f"{pid}-*") for path in folder.rglob("*") if path.is_file())
        return {
            str(path.relative_to(KVM_STATISTICS)): int(text) for path in files if (text := read(path)).lstrip("-").isdigit()
        }

    before = counters()
    time.sleep(WINDOW_SEC)
    for name, value in sorted(counters().items()):
        if value:
            print(f"{name} {value} (+{value - before.get(name, 0)})")


def read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def trace(pid: int) -> None:
    """Of the lines of this process' threads only: another VM may run beside it."""
    mounted("tracefs", TRACING)
    tasks = set(os.listdir(f"/proc/{pid}/task"))
    switch = TRACING / "events/kvm/enable"
    (TRACING / "buffer_size_kb").write_text("16384")
    (TRACING / "trace").write_text("")
    switch.write_text("1")
    time.sleep(WINDOW_SEC)
    switch.write_text("0")
    text = (TRACING / "trace").read_text(errors="replace")
    (TRACING / "trace").write_text("")
    lines = [line for line in text.splitlines() if (task := re.match(r" *.{1,16}-(\d+) +\[", line)) and task[1] in tasks]
    events = collections.Counter(event[1] for line in lines if (event := re.search(r"\d: (\w+):", line)))
    print("events:", ", ".join(f"{name} {count}" for name, count in events.most_common()))
    print("writes of the TSC deadline:", sum("msr_write 6e0" in line for line in lines))
    rips = collections.Counter(rip[0] for line in lines if (rip := re.search(r"reason \S+.*?rip 0x[0-9a-f]+", line)))
    for what, count in rips.most_common(SHOWN_RIPS):
        print(f"{count:6} {what}")
    print("\n".join(["the last lines:", *lines[-12:]]))


def mounted(kind: str, place: Path) -> None:
    if not os.path.ismount(place):
        subprocess.run(["mount", "-t", kind, "none", place], check=True, capture_output=True)


def printk(pid: int) -> None:
    """The text of the guest's printk buffer: it begins with the kernel's banner, and the command line follows soon, which the
    banner among the kernel's constants has not behind it."""
    for start, end in guest_memory(pid):
        with open(f"/proc/{pid}/mem", "rb") as memory:
            memory.seek(start)
            data = memory.read(end - start)
        for banner in re.finditer(rb"Linux version \d+\.", data):
            if b"Command line:" in data[banner.start() : banner.start() + 2000]:
                texts = re.findall(rb"[\x20-\x7e]{6,}", data[banner.start() : banner.start() + PRINTK_BYTES])
                print("\n".join(text.decode() for text in texts)[-SHOWN_PRINTK:])
                return
    print("no kernel has begun to print")


def guest_memory(pid: int) -> list[tuple[int, int]]:
    """Where the largest writable mappings lie in the process, the largest first."""
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        place, access = line.split()[:2]
        start, end = (int(address, 16) for address in place.split("-"))
        if access.startswith("rw") and end - start >= LEAST_MEMORY:
            found.append((start, end))
    return sorted(found, key=lambda mapping: mapping[0] - mapping[1])


PARTS: dict[str, Callable[[int], None]] = {
    "threads": threads,
    "clock of the host": clock,
    "KVM's counters": statistics,
    "KVM's trace": trace,
    "printk of the guest": printk,
}


def main(pid: int) -> None:
    for name, part in PARTS.items():
        print(f"---- {name}", flush=True)
        try:
            part(pid)
        except (OSError, subprocess.CalledProcessError, ValueError) as error:
            print(f"cannot be had here: {error}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
