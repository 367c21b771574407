"""The heartbeat payload, built: a flat firmware image that runs on any /dev/kvm (what it says and understands: heartbeat.S)."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

from support.cache import recipe_hash

SOURCE = Path(__file__).with_name("heartbeat.S")
IMAGE_BYTES = 64 << 10
TOOLS = ("as", "ld", "objcopy")
TIMEOUT_SEC = 60

# What each variant does after the banner. All of them serve COM1 and the power button.
VARIANTS = {
    "beat": {"BEATS": 1, "HALT": 1, "SMP": 0},  # beats, halts in between
    "busy": {"BEATS": 1, "HALT": 0, "SMP": 0},  # beats, never halts
    "idle": {"BEATS": 0, "HALT": 1, "SMP": 0},  # halts until an interrupt comes
    "echo": {"BEATS": 0, "HALT": 0, "SMP": 0},  # polls
    "smp": {"BEATS": 1, "HALT": 0, "SMP": 1},  # beats, never halts, and keeps every other vCPU busy in guest memory
}

BANNER = b"H\nvmservice heartbeat\n"


def build(variant: str, directory: Path) -> Path:
    """The image of `variant` in `directory`, built unless it is there already; the name holds a hash of the source.

    SkipTest, which pytest reports as a skip, where binutils is missing.
    """
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise unittest.SkipTest(f"the heartbeat payload is built with binutils, and {', '.join(missing)} cannot be found")
    symbols = VARIANTS[variant]
    image = directory / f"heartbeat-{variant}-{recipe_hash(SOURCE.read_bytes(), repr(symbols))}.bin"
    if not image.exists():
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            os.rename(_assemble(symbols, Path(scratch)), image)
    return image


def _assemble(symbols: dict[str, int], scratch: Path) -> Path:
    compiled, linked, flat = scratch / "payload.o", scratch / "payload.elf", scratch / "payload.bin"
    defined = [argument for name, value in symbols.items() for argument in ("--defsym", f"{name}={value}")]
    _run("as", "--32", "--fatal-warnings", *defined, "-o", str(compiled), str(SOURCE))
    _run("ld", "-m", "elf_i386", "-Ttext=0", "-e", "0", "-o", str(linked), str(compiled))
    _run("objcopy", "-O", "binary", "-j", ".text", str(linked), str(flat))
    return flat


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SEC, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} fails on {SOURCE.name}: {done.stderr.strip()}")
