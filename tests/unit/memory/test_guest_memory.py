"""Guest memory: what is inside can be reached, and nothing else."""

from __future__ import annotations

import mmap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmservice.errors import OutOfGuestMemory
from vmservice.memory.guest_memory import GuestMemory, Region

PAGE = mmap.PAGESIZE
HIGH = 4 << 30


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory([Region(gpa, mmap.mmap(-1, 2 * PAGE)) for gpa in (HIGH, 0)])


def test_regions_are_in_order_and_add_up(memory: GuestMemory) -> None:
    assert [region.gpa for region in memory.regions] == [0, HIGH]
    assert memory.size_bytes == 4 * PAGE
    assert memory.end == HIGH + 2 * PAGE


def test_written_bytes_are_read_back_at_their_address_only(memory: GuestMemory) -> None:
    memory.write(HIGH + PAGE - 2, b"abcd")
    assert memory.read(HIGH + PAGE - 3, 6) == b"\0abcd\0"
    assert memory.read(PAGE - 3, 6) == bytes(6)


@given(st.integers(0, 2 * HIGH), st.integers(0, 4 * PAGE))
@settings(max_examples=300, derandomize=True)
def test_an_access_is_whole_or_refused(gpa: int, size: int) -> None:
    memory = GuestMemory([Region(base, mmap.mmap(-1, 2 * PAGE)) for base in (0, HIGH)])
    inside = any(base <= gpa and gpa + size <= base + 2 * PAGE for base in (0, HIGH))
    assert memory.contains(gpa, size) == inside
    if inside:
        assert len(memory.read(gpa, size)) == size
    else:
        with pytest.raises(OutOfGuestMemory, match=rf"{size} bytes at guest address {gpa:#x}"):
            memory.read(gpa, size)
    memory.close()


@pytest.mark.parametrize(("gpa", "size"), [(2 * PAGE, 1), (2 * PAGE - 1, 2), (HIGH - 1, 2), (-1, 1), (0, -1)])
def test_no_access_crosses_an_edge(memory: GuestMemory, gpa: int, size: int) -> None:
    with pytest.raises(OutOfGuestMemory):
        memory.view(gpa, size)


def test_closed_memory_is_gone(memory: GuestMemory) -> None:
    memory.close()
    memory.close()
    with pytest.raises(OutOfGuestMemory):
        memory.read(0, 1)
