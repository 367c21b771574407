"""Locks of disk images: QEMU's, byte by byte, between processes and with QEMU's own programs."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmservice.errors import HostError, HostFacilityMissing
from vmservice.host import image_lock

TIMEOUT_SEC = 60.0

# Opens an image, locks the bytes that are named, says so, and waits until it may go.
HOLDER = """
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR)
for byte in sys.argv[2:]:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, int(byte), 1, 0))
print("held", flush=True)
sys.stdin.read()
"""
QEMU_WRITER = (100, 101, 103, 201, 203)
QEMU_READER = (100, 201)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(4096))
    return path


@pytest.fixture
def fd(image: Path) -> Iterator[int]:
    fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    yield fd
    os.close(fd)


def locked(image: Path) -> list[int]:
    """Which bytes of it somebody has locked."""
    with open(image, "r+b") as file:
        found = []
        for byte in range(300):
            answer = fcntl.fcntl(file, fcntl.F_OFD_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, byte, 1, 0))
            if struct.unpack("hhqqi4x", answer)[0] != fcntl.F_UNLCK:
                found.append(byte)
        return found


class Holder:
    def __init__(self, image: Path, *locks: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(image), *map(str, locks)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"held\n"

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate(timeout=TIMEOUT_SEC)


def test_the_bytes_are_those_of_qemu(image: Path, fd: int) -> None:
    image_lock.take(fd, str(image), "disk root", writer=True)
    assert locked(image) == list(QEMU_WRITER)


def test_the_bytes_of_a_reader(image: Path, fd: int) -> None:
    image_lock.take(fd, str(image), "disk root", writer=False)
    assert locked(image) == list(QEMU_READER)


@pytest.mark.parametrize(
    ("theirs", "writer", "goes_together"),
    [
        (QEMU_WRITER, True, False),
        (QEMU_WRITER, False, False),
        (QEMU_READER, True, False),
        (QEMU_READER, False, True),
        ((100,), True, True),
        *(((byte,), True, False) for byte in (101, 103, 200, 201, 203)),
        *(((byte,), False, False) for byte in (101, 200)),
        *(((byte,), False, True) for byte in (103, 201, 203)),
    ],
)
def test_another_process(image: Path, fd: int, theirs: tuple[int, ...], writer: bool, goes_together: bool) -> None:
    with Holder(image, *theirs) as holder:
        if goes_together:
            image_lock.take(fd, str(image), "disk root", writer=writer)
        else:
            with pytest.raises(HostFacilityMissing) as caught:
                image_lock.take(fd, str(image), "disk root", writer=writer)
            assert f"disk root is in use: {image} is locked by process {holder.process.pid} (" in str(caught.value)
    with open(image, "r+b") as other:
        os.dup2(other.fileno(), fd)  # which lets our own locks go
    image_lock.take(fd, str(image), "disk root", writer=writer)


def test_two_disks_of_one_vm(image: Path, fd: int) -> None:
    image_lock.take(fd, str(image), "disk root", writer=True)
    with open(image, "rb") as other, pytest.raises(HostFacilityMissing, match="is locked by this VM itself, as another disk"):
        image_lock.take(other.fileno(), str(image), "disk data", writer=False)


def test_a_holder_that_cannot_be_seen_is_another_process(image: Path, fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the unit: /proc shows nobody else's."""
    with Holder(image, *QEMU_WRITER):
        monkeypatch.setattr(os, "listdir", lambda path: [])
        with pytest.raises(HostFacilityMissing, match="is locked by another process; only one may write"):
            image_lock.take(fd, str(image), "disk root", writer=True)


def test_a_file_system_without_locks_is_told(image: Path, fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "fcntl", no_locks)
    with pytest.raises(HostError, match=r"disk root cannot be locked, so that nobody else uses .*: No locks available"):
        image_lock.take(fd, str(image), "disk root", writer=True)


def qemu_io(image: Path, command: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("qemu-io") is None:
        pytest.skip("qemu-io is not installed")
    return subprocess.run(
        ["qemu-io", "-f", "raw", "-c", command, str(image)], capture_output=True, text=True, timeout=TIMEOUT_SEC, check=False
    )


def test_qemu_is_kept_out(image: Path, fd: int) -> None:
    image_lock.take(fd, str(image), "disk root", writer=True)
    done = qemu_io(image, "write 0 512")
    assert done.returncode != 0
    assert "lock" in done.stderr


def test_qemu_keeps_us_out(image: Path, fd: int) -> None:
    if shutil.which("qemu-io") is None:
        pytest.skip("qemu-io is not installed")
    with subprocess.Popen(["qemu-io", "-f", "raw", str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"write -P 7 0 512\n")
        process.stdin.flush()
        while b"512 bytes" not in process.stdout.readline():
            pass
        with pytest.raises(HostFacilityMissing, match=rf"is locked by process {process.pid} \(qemu-io\)"):
            image_lock.take(fd, str(image), "disk root", writer=True)
        process.communicate(b"quit\n", timeout=TIMEOUT_SEC)
    image_lock.take(fd, str(image), "disk root", writer=True)
