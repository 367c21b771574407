"""Runs in the container: firmware guests of ours and of QEMU's microvm, with the console on standard output or in a file."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.rows import BenchError

LAB = Path("/lab")
CONFIGURATIONS = Path("/etc/vmservice")
MEMORY_MIB = 128
QEMU = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-M", "microvm,accel=kvm"]


def qemu(image: Path, *options: str, vcpus: int = 1, console: str = "stdio") -> list[str]:
    """`console` is what -serial takes."""
    return [*QEMU, "-m", str(MEMORY_MIB), "-smp", str(vcpus), "-bios", str(image), "-serial", console, *options]


def ours(name: str, image: Path, *options: str, vcpus: int = 1, console: str = 'mode = "tty"') -> list[str]:
    """The unit's command, with `options`; `console` is what the section [serial] says."""
    CONFIGURATIONS.mkdir(exist_ok=True)
    (CONFIGURATIONS / f"{name}.toml").write_text(
        f'[firmware]\npath = "{image}"\n[memory]\nsize = "{MEMORY_MIB}M"\n[cpus]\nboot = {vcpus}\n[serial]\n{console}\n'
    )
    return [*unit_command(name), *options]


def unit_command(name: str) -> list[str]:
    """What the installed unit runs for the VM `name`."""
    show = ["systemctl", "show", "--property=ExecStart", "--value", f"vm@{name}.service"]
    shown = subprocess.run(show, check=True, capture_output=True, text=True).stdout
    return shlex.split(shown.partition("argv[]=")[2].partition(" ;")[0])


def start(command: list[str], output: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output)


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = start(command, subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def read_until(process: subprocess.Popen[bytes], text: bytes) -> None:
    assert process.stdout is not None
    data = b""
    while text not in data:
        chunk = os.read(process.stdout.fileno(), 4096)
        if not chunk:
            raise BenchError(f"{process.args!r} ended after {data!r}")
        data = (data + chunk)[-65536:]


def firmware(path: Path, code: bytes) -> Path:
    """A flat image at `path` that runs `code`, of 16 bits, from its offset 0."""
    image = bytearray(64 << 10)
    image[: len(code)] = code
    image[0xFFF0:0xFFF3] = b"\xe9\x0d\x00"  # jmp to offset 0
    path.write_bytes(image)
    return path
