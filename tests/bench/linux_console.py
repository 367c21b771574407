"""Runs in the lab's host: how fast a Linux guest's consoles are, each into a file: the serial line and virtio-console."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from bench.rows import BenchError, note

LAB = Path("/lab")
CMDLINE = "console=ttyS0 quiet bench=console"
KIB = {"hvc0": 512, "ttyS0": 16}  # as bench_init.sh writes them
TIMEOUT_SEC = 120.0
SERIAL, HVC = Path("/run/console.serial"), Path("/run/console.hvc")


def _ours() -> list[str]:
    Path("/etc/vmservice/consoles.toml").write_text(
        f'[kernel]\npath = "{LAB}/trixie.vmlinuz"\ninitramfs = "{LAB}/bench.initramfs"\ncmdline = "{CMDLINE}"\n'
        f'[memory]\nsize = "256M"\n[serial]\nmode = "file"\npath = "{SERIAL}"\n[console]\nmode = "file"\npath = "{HVC}"\n'
    )
    return ["/usr/bin/vmservice", "run", "consoles"]


def _peer() -> list[str]:
    images = ["-kernel", str(LAB / "trixie.vmlinuz"), "-initrd", str(LAB / "bench.initramfs"), "-append", CMDLINE]
    plain = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    machine = ["-M", "microvm,accel=kvm", "-cpu", "host", "-m", "256", "-serial", f"file:{SERIAL}"]
    hvc = ["-chardev", f"file,id=hvc,path={HVC}", "-device", "virtio-serial-device", "-device", "virtconsole,chardev=hvc"]
    return [*plain, *machine, *hvc, *images]


def _rates(command: list[str]) -> dict[str, float]:
    for path in (SERIAL, HVC):
        path.unlink(missing_ok=True)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + TIMEOUT_SEC

    def wait_for(text: str) -> float:
        while not SERIAL.exists() or text.encode() not in SERIAL.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"{command[0]}: no {text!r} in {SERIAL.read_bytes()[-400:]!r}")
            time.sleep(0.005)
        return time.monotonic()

    try:
        rates = {}
        for console, kib in KIB.items():
            begin = wait_for(f"{console} begin")
            rates[console] = kib / (wait_for(f"{console} end") - begin)
        if HVC.stat().st_size < KIB["hvc0"] << 10:
            raise BenchError(f"{command[0]}: only {HVC.stat().st_size} bytes came out of hvc0")
        return rates
    finally:
        process.kill()
        process.wait()


def measure(runs: int) -> None:
    for _ in range(runs):
        for side, command in (("vmservice", _ours), ("peer", _peer)):
            for console, rate in _rates(command()).items():
                note(f"Linux to {console}, KiB/s", side, rate)
