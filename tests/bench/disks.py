"""Runs in the lab's host: fio in a Debian guest on a raw disk, and that guest's boot, beside QEMU's microvm and q35.

The guest is the same for all: the root disk of Debian 13, a disk to measure, and one that holds the script. What a side needs
of the host's processors is counted outside the guest (started.py).
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from bench.rows import BenchError, fail, note
from bench.started import Command, Started, host_cpu_sec

LAB, DISKS = Path("/lab"), Path("/disks")
PLACE = Path("/var/lib/vmservice/fio")
CONSOLE = PLACE / "console"
REACHED = "guest: multi-user.target reached"
MEASURED_MIB = 192
JOB_SEC = 3
BOOT_TIMEOUT_SEC = 300.0
JOB_TIMEOUT_SEC = 60.0

# Row → fio's options. Throughput for large requests, requests for small ones.
JOBS = {
    f"{kind}, depth {depth}": f"--rw={mode} --bs={size} --iodepth={depth}"
    for kind, mode, size in (
        ("sequential read, 128 KiB", "read", "128k"),
        ("sequential write, 128 KiB", "write", "128k"),
        ("random read, 4 KiB", "randread", "4k"),
        ("random write, 4 KiB", "randwrite", "4k"),
    )
    for depth in (1, 32)
}

# The terse line of fio, version 3, counted from 1 (its HOWTO, "Terse output"): KiB read at 6, KiB/s at 7, requests/s at 8; the
# same of writing at 47, 48 and 49.
_FIO = (
    "fio --name=job --filename=/dev/disk/by-id/virtio-measured --direct=1 --ioengine=libaio --time_based"
    f" --runtime={JOB_SEC} --randrepeat=1 --output-format=terse --terse-version=3"
)


def script(jobs: Iterable[str]) -> bytes:
    """What the guest runs, given fio's options for each job. fio itself tells when a job begins and is over, for its own start
    would count for more; it sends what such a command prints into a file."""
    lines = [f"cd /tmp; {_FIO} --rw=write --bs=1m --runtime=30 --time_based=0 > /dev/null"]
    for number, options in enumerate(jobs):
        marks = " ".join(
            f"--exec_{when}='echo fio {said} {number} | tee /dev/console'"
            for when, said in (("prerun", "begins"), ("postrun", "is over"))
        )
        lines.append(f'told=$({_FIO} {marks} {options} | grep "^3;"); echo "fio told of {number} $told"')
    text = "\n".join(lines).encode() + b"\n"
    return text + b"\n" * (-len(text) % 512)


def _cmdline() -> str:
    return (LAB / "trixie.cmdline").read_text().strip()


def _images() -> list[str]:
    return ["-kernel", f"{DISKS}/trixie.vmlinuz", "-initrd", f"{DISKS}/trixie.quick", "-append", _cmdline()]


def configure(measured: str = "raw") -> None:
    """The VM `fio`; `measured` is the format of that disk."""
    disks = "".join(
        f'[[disk]]\nname = "{name}"\npath = "{PLACE}/{name}"\nformat = "{form}"\nreadonly = {readonly}\n'
        for name, form, readonly in (("root", "raw", "false"), ("measured", measured, "false"), ("script", "raw", "true"))
    )
    Path("/etc/vmservice/fio.toml").write_text(
        f'[kernel]\npath = "{DISKS}/trixie.vmlinuz"\ninitramfs = "{DISKS}/trixie.quick"\ncmdline = "{_cmdline()}"\n'
        f'[memory]\nsize = "384M"\n[serial]\nmode = "file"\npath = "{CONSOLE}"\n{disks}'
    )


def ours() -> Started:
    configure()
    return Command(["/usr/bin/vmservice", "run", "fio", "--bus", "none"])


def peer(machine: str, device: str, measured: str = "raw") -> Started:
    plain = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    disks = []
    for name, form, readonly in (("root", "raw", "off"), ("measured", measured, "off"), ("script", "raw", "on")):
        disks += ["-drive", f"file={PLACE}/{name},format={form},if=none,id={name},discard=unmap,readonly={readonly}"]
        disks += ["-device", f"{device},drive={name},serial={name}"]
    options = ["-cpu", "host", "-m", "384", *_images(), *disks, "-serial", f"file:{CONSOLE}"]
    return Command([*plain, "-M", f"{machine},accel=kvm", *options])


SIDES: Mapping[str, Callable[[], Started]] = {
    "vmservice": ours,
    "microvm": lambda: peer("microvm,rtc=on", "virtio-blk-device"),
    "q35": lambda: peer("q35", "virtio-blk-pci"),
}


class Run:
    """A guest of one side, from its start to its end."""

    def __init__(self, start: Callable[[], Started]) -> None:
        CONSOLE.unlink(missing_ok=True)
        self._begin = time.monotonic()
        self._machine = start()

    def close(self) -> None:
        self._machine.end()

    def boot_sec(self) -> float:
        self._wait(re.escape(REACHED), BOOT_TIMEOUT_SEC)
        return time.monotonic() - self._begin

    def job(self, number: int) -> tuple[float, float, float]:
        """(MiB/s, requests/s, seconds of the host's processors for each GiB) of job `number`."""
        self._wait(rf"fio begins {number}\b", JOB_TIMEOUT_SEC)
        before = host_cpu_sec(self._machine.pids)
        self._wait(rf"fio is over {number}\b", JOB_TIMEOUT_SEC)
        spent = host_cpu_sec(self._machine.pids) - before
        told = self._wait(rf"fio told of {number} (3;.*)\n", JOB_TIMEOUT_SEC)[1].split(";")
        kib, requests = (sum(int(told[field]) for field in fields) for fields in ((5, 46), (7, 48)))
        rate = sum(int(told[field]) for field in (6, 47))
        return rate / 1024, requests, spent / (kib / 2**20)

    def _wait(self, pattern: str, timeout_sec: float) -> re.Match[str]:
        deadline = time.monotonic() + timeout_sec
        while True:
            text = CONSOLE.read_text(errors="replace") if CONSOLE.exists() else ""
            if found := re.search(pattern, text):
                return found
            if (status := self._machine.status()) or time.monotonic() > deadline:
                raise BenchError(f"no {pattern!r}: {status or 'it took too long'}, {text[-400:]!r}")
            time.sleep(0.02)


def prepare(jobs: Iterable[str]) -> None:
    subprocess.run(["install", "-d", PLACE], check=True)
    subprocess.run(["cp", "--sparse=always", f"{DISKS}/trixie.raw", f"{PLACE}/root"], check=True)
    (PLACE / "script").write_bytes(script(jobs))
    (PLACE / "measured").unlink(missing_ok=True)


def measure(runs: int) -> None:
    prepare(JOBS.values())
    with (PLACE / "measured").open("wb") as file:
        file.truncate(MEASURED_MIB << 20)
    for _ in range(max(2, runs // 2)):
        for side, start in SIDES.items():
            try:
                _measure_one(side, start)
            except Exception as error:  # the other sides may do
                fail(f"fio under {side}", error)


def _measure_one(side: str, start: Callable[[], Started]) -> None:
    def tell(row: str, figure: float) -> None:
        """Ours stands in both comparisons."""
        for machine in ("microvm", "q35") if side == "vmservice" else (side,):
            note(f"beside {machine}: {row}", "vmservice" if side == "vmservice" else "peer", figure)

    run = Run(start)
    try:
        tell("Debian's root disk to multi-user.target, s", run.boot_sec())
        tell_jobs(run, JOBS, tell)
    finally:
        run.close()


def tell_jobs(run: Run, jobs: Iterable[str], tell: Callable[[str, float], None]) -> None:
    """The rows of each job."""
    for number, job in enumerate(jobs):
        mib, requests, cpu_sec = run.job(number)
        if "4 KiB" in job:
            tell(f"{job}, requests/s", requests)
            tell(f"{job}, host CPU ms for 1,000", cpu_sec * 1e6 / 2**18)
        else:
            tell(f"{job}, MiB/s", mib)
            tell(f"{job}, host CPU s for a GiB", cpu_sec)
