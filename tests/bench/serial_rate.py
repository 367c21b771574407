"""Runs in the container: how fast a guest writes to COM1, the console being a file; lines of 64 bytes, from a firmware image.

As fast as it can, and as drivers that poll do it, Linux' early console among them: the line status is read before each byte.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from bench.machines import firmware, ours, qemu, start
from bench.rows import BenchError, Rows

LINE_BYTES = 64
KIB = 256
LINES = KIB * 1024 // LINE_BYTES
CONSOLE = Path("/run/serial.console")
TIMEOUT_SEC = 60.0


def _image(path: Path, *, polls: bool) -> Path:
    out = b"\xba\xf8\x03\xee"  # mov dx, 0x3f8; out dx, al
    if polls:  # mov ah, al; mov dx, 0x3fd; in al, dx; test al, 0x20; jz to the in; mov al, ah
        out = b"\x88\xc4\xba\xfd\x03\xec\xa8\x20\x74\xfb\x88\xe0" + out
    inner = b"\xb0." + out + b"\x4b"  # mov al, '.'; out; dec bx; jnz to the mov
    inner += b"\x75" + (-len(inner) - 2 & 0xFF).to_bytes(1, "little")
    outer = b"\xbb" + (LINE_BYTES - 1).to_bytes(2, "little") + inner + b"\xb0\n" + out + b"\x66\x49"  # mov bx; …; dec ecx
    outer += b"\x75" + (-len(outer) - 2 & 0xFF).to_bytes(1, "little")
    code = b"\xfa\x66\xb9" + LINES.to_bytes(4, "little") + outer  # cli; mov ecx, LINES
    return firmware(path, code + b"\xba\xfd\x03\xec\xf4\xeb\xfd")  # in from 0x3fd; hlt for ever


def _rate(command: list[str]) -> float:
    """KiB a second, from the first that is seen of them to the last."""
    CONSOLE.unlink(missing_ok=True)
    process = start(command, subprocess.DEVNULL)
    deadline = time.monotonic() + TIMEOUT_SEC

    def wait_for(size_bytes: int) -> tuple[float, int]:
        while not CONSOLE.exists() or (size := CONSOLE.stat().st_size) < size_bytes:
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"{command!r}: the console file did not get to {size_bytes} bytes")
            time.sleep(0.001)
        return time.monotonic(), size

    try:
        begin, had = wait_for(1)
        end, has = wait_for(LINES * LINE_BYTES)
        return (has - had) / 1024 / (end - begin)
    finally:
        process.kill()
        process.wait()


def rows() -> Rows:
    console = f'mode = "file"\npath = "{CONSOLE}"'

    def sides(image: Path) -> dict[str, Callable[[], float]]:
        our_command = ours(image.stem, image, "--bus", "none", console=console)
        return {
            "vmservice": lambda: _rate(our_command),
            "peer": lambda: _rate(qemu(image, console=f"file:{CONSOLE}")),
        }

    return {
        "serial, KiB/s": sides(_image(Path("/run/writes.bin"), polls=False)),
        "serial, status read before each byte, KiB/s": sides(_image(Path("/run/polls.bin"), polls=True)),
    }
