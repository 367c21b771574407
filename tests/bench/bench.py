"""Start-up, memory and exits beside QEMU's microvm (and, for a bare VM exit, a loop in C): alternating runs, medians, ratios.

    bench.py [--runs N] [--only native|lab]

The native part runs in a container with systemd on this machine's /dev/kvm; the lab part boots Linux guests in the nested host.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from lab.channel import HostDied
from lab.guest import guest_images
from lab.host import LabHost
from support import payload
from support.container import Container
from support.package import INSTALLED_FROM, debian_package

HERE = Path(__file__).parent
INSTALL = f"apt-get install -y {INSTALLED_FROM} >/dev/null 2>&1 && mkdir -p /var/cache/vmservice"

# What each figure may be at most, as a ratio to the peer's, or by itself where there is no peer.
TARGETS = {
    "first byte, ms": 0.5,
    "resident, MiB": 0.75,
    "Linux to /init, quiet, s": 1.0,
    "Linux to /init, full console, s": 1.1,
    "beyond the guest's memory, MiB": 0.6,
    "VM exit, µs": 1.2,
    "pause and resume, ms": 1.5,
    "idle, % of a core": 0.5,
}

Samples = dict[str, dict[str, list[float]]]


def native(runs: int) -> Samples:
    container = Container()
    container.start()
    try:
        (container.shared / "bench").mkdir()
        for program in ("native.py", "bus_call.py", "qmp.py"):
            shutil.copy(HERE / program, container.shared / "bench")
        with tempfile.TemporaryDirectory() as directory:
            for variant in ("beat", "smp", "idle"):
                shutil.copy(payload.build(variant, Path(directory)), container.shared / f"{variant}.bin")
        subprocess.run(["gcc", "-O2", "-static", "-o", container.shared / "exits", HERE / "exits.c"], check=True)
        shutil.copy(debian_package(), container.shared / INSTALLED_FROM.rpartition("/")[2])
        container.run(INSTALL, timeout=120, check=True)
        samples: Samples = json.loads(container.run(f"python3 /lab/bench/native.py {runs}", timeout=1200, check=True).stdout)
        return samples
    finally:
        container.stop()


def lab(runs: int) -> Samples:
    """An emulated host dies now and then; then all of it is measured anew, once."""
    try:
        return _lab(runs)
    except HostDied as death:
        print(f"bench: {death}; once more", flush=True)
        return _lab(runs)


def _lab(runs: int) -> Samples:
    with tempfile.TemporaryDirectory(prefix="vmservice-") as directory:
        files = {path.name: path for path in [HERE / "guest.py", *guest_images().iterdir()]}
        host = LabHost(Path(directory) / "host")
        host.start({**files, INSTALLED_FROM.rpartition("/")[2]: debian_package()})
        try:
            host.run(INSTALL, timeout=300, check=True)
            done = host.run(f"python3 /lab/guest.py {runs}", timeout=1800, check=True)
            print("".join(line for line in done.stderr.splitlines(keepends=True) if line.startswith("bench:")), end="")
            samples: Samples = json.loads(done.stdout)
            return samples
        finally:
            host.stop()


def table(samples: Samples) -> str:
    lines = ["| | vmservice | peer | ratio | at most |", "|---|---|---|---|---|"]
    for name, sides in samples.items():
        medians = {side: statistics.median(values) for side, values in sides.items()}
        ours, peer = medians["vmservice"], medians.get("peer")
        spread = f"{ours:.2f} ({min(sides['vmservice']):.2f}–{max(sides['vmservice']):.2f})"
        if peer is None:
            lines.append(f"| {name} | {spread} | – | – | {TARGETS[name]} |")
        else:
            there = f"{peer:.2f} ({min(sides['peer']):.2f}–{max(sides['peer']):.2f})"
            lines.append(f"| {name} | {spread} | {there} | {ours / peer:.2f} | {TARGETS[name]} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="runs of each side (default 5)")
    parser.add_argument("--only", choices=("native", "lab"), help="one of the two parts")
    options = parser.parse_args()
    samples: Samples = {}
    if options.only != "lab":
        print("bench: the native part …", flush=True)
        samples |= native(options.runs)
    if options.only != "native":
        print("bench: the lab part …", flush=True)
        samples |= lab(options.runs)
    print(table(samples))


if __name__ == "__main__":
    main()
