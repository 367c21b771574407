"""Start-up, memory, exits, verbs, consoles, disks, networks beside QEMU (a VM exit: a loop in C): in turn, medians, ratios.

    bench.py [--runs N] [--only queue|native|lab [SUBJECT…]]

The queue part works a disk's virtqueue without a guest; the native part runs in a container with systemd on this machine's
/dev/kvm; the lab part boots Linux guests in the nested host.
Each figure is shown as it comes. What fails costs only its own rows: the table has all others, the last line says what failed,
and the exit status is then 1.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

# Run as a script: its own folder gives way to tests/, so that `bench` is the folder and not this file.
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

from bench.figures import Figures, say
from lab.channel import HostDied
from lab.guest import guest_images, initramfs
from lab.host import LabHost
from lab.kernel import KernelPackage
from lab.root_disk import root_cmdline
from lab.root_tree import root_tree
from support import payload
from support.container import Container
from support.package import INSTALLED_FROM, debian_package

HERE = Path(__file__).parent
INSTALL = f"apt-get install -y {INSTALLED_FROM} >/dev/null 2>&1"

IN_CONTAINER = ("native.py", "machines.py", "serial_rate.py", "idle_vms.py", "rows.py", "bus_call.py", "qmp.py")
IN_LAB = (
    *("guest.py", "disks.py", "qcow2.py", "networks.py", "guest_link.py", "started.py"),
    *("resize.py", "linux_console.py", "rows.py", "bus_call.py", "qmp.py"),
)
BENCH_MODULES = ("button", "processor", "virtio_pci", "virtio_mmio", "virtio_console", "virtio_net")

QUEUE_SUBJECTS = ("disk",)
NATIVE_SUBJECTS = ("start", "exit", "pause", "serial", "idle")
LAB_SUBJECTS = ("start", "resize", "console", "disks", "qcow2", "networks")
SUBJECT_TIMEOUT_SEC = 1800

# Measures a subject, of which `figures` are told.
Place = Callable[[str], None]


def measure(figures: Figures, subjects: Sequence[str], boot: Callable[[], contextlib.AbstractContextManager[Place]]) -> None:
    """Each subject in a place that `boot` makes. A place in which one broke is not used again. A subject whose host died, as an
    emulated one may, has one more try; if no place can be had at all, the rest fails."""
    left, died = list(subjects), set[str]()
    while left:
        with contextlib.ExitStack() as stack:
            try:
                place = stack.enter_context(boot())
            except Exception as error:  # not the measuring's fault: the rows of another part are wanted all the same
                for subject in left:
                    figures.fail(subject, f"no host for it: {error}")
                return
            while left:
                subject = left.pop(0)
                try:
                    place(subject)
                except HostDied as death:
                    if subject in died:
                        figures.fail(subject, f"its host died twice: {death}")
                    else:
                        say(f"{death}; {subject} once more")
                        died.add(subject)
                        left.insert(0, subject)
                    break
                except Exception as error:
                    figures.fail(subject, f"{type(error).__name__}: {error}")
                    break
                finally:
                    figures.cut()


@contextlib.contextmanager
def queue(figures: Figures, runs: int) -> Iterator[Place]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:  # a file system that takes O_DIRECT, as /tmp may not be
        image = Path(directory) / "disk.raw"
        image.write_bytes(os.urandom(64 << 20))

        def place(subject: str) -> None:
            command = [sys.executable, str(HERE / f"{subject}_queue.py"), str(image), str(runs)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    figures.take(line)
            if process.returncode:
                raise RuntimeError(f"the {subject} ended with {process.returncode}")

        yield place


@contextlib.contextmanager
def native(figures: Figures, runs: int) -> Iterator[Place]:
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

        def place(subject: str) -> None:
            container.follow(f"python3 /lab/bench/native.py {runs} {subject}", figures.take, timeout=SUBJECT_TIMEOUT_SEC)

        yield place
    finally:
        container.stop()


@contextlib.contextmanager
def lab(figures: Figures, runs: int) -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="vmservice-") as directory:
        files = {path.name: path for path in guest_images().iterdir()} | {f"bench/{name}": HERE / name for name in IN_LAB}
        files["bench.initramfs"] = Path(directory) / "bench.initramfs"
        busybox = (root_tree() / "usr/bin/busybox").read_bytes()
        modules = KernelPackage(root_tree()).modules(*BENCH_MODULES)
        files["trixie.cmdline"] = Path(directory) / "trixie.cmdline"
        files["trixie.cmdline"].write_text(root_cmdline("trixie"))
        initramfs(files["bench.initramfs"], busybox, (HERE / "bench_init.sh").read_bytes(), modules)
        host = LabHost(Path(directory) / "host")
        try:
            host.start({**files, INSTALLED_FROM.rpartition("/")[2]: debian_package()})
            host.run(INSTALL, timeout=300, check=True)

            def place(subject: str) -> None:
                command = f"python3 /lab/bench/guest.py {runs} {subject}"
                done = host.run(command, timeout=SUBJECT_TIMEOUT_SEC, on_output=figures.take)
                if done.returncode != 0:
                    raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr[-1000:]}")

            yield place
        finally:
            host.stop()


PARTS = {"queue": (queue, QUEUE_SUBJECTS), "native": (native, NATIVE_SUBJECTS), "lab": (lab, LAB_SUBJECTS)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="runs of each side (default 5)")
    parser.add_argument("--only", choices=PARTS, help="one of the parts")
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help="with --only: some of what that part measures")
    options = parser.parse_args()
    if options.subjects and options.only is None:
        parser.error("which subjects there are depends on the part: name it with --only")
    figures = Figures()
    status = 0
    try:
        for name in [options.only] if options.only else PARTS:
            part, subjects = PARTS[name]
            say(f"the {name} part …")
            measure(figures, options.subjects or subjects, functools.partial(part, figures, options.runs))
    except KeyboardInterrupt:
        figures.fail("the rest", "interrupted")
        status = 130
    print(figures.table())
    say(figures.verdict())
    return status or int(bool(figures.failures))


if __name__ == "__main__":
    sys.exit(main())
