"""Guest memory for the loaders, filled with a byte that shows what was not written."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.images import MakeFile, MakeMemory

from vmservice.memory.guest_memory import GuestMemory, Region

FILL = 0xCC


@pytest.fixture
def make_memory() -> Iterator[MakeMemory]:
    """RAM from address 0 of so many bytes; used before, so full of 0xcc."""
    made: list[GuestMemory] = []

    def make(size_bytes: int) -> GuestMemory:
        mapping = mmap.mmap(-1, size_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        mapping[:] = bytes([FILL]) * size_bytes
        made.append(GuestMemory([Region(0, mapping)]))
        return made[-1]

    yield make
    for memory in made:
        memory.close()


@pytest.fixture
def memory(make_memory: MakeMemory) -> GuestMemory:
    return make_memory(4 << 20)


@pytest.fixture
def make_file(tmp_path: Path) -> MakeFile:
    """The path of a file with this content; each call overwrites it."""

    def make(content: bytes) -> str:
        path = tmp_path / "image"
        path.write_bytes(content)
        return str(path)

    return make
