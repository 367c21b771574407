"""Guest memory: what is inside can be reached, and nothing else."""

from __future__ import annotations

import mmap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmservice.errors import HostError, OutOfGuestMemory
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


class Map:
    """A copy of the map of guest memory, as KVM or a back end has one."""

    def __init__(self, refuse: int = -1) -> None:
        self.gpas: list[int] = []
        self.refuse = refuse

    def region_added(self, region: Region) -> None:
        if region.gpa == self.refuse:
            raise HostError("there is no slot left")
        self.gpas.append(region.gpa)

    def region_removed(self, region: Region) -> None:
        self.gpas.remove(region.gpa)


def test_who_has_a_copy_of_the_map_is_told_of_each_change() -> None:
    memory, early, late = GuestMemory([Region(0, mmap.mmap(-1, 2 * PAGE))]), Map(), Map()
    memory.listen(early)
    assert early.gpas == [0]
    memory.add(Region(HIGH, mmap.mmap(-1, PAGE)))
    memory.listen(late)
    assert early.gpas == late.gpas == [0, HIGH]
    memory.write(HIGH, b"new")
    assert (memory.size_bytes, memory.end) == (3 * PAGE, HIGH + PAGE)
    removed = memory.remove(HIGH)
    assert early.gpas == late.gpas == [0]
    with pytest.raises(OutOfGuestMemory):
        memory.read(HIGH, 1)
    memory.add(removed)
    assert memory.read(HIGH, 3) == b"new"
    memory.close()


def test_a_region_that_one_of_them_refuses_is_not_there_for_any() -> None:
    memory, willing, full = GuestMemory([Region(0, mmap.mmap(-1, PAGE))]), Map(), Map(refuse=HIGH)
    memory.listen(willing)
    memory.listen(full)
    region = Region(HIGH, mmap.mmap(-1, PAGE))
    with pytest.raises(HostError, match="no slot left"):
        memory.add(region)
    assert willing.gpas == full.gpas == [0]
    assert not memory.contains(HIGH, 1)
    memory.close()


def test_regions_do_not_overlap_and_only_those_that_are_there_go() -> None:
    memory = GuestMemory([Region(0, mmap.mmap(-1, 2 * PAGE))])
    for gpa in (0, PAGE):
        with pytest.raises(ValueError, match="is there already"):
            memory.add(Region(gpa, mmap.mmap(-1, PAGE)))
    with pytest.raises(ValueError, match="no region of guest memory begins at 0x1000"):
        memory.remove(PAGE)
    memory.close()


def test_nothing_is_given_back_while_somebody_has_its_address() -> None:
    memory = GuestMemory([Region(0, mmap.mmap(-1, 2 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))])
    memory.write(0, b"kept")
    memory.pin()
    memory.pin()
    memory.unpin()
    memory.discard(0, PAGE)
    assert memory.read(0, 4) == b"kept"
    memory.unpin()
    memory.discard(0, PAGE)
    assert memory.read(0, 4) == bytes(4)
    with pytest.raises(ValueError, match="is not pinned"):
        memory.unpin()
    memory.close()
