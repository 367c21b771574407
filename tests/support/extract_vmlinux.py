"""The vmlinux inside a bzImage, unpacked: an ELF kernel for tests, made from any distribution's kernel package."""

from __future__ import annotations

import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

# Offsets in the setup header (Documentation/arch/x86/boot.rst): payload_offset counts from the protected-mode code.
SETUP_SECTS = 0x1F1
PAYLOAD_OFFSET = 0x248
PAYLOAD_LENGTH = 0x24C

TIMEOUT_SEC = 120


def extract_vmlinux(bzimage: Path, target: Path) -> None:
    """Write the ELF kernel that is packed in `bzimage` to `target`; RuntimeError with the reason where that cannot be done."""
    image = bzimage.read_bytes()
    if image[0x202:0x206] != b"HdrS":
        raise RuntimeError(f"{bzimage} is not a bzImage")
    (offset, length) = struct.unpack_from("<II", image, PAYLOAD_OFFSET)
    start = ((image[SETUP_SECTS] or 4) + 1) * 512 + offset
    payload = image[start : start + length]
    for magic, unpack in UNPACKERS.items():
        if payload.startswith(magic):
            vmlinux = unpack(payload)
            break
    else:
        raise RuntimeError(f"{bzimage} is packed in an unknown way: its payload begins with {payload[:6].hex()}")
    if not vmlinux.startswith(b"\x7fELF"):
        raise RuntimeError(f"what {bzimage} unpacks to is not an ELF file: it begins with {vmlinux[:6].hex()}")
    target.write_bytes(vmlinux)


def _gunzip(payload: bytes) -> bytes:
    return zlib.decompressobj(wbits=31).decompress(payload)


def _tool(*command: str) -> Callable[[bytes], bytes]:
    def unpack(payload: bytes) -> bytes:
        if shutil.which(command[0]) is None:
            raise RuntimeError(f"{command[0]} is needed to unpack this kernel")
        # The build appends the unpacked size in four bytes (size_append in scripts/Makefile.lib): no part of the stream.
        done = subprocess.run(command, input=payload[:-4], capture_output=True, timeout=TIMEOUT_SEC, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{command[0]} fails: {done.stderr.decode(errors='replace').strip()}")
        (size,) = struct.unpack("<I", payload[-4:])
        if len(done.stdout) != size:
            raise RuntimeError(f"{command[0]} unpacks {len(done.stdout)} bytes, where the kernel names {size}")
        return done.stdout

    return unpack


UNPACKERS: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": _gunzip,
    b"\x28\xb5\x2f\xfd": _tool("zstd", "--decompress", "--stdout", "--quiet", "--long=31"),
    b"\x02\x21\x4c\x18": _tool("lz4", "--decompress", "--stdout", "--quiet"),  # the legacy format
    b"\xfd7zXZ\0": _tool("xz", "--decompress", "--stdout", "--quiet"),
}
