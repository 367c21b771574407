"""Runs in the lab's host: how long a Linux guest takes to get three vCPUs more, and to give them back.

The peer is QEMU's q35, for its microvm cannot plug a CPU. The end is the same on both sides: the VMM has answered (ours the
call, the peer each DEVICE_DELETED), and the guest has told the `nproc` that was wanted. Both guests live through all runs; the
one that is not measured is stopped by SIGSTOP.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from bench.bus_call import BusCaller
from bench.qmp import Qmp
from bench.rows import BenchError, note

LAB = Path("/lab")
CMDLINE = "console=ttyS0 quiet bench=resize"
QMP_SOCKET = "/run/resize.qmp"
TIMEOUT_SEC = 90.0
FULL = 4


class Guest:
    """A guest whose serial console is the file `console`."""

    def __init__(self, command: list[str], console: Path) -> None:
        console.unlink(missing_ok=True)
        self._console = console
        self._seen = 0
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self.resize: Callable[[int], None] = lambda _count: None

    def wait_for(self, text: str) -> None:
        """Until the console has `text`, after what was waited for before."""
        deadline = time.monotonic() + TIMEOUT_SEC
        while True:
            data = self._console.read_bytes() if self._console.exists() else b""
            found = data.find(text.encode(), self._seen)
            if found >= 0:
                self._seen = found + len(text)
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"{self._process.args!r}: no {text!r} in {data[-400:]!r}")
            time.sleep(0.01)

    def measure(self, count: int) -> float:
        """Seconds until the guest has `count` vCPUs."""
        self._process.send_signal(signal.SIGCONT)
        time.sleep(1.0)
        begin = time.monotonic()
        self.resize(count)
        self.wait_for(f"nproc {count}")
        taken = time.monotonic() - begin
        time.sleep(0.5)
        self._process.send_signal(signal.SIGSTOP)
        return taken

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def _ours() -> Guest:
    console = Path("/run/resize-ours.console")
    Path("/etc/vmservice/resize.toml").write_text(
        f'[kernel]\npath = "{LAB}/trixie.vmlinuz"\ninitramfs = "{LAB}/bench.initramfs"\ncmdline = "{CMDLINE}"\n'
        f'[cpus]\nboot = 1\nmax = {FULL}\n[memory]\nsize = "256M"\n[serial]\nmode = "file"\npath = "{console}"\n'
    )
    guest = Guest(["/usr/bin/vmservice", "run", "resize"], console)
    caller = BusCaller("org.vmservice.VM1.resize")
    caller.wait_for_name()
    guest.resize = lambda count: caller.call("Resize", count)
    guest.wait_for("nproc 1")
    return guest


def _peer() -> Guest:
    console = Path("/run/resize-peer.console")
    images = ["-kernel", str(LAB / "trixie.vmlinuz"), "-initrd", str(LAB / "bench.initramfs"), "-append", CMDLINE]
    machine = ["-M", "q35,accel=kvm", "-cpu", "host", "-m", "256", "-smp", f"1,maxcpus={FULL}"]
    options = ["-serial", f"file:{console}", "-qmp", f"unix:{QMP_SOCKET},server=on,wait=off"]
    plain = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    guest = Guest([*plain, *machine, *images, *options], console)
    guest.wait_for("nproc 1")
    qmp = Qmp(QMP_SOCKET)
    slots = [slot for slot in qmp.execute("query-hotpluggable-cpus") if "qom-path" not in slot]

    def resize(count: int) -> None:
        for index, slot in enumerate(slots):
            if count == FULL:
                qmp.execute("device_add", driver=slot["type"], id=f"cpu{index}", **slot["props"])
            else:
                qmp.execute("device_del", id=f"cpu{index}")
        if count != FULL:
            for _ in slots:
                qmp.wait_event("DEVICE_DELETED")

    guest.resize = resize
    return guest


def measure(runs: int) -> None:
    guests: dict[str, Guest] = {}
    try:
        for side, start in (("vmservice", _ours), ("peer", _peer)):
            guests[side] = start()
        for run in range(runs + 1):
            for way, count in (("1 to 4", FULL), ("4 to 1", 1)):
                for side, guest in guests.items():
                    taken = guest.measure(count)
                    if run:  # the first time reads from the disk, and ours makes the vCPUs
                        note(f"Resize {way}, s", side, taken)
    finally:
        for guest in guests.values():
            guest.stop()
