"""The unpacker that the lab makes its vmlinux with."""

from __future__ import annotations

import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from support.extract_vmlinux import extract_vmlinux
from support.images import bzimage

VMLINUX = b"\x7fELF" + bytes(range(256)) * 40


def packed(payload: bytes) -> bytes:
    """A bzImage with `payload` 16 bytes behind the start of its code."""
    code = bytes(16) + payload + bytes(-len(payload) % 16)
    image = bytearray(bzimage(code))
    struct.pack_into("<II", image, 0x248, 16, len(payload))
    return bytes(image)


def compress(*command: str) -> bytes:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, input=VMLINUX, capture_output=True, check=True, timeout=30)
    return done.stdout + struct.pack("<I", len(VMLINUX))


def test_gzip(tmp_path: Path) -> None:
    packer = zlib.compressobj(wbits=31)
    (tmp_path / "bzimage").write_bytes(packed(packer.compress(VMLINUX) + packer.flush()))
    extract_vmlinux(tmp_path / "bzimage", tmp_path / "vmlinux")
    assert (tmp_path / "vmlinux").read_bytes() == VMLINUX


@pytest.mark.parametrize("command", [("zstd", "-c"), ("lz4", "-l", "-c"), ("xz", "--check=crc32", "-c")])
def test_with_the_size_appended(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "bzimage").write_bytes(packed(compress(*command)))
    extract_vmlinux(tmp_path / "bzimage", tmp_path / "vmlinux")
    assert (tmp_path / "vmlinux").read_bytes() == VMLINUX


@pytest.mark.parametrize(
    ("image", "words"),
    [(b"", "not a bzImage"), (packed(b"unknown!"), "packed in an unknown way: its payload begins with 756e6b6e6f77")],
)
def test_refusals(tmp_path: Path, image: bytes, words: str) -> None:
    (tmp_path / "bzimage").write_bytes(image)
    with pytest.raises(RuntimeError, match=words):
        extract_vmlinux(tmp_path / "bzimage", tmp_path / "vmlinux")
    assert not (tmp_path / "vmlinux").exists()
