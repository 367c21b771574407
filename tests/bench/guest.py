"""Runs in the lab's host: a Linux guest's start, memory beyond it, Resize, consoles, disks, ours and the peer's in turn.

    guest.py RUNS [SUBJECT…]      of those at SUBJECTS; all of them without

Prints what rows.py says. Expects the guest images in /lab and /disks. Standard library only.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench import disks, linux_console, networks, qcow2, resize
from bench.rows import BenchError, Subjects, fail, note, run_subjects

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


def start(command: list[str], console: Path) -> tuple[float, float]:
    """Seconds from exec to the line of /init, and MiB of memory then beyond the guest's pages."""
    console.unlink(missing_ok=True)
    begin = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        while not console.exists() or LINE not in console.read_bytes():
            if process.poll() is not None or time.monotonic() - begin > TIMEOUT_SEC:
                said = console.read_bytes()[-300:] if console.exists() else b""
                raise BenchError(f"{command[0]} did not get to /init: status {process.poll()}, {said!r}")
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
        raise BenchError("no mapping has the size of the guest's memory")
    return (resident_kib - guest_kib) / 1024


def measure(runs: int) -> None:
    console = Path("/run/bench.console")
    for kind, cmdline in (("quiet", "console=ttyS0 quiet"), ("full console", "console=ttyS0")):
        row = f"Linux to /init, {kind}, s"
        try:
            for run in range(runs + 1):
                for side, command in (("vmservice", ours), ("peer", peer)):
                    taken, beyond = start(command(cmdline, console), console)
                    if run:  # the first of all reads everything from the disk
                        note(row, side, taken)
                    if run and kind == "quiet":
                        note("beyond the guest's memory, MiB", side, beyond)
        except Exception as error:  # the other kind may do
            fail(row, error)


SUBJECTS: Subjects = {
    "start": measure,
    "resize": resize.measure,
    "console": linux_console.measure,
    "disks": disks.measure,
    "qcow2": qcow2.measure,
    "networks": networks.measure,
}


if __name__ == "__main__":
    run_subjects(SUBJECTS, int(sys.argv[1]), sys.argv[2:])
