"""Start-up, memory, exits, verbs and consoles beside QEMU (for a bare VM exit, a loop in C): runs in turn, medians, ratios.

    bench.py [--runs N] [--only native|lab [SUBJECT…]]

The native part runs in a container with systemd on this machine's /dev/kvm; the lab part boots Linux guests in the nested host.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# Run as a script: its own folder gives way to tests/, so that `bench` is the folder and not this file.
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

from bench.rows import Samples, table
from lab.channel import HostDied
from lab.guest import guest_images, initramfs
from lab.host import LabHost
from lab.kernel import KernelPackage
from lab.root_tree import root_tree
from support import payload
from support.container import Container
from support.package import INSTALLED_FROM, debian_package

HERE = Path(__file__).parent
INSTALL = f"apt-get install -y {INSTALLED_FROM} >/dev/null 2>&1 && mkdir -p /var/cache/vmservice"

IN_CONTAINER = ("native.py", "machines.py", "serial_rate.py", "idle_vms.py", "rows.py", "bus_call.py", "qmp.py")
IN_LAB = ("guest.py", "resize.py", "linux_console.py", "rows.py", "bus_call.py", "qmp.py")
BENCH_MODULES = ("button", "processor", "virtio_pci", "virtio_mmio", "virtio_console")


def native(runs: int, subjects: list[str]) -> Samples:
    container = Container()
    container.start()
    try:
        (container.shared / "bench").mkdir()
        for program in IN_CONTAINER:
            shutil.copy(HERE / program, container.shared / "bench")
        with tempfile.TemporaryDirectory() as directory:
            for variant in ("beat", "busy", "smp", "idle"):
                shutil.copy(payload.build(variant, Path(directory)), container.shared / f"{variant}.bin")
        subprocess.run(["gcc", "-O2", "-static", "-o", container.shared / "exits", HERE / "exits.c"], check=True)
        shutil.copy(debian_package(), container.shared / INSTALLED_FROM.rpartition("/")[2])
        container.run(INSTALL, timeout=120, check=True)
        done = container.run(f"python3 /lab/bench/native.py {runs} {' '.join(subjects)}", timeout=1800, check=True)
        samples: Samples = json.loads(done.stdout)
        return samples
    finally:
        container.stop()


def lab(runs: int, subjects: list[str]) -> Samples:
    """An emulated host dies now and then; then all of it is measured anew, once."""
    try:
        return _lab(runs, subjects)
    except HostDied as death:
        print(f"bench: {death}; once more", flush=True)
        return _lab(runs, subjects)


def show(output: str) -> None:
    """What the measuring says of its progress, and each figure at once: the host may die before the table."""
    print("".join(line for line in output.splitlines(keepends=True) if line.startswith("bench:")), end="", flush=True)


def _lab(runs: int, subjects: list[str]) -> Samples:
    with tempfile.TemporaryDirectory(prefix="vmservice-") as directory:
        files = {path.name: path for path in guest_images().iterdir()} | {f"bench/{name}": HERE / name for name in IN_LAB}
        files["bench.initramfs"] = Path(directory) / "bench.initramfs"
        busybox = (root_tree() / "usr/bin/busybox").read_bytes()
        modules = KernelPackage(root_tree()).modules(*BENCH_MODULES)
        initramfs(files["bench.initramfs"], busybox, (HERE / "bench_init.sh").read_bytes(), modules)
        host = LabHost(Path(directory) / "host")
        host.start({**files, INSTALLED_FROM.rpartition("/")[2]: debian_package()})
        try:
            host.run(INSTALL, timeout=300, check=True)
            command = f"python3 /lab/bench/guest.py {runs} {' '.join(subjects)}"
            done = host.run(command, timeout=1800, check=True, on_output=show)
            samples: Samples = json.loads(done.stdout)
            return samples
        finally:
            host.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="runs of each side (default 5)")
    parser.add_argument("--only", choices=("native", "lab"), help="one of the two parts")
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help="with --only: some of what that part measures")
    options = parser.parse_args()
    if options.subjects and options.only is None:
        parser.error("which subjects there are depends on the part: name it with --only")
    samples: Samples = {}
    if options.only != "lab":
        print("bench: the native part …", flush=True)
        samples |= native(options.runs, options.subjects)
    if options.only != "native":
        print("bench: the lab part …", flush=True)
        samples |= lab(options.runs, options.subjects)
    print(table(samples))


if __name__ == "__main__":
    main()
