"""Runs in the lab's host: a Linux guest's start, memory beyond it, Resize, consoles, ours and the peer's in turn; prints JSON.

    guest.py RUNS [SUBJECT…]      of start, resize, console; all of them without

Expects the guest images in /lab. Standard library only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench import linux_console, resize
from bench.rows import Samples

LAB = Path("/lab")
LINE = b"vmservice guest: /init reached"
MEMORY_MIB = 256
TIMEOUT_SEC = 120.0
QEMU = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]


def peer(cmdline: str, console: Path) -> list[str]:
    images = ["-kernel", str(LAB / "trixie.vmlinuz"), "-initrd", str(LAB / "trixie.initramfs"), "-append", cmdline]
    machine = ["-M", "microvm,accel=kvm", "-cpu", "host", "-m", str(MEMORY_MIB)]
    return [*QEMU, *machine, *images, "-serial", f"file:{console}"]


def ours(cmdline: str, console: Path) -> list[str]:
    Path("/etc/vmservice/bench.toml").write_text(
        f'[kernel]\npath = "{LAB}/trixie.vmlinuz"\ninitramfs = "{LAB}/trixie.initramfs"\ncmdline = "{cmdline}"\n'
        f'[memory]\nsize = "{MEMORY_MIB}M"\n[serial]\nmode = "file"\npath = "{console}"\n'
    )
    return ["/usr/bin/vmservice", "run", "bench"]


class LostRunError(Exception):
    """A guest that did not get to /init: on an emulated host that happens, and is said."""


def start(command: list[str], console: Path) -> tuple[float, float]:
    """Seconds from exec to the line of /init, and MiB of memory then beyond the guest's pages."""
    console.unlink(missing_ok=True)
    environment = {**os.environ, "CACHE_DIRECTORY": "/var/cache/vmservice"}
    begin = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment)
    try:
        while not console.exists() or LINE not in console.read_bytes():
            if process.poll() is not None or time.monotonic() - begin > TIMEOUT_SEC:
                raise LostRunError(f"{command[0]}: status {process.poll()}, {console.read_bytes()[-300:]!r}")
            time.sleep(0.01)
        seconds = time.monotonic() - begin
        return seconds, beyond_guest_mib(process.pid)
    finally:
        process.kill()
        process.wait()


def beyond_guest_mib(pid: int) -> float:
    """Resident memory without the mapping that is as large as the guest's RAM."""
    guest_kib = resident_kib = size_kib = 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        field, _, value = line.partition(":")
        if field == "Size":
            size_kib = int(value.split()[0])
        elif field == "Rss":
            rss = int(value.split()[0])
            resident_kib += rss
            if size_kib == MEMORY_MIB << 10:
                guest_kib += rss
    if guest_kib == 0:
        raise SystemExit("no mapping has the size of the guest's memory")
    return (resident_kib - guest_kib) / 1024


def measure(runs: int) -> Samples:
    console = Path("/run/bench.console")
    samples: Samples = {}
    for kind, cmdline in (("quiet", "console=ttyS0 quiet"), ("full console", "console=ttyS0")):
        sides = {"vmservice": ours, "peer": peer}
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        memory: dict[str, list[float]] = {side: [] for side in sides}
        for run in range(runs + 1):
            for side, command in sides.items():
                try:
                    taken, beyond = start(command(cmdline, console), console)
                except LostRunError as lost:
                    print(f"bench: a run is lost: {lost}", file=sys.stderr, flush=True)
                    continue
                if run:  # the first of all reads everything from the disk
                    seconds[side].append(taken)
                    memory[side].append(beyond)
        samples[f"Linux to /init, {kind}, s"] = seconds
        if kind == "quiet":
            samples["beyond the guest's memory, MiB"] = memory
    return samples


SUBJECTS: dict[str, Callable[[int], Samples]] = {"start": measure, "resize": resize.measure, "console": linux_console.measure}


def main(runs: int, subjects: list[str]) -> None:
    samples: Samples = {}
    for subject in subjects or SUBJECTS:
        samples |= SUBJECTS[subject](runs)
    print(json.dumps(samples))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
