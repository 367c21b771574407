"""Flat firmware: its end at 4 GiB and at 1 MiB."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.images import MakeFile, MakeMemory, pattern

from vmservice.boot.firmware import load_firmware
from vmservice.errors import ConfigError
from vmservice.memory.guest_memory import GuestMemory


@pytest.mark.parametrize("size", [16, 4096, 5000, 128 << 10, (256 << 10) + 1])
def test_image_ends_at_4_gib_and_its_tail_at_1_mib(memory: GuestMemory, make_file: MakeFile, size: int) -> None:
    content = pattern(size)
    image = load_firmware(make_file(content), memory)
    try:
        assert image.gpa + len(image.mapping) == 1 << 32
        assert image.gpa % 4096 == 0
        assert len(image.mapping) - size < 4096
        assert image.mapping[-size:] == content
        assert image.mapping[:-size].strip(b"\0") == b""
    finally:
        image.close()
    tail = content[-(128 << 10) :]
    assert memory.read(0x100000 - len(tail), len(tail) + 1) == tail + b"\xcc"
    assert memory.read(0x100000 - len(tail) - 1, 1) == b"\xcc"


@pytest.mark.parametrize("size", [1, 15, (16 << 20) + 1])
def test_size_that_cannot_be(memory: GuestMemory, make_file: MakeFile, size: int) -> None:
    path = make_file(b"x")
    os.truncate(path, size)
    with pytest.raises(ConfigError) as caught:
        load_firmware(path, memory)
    assert str(caught.value) == f"the firmware image {path} has {size} bytes; from 16 to 16777216 are possible"


def test_the_largest_leaves_the_interrupt_controllers_alone(memory: GuestMemory, make_file: MakeFile) -> None:
    path = make_file(b"x")
    os.truncate(path, 16 << 20)
    image = load_firmware(path, memory)
    image.close()
    assert image.gpa == 0xFF000000


def test_empty_and_missing(memory: GuestMemory, make_file: MakeFile, tmp_path: Path) -> None:
    path = make_file(b"")
    with pytest.raises(ConfigError, match=f"the firmware image {path} is empty"):
        load_firmware(path, memory)
    with pytest.raises(ConfigError, match=r"the firmware image .*/none does not exist"):
        load_firmware(str(tmp_path / "none"), memory)


def test_memory_that_ends_below_the_low_copy(make_memory: MakeMemory, make_file: MakeFile) -> None:
    with pytest.raises(ConfigError, match="needs guest memory up to 0x100000"):
        load_firmware(make_file(bytes(64)), make_memory(1 << 19))
