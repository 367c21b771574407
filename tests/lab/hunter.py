"""Runs in the lab's host: boots Linux guests of ours and of QEMU's microvm in turn, and tells of each by a line of JSON.

    hunter.py FIRST COUNT LANES [--go-on]

COUNT boots from number FIRST on, LANES at once; the number says what is booted. A guest that says nothing for PATIENCE_SEC, or
ends before it has said anything, is left as it is, with all that can be known of it in its line; nothing is booted after it,
unless --go-on says so.

Expects the guests' kernels and hunt.initramfs in /lab. Standard library only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

LAB = Path("/lab")
LINE = b"hunt: init"
MEMORY_MIB = 256
PATIENCE_SEC = 180.0
CMDLINE = "console=ttyS0 quiet"

# One dimension after the other, so that a few boots already have seen all of them: (vCPUs, format, kernel), ours before QEMU's.
CPUS = (1, 2, 4)
# A bzImage takes twice as long, to unpack itself: it is each third.
KERNELS = ("trixie.vmlinux", "bookworm.vmlinux", "trixie.vmlinuz", "trixie.vmlinux", "bookworm.vmlinux", "bookworm.vmlinuz")
SIDES = ("vmservice", "qemu")


class Kind:
    """What boot `number` is."""

    def __init__(self, number: int) -> None:
        number, side = divmod(number, len(SIDES))
        self.side = SIDES[side]
        self.kernel = KERNELS[number % len(KERNELS)]
        self.cpus = CPUS[number // len(KERNELS) % len(CPUS)]

    def command(self, lane: int, console: Path) -> list[str]:
        if self.side == "qemu":
            return self._qemu(console)
        name = f"hunt{lane}"
        Path(f"/etc/vmservice/{name}.toml").write_text(
            f'[kernel]\npath = "{LAB / self.kernel}"\ninitramfs = "{LAB}/hunt.initramfs"\ncmdline = "{CMDLINE}"\n'
            f'[cpus]\nboot = {self.cpus}\n[memory]\nsize = "{MEMORY_MIB}M"\n'
            f'[serial]\nmode = "file"\npath = "{console}"\n[service]\non_reset = "exit"\n'
        )
        return ["/usr/bin/vmservice", "run", name, "--bus", "none"]

    def _qemu(self, console: Path) -> list[str]:
        """With an RTC: a kernel polls one that is not there, for longer than it takes for all the rest."""
        plain = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        machine = ["-M", "microvm,accel=kvm,rtc=on", "-cpu", "host", "-m", str(MEMORY_MIB), "-smp", str(self.cpus)]
        images = ["-kernel", str(LAB / self.kernel), "-initrd", f"{LAB}/hunt.initramfs", "-append", CMDLINE]
        return [*plain, *machine, *images, "-serial", f"file:{console}"]


class Hunt:
    """The numbers that are left, and whether anything has been found."""

    def __init__(self, first: int, count: int, go_on: bool) -> None:
        self._next, self._end = first, first + count
        self._lock = threading.Lock()
        self._go_on = go_on
        self._found = False

    def lane(self, lane: int) -> None:
        while (number := self._take()) is not None:
            self._boot(number, lane)

    def _take(self) -> int | None:
        with self._lock:
            if (self._found and not self._go_on) or self._next == self._end:
                return None
            self._next += 1
            return self._next - 1

    def _boot(self, number: int, lane: int) -> None:
        kind, console, log = Kind(number), Path(f"/run/hunt{lane}.console"), Path(f"/run/hunt{lane}.log")
        console.unlink(missing_ok=True)
        begin = time.monotonic()
        with log.open("wb") as errors:
            process = subprocess.Popen(
                kind.command(lane, console), stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, start_new_session=True
            )
        result = wait(process, console, begin)
        said = console.read_bytes() if console.exists() else b""
        report: dict[str, object] = {"number": number, "side": kind.side, "kernel": kind.kernel, "cpus": kind.cpus}
        report |= {"result": result, "seconds": round(time.monotonic() - begin, 1), "status": process.poll()}
        if result != "up":
            self._found = True
            report |= {"console": said[-4000:].decode(errors="replace"), "log": log.read_text(errors="replace")[-4000:]}
        if result == "silent":
            evidence = subprocess.run(
                ["python3", f"{LAB}/guest_evidence.py", str(process.pid)], capture_output=True, text=True, check=False
            )
            report |= {"pid": process.pid, "evidence": evidence.stdout + evidence.stderr}
        if result == "up" or self._go_on:
            process.kill()
            process.wait()
        with self._lock:
            print(json.dumps(report), flush=True)


def wait(process: subprocess.Popen[bytes], console: Path, begin: float) -> str:
    """What came of it: "up", "reset" for a guest that ended before it said anything, or "silent"."""
    while time.monotonic() - begin < PATIENCE_SEC:
        ended = process.poll() is not None
        if console.exists() and LINE in console.read_bytes():
            return "up"
        if ended:
            return "reset"
        time.sleep(0.05)
    return "silent"


def main(first: int, count: int, lanes: int, go_on: bool) -> None:
    hunt = Hunt(first, count, go_on)
    threads = [threading.Thread(target=hunt.lane, args=(lane,)) for lane in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), "--go-on" in sys.argv)
