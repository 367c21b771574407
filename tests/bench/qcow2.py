"""Runs in the lab's host: fio in a Debian guest on a disk in qcow2, beside QEMU's q35.

Ours is a unit, for qemu-storage-daemon serves the disk in a unit of its own. Whatever is served to a guest over PCI needs fewer
exits than over MMIO, so of QEMU's machines the one with PCI is the peer.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping

from bench import disks
from bench.rows import fail, note
from bench.started import Started, Unit

JOBS = {job: options for job, options in disks.JOBS.items() if "4 KiB" in job or "depth 32" in job}


def ours() -> Started:
    disks.configure("qcow2")
    # Its own account, for which the unit runs; QEMU is root's and minds none.
    subprocess.run(["chown", "--recursive", "vmservice:vmservice", disks.PLACE], check=True)
    return Unit("fio", ["vm-disk@fio:measured.service"])


SIDES: Mapping[str, Callable[[], Started]] = {
    "vmservice": ours,
    "peer": lambda: disks.peer("q35", "virtio-blk-pci", "qcow2"),
}


def measure(runs: int) -> None:
    disks.prepare(JOBS.values())
    image = ["qemu-img", "create", "-q", "-f", "qcow2", str(disks.PLACE / "measured"), f"{disks.MEASURED_MIB}M"]
    subprocess.run(image, check=True)
    for _ in range(max(2, runs // 2)):
        for side, start in SIDES.items():
            try:
                _measure_one(side, start)
            except Exception as error:  # the other side may do
                fail(f"fio on qcow2 under {side}", error)


def _measure_one(side: str, start: Callable[[], Started]) -> None:
    run = disks.Run(start)
    try:
        run.boot_sec()
        disks.tell_jobs(run, JOBS, lambda row, figure: note(f"qcow2: {row}", side, figure))
    finally:
        run.close()
