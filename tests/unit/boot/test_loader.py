"""The kernel file itself: every kind of file that is no kernel, and the ways that a file can be out of reach."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Never

import pytest
from support.images import MakeFile, MakeMemory, bzimage, elf, pattern, segment

from vmservice.boot.loader import load_kernel
from vmservice.errors import ConfigError
from vmservice.host.accounts import own_name
from vmservice.memory.guest_memory import GuestMemory

Preadv = Callable[[int, Sequence[memoryview], int], int]

AS_ROOT = os.geteuid() == 0


def refusal(path: str | Path, memory: GuestMemory) -> str:
    with pytest.raises(ConfigError) as caught:
        load_kernel(str(path), memory)
    return str(caught.value)


def test_missing(memory: GuestMemory, tmp_path: Path) -> None:
    assert refusal(tmp_path / "vmlinuz", memory) == f"the kernel {tmp_path}/vmlinuz does not exist"


def test_dangling_link(memory: GuestMemory, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    assert refusal(tmp_path / "link", memory).endswith("link does not exist")


def test_directory(memory: GuestMemory, tmp_path: Path) -> None:
    assert refusal(tmp_path, memory) == f"the kernel {tmp_path} is a directory; it must be a regular file"


@pytest.mark.timeout(10)
def test_fifo_is_refused_without_waiting_for_a_writer(memory: GuestMemory, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert refusal(tmp_path / "fifo", memory).endswith("fifo is a FIFO; it must be a regular file")


def test_socket(memory: GuestMemory, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        assert refusal(tmp_path / "socket", memory).endswith("socket is a socket; it must be a regular file")


def test_device(memory: GuestMemory) -> None:
    assert refusal("/dev/null", memory) == "the kernel /dev/null is a character device; it must be a regular file"


def test_component_that_is_a_file(memory: GuestMemory, make_file: MakeFile) -> None:
    path = make_file(b"x")
    assert refusal(f"{path}/vmlinuz", memory) == f"the kernel {path}/vmlinuz cannot be opened: Not a directory"


def test_unreadable(memory: GuestMemory, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_file(b"kernel")
    if AS_ROOT:  # root reads everything: let the open fail as it would for others

        def deny(*_args: object, **_more: object) -> Never:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", deny)
    else:
        os.chmod(path, 0)
    assert refusal(path, memory) == f"the kernel {path} is not readable for {own_name()}"


def test_empty(memory: GuestMemory, make_file: MakeFile) -> None:
    path = make_file(b"")
    assert refusal(path, memory) == f"the kernel {path} is empty"


@pytest.mark.parametrize("size", [1, 0x202, 0x205, 0x206, 5000])
def test_random_file(memory: GuestMemory, make_file: MakeFile, size: int) -> None:
    path = make_file(random.Random(size).randbytes(size))
    assert refusal(path, memory) == f"the kernel {path} ({size} bytes) is neither a bzImage nor an ELF file"


def test_no_descriptor_is_left_after_a_refusal(memory: GuestMemory, make_file: MakeFile, tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    for content in (b"", b"x", b"\x7fELF" + bytes(100), bytes(0x202) + b"HdrS" + bytes(100)):
        refusal(make_file(content), memory)
    refusal(tmp_path, memory)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_memory_can_be_closed_while_the_refusal_is_handled(
    make_memory: MakeMemory, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = pattern(0x1000)
    for image in (bzimage(code), elf([segment(0x100000, code)], entry=0x100000)):
        memory = make_memory(4 << 20)
        path = make_file(image)
        real, size = os.preadv, len(image)

        def shrunken(fd: int, views: Sequence[memoryview], offset: int, real: Preadv = real, size: int = size) -> int:
            return real(fd, [views[0][: max(0, size - 10 - offset)]], offset)

        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", shrunken)
            try:
                load_kernel(path, memory)
                pytest.fail("a file that shrinks while it is read was taken")
            except ConfigError as error:
                assert f"truncated: {size - 10} of {size} bytes" in str(error)
                memory.close()
