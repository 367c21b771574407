"""The bus: who answers where, what nobody answers, and what a wide access over an end gets."""

from __future__ import annotations

import _thread

import pytest

from vmservice.devices.bus import SHORT_RANGE_BYTES, Bus


class Recorder:
    """Answers each byte with its offset and writes down what it gets."""

    def __init__(self) -> None:
        self.reads: list[tuple[int, int]] = []
        self.writes: list[tuple[int, bytes]] = []

    def read(self, offset: int, size: int) -> bytes:
        self.reads.append((offset, size))
        return bytes((offset + position) & 0xFF for position in range(size))

    def write(self, offset: int, data: bytes) -> None:
        self.writes.append((offset, data))


class Other(Recorder):
    """Another name for messages."""


LOCK = _thread.allocate_lock()

# One range that is found through the dictionary and one that is scanned for: the bus must behave alike.
LENGTHS = (8, SHORT_RANGE_BYTES + 8)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_device_gets_offsets_not_addresses(length: int) -> None:
    bus, device = Bus(), Recorder()
    bus.insert(0x3F8, length, device, LOCK)
    assert bus.read(0x3F8, 1) == b"\x00"
    assert bus.read(0x3F8 + 5, 2) == b"\x05\x06"
    bus.write(0x3F8 + length - 4, b"abcd")
    assert device.reads == [(0, 1), (5, 2)]
    assert device.writes == [(length - 4, b"abcd")]


@pytest.mark.parametrize("length", LENGTHS)
def test_unclaimed_reads_are_all_ones_and_writes_vanish(length: int) -> None:
    bus, device = Bus(), Recorder()
    bus.insert(0x3F8, length, device, LOCK)
    for address in (0, 0x3F7, 0x3F8 + length, 1 << 40):
        for size in (1, 2, 4, 8):
            if address != 0x3F7 or size == 1:
                assert bus.read(address, size) == b"\xff" * size
                bus.write(address, bytes(size))
    assert device.reads == []
    assert device.writes == []


@pytest.mark.parametrize("length", LENGTHS)
def test_what_reaches_past_the_end_is_cut(length: int) -> None:
    bus, device, neighbour = Bus(), Recorder(), Recorder()
    bus.insert(0x1000, length, device, LOCK)
    bus.insert(0x1000 + length, 8, neighbour, LOCK)
    last = 0x1000 + length - 1
    assert bus.read(last, 4) == bytes(((length - 1) & 0xFF,)) + b"\xff\xff\xff"
    bus.write(last, b"abcd")
    assert device.reads == [(length - 1, 1)]
    assert device.writes == [(length - 1, b"a")]
    assert neighbour.reads == []
    assert neighbour.writes == []


def test_an_access_that_begins_below_a_device_is_nobodys() -> None:
    bus, device = Bus(), Recorder()
    bus.insert(0x61, 4, device, LOCK)
    assert bus.read(0x60, 4) == b"\xff\xff\xff\xff"
    assert device.reads == []


@pytest.mark.parametrize(
    ("base", "length"),
    [(0x3F8, 8), (0x3FF, 1), (0x3F7, 2), (0x3F0, 0x20), (0x3FA, 2), (0x3FF, 0x2000)],
)
def test_an_overlap_is_refused_and_both_are_named(base: int, length: int) -> None:
    bus, device = Bus(), Recorder()
    bus.insert(0x3F8, 8, device, LOCK)
    with pytest.raises(ValueError, match=rf"Other at {base:#x}-.* overlaps Recorder at 0x3f8-0x3ff"):
        bus.insert(base, length, Other(), LOCK)
    bus.write(0x3F8, b"x")
    assert device.writes == [(0, b"x")]
    assert bus.read(0x3F7, 1) == b"\xff"
    assert bus.read(0x400, 1) == b"\xff"


class Held:
    """Notes whether its lock was held when it was read or written."""

    def __init__(self, lock: _thread.LockType) -> None:
        self.lock = lock
        self.held: list[bool] = []

    def read(self, offset: int, size: int) -> bytes:
        self.held.append(self.lock.locked())
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        self.held.append(self.lock.locked())


@pytest.mark.parametrize("length", LENGTHS)
def test_each_device_is_reached_with_its_own_lock_held(length: int) -> None:
    bus, locks = Bus(), [_thread.allocate_lock() for _ in range(2)]
    devices = [Held(lock) for lock in locks]
    for number, (device, lock) in enumerate(zip(devices, locks, strict=True)):
        bus.insert(number * length, length, device, lock)
    # The other's may be held for as long as it likes.
    with locks[1]:
        bus.read(0, 1)
        bus.write(length - 1, b"ab")
    assert devices[0].held == [True, True]
    assert not any(lock.locked() for lock in locks)
    assert bus.find(length + 1) == (devices[1], length, 2 * length, locks[1])
    assert bus.find(2 * length) is None


def test_a_device_that_stays_is_found_while_others_come_and_go() -> None:
    """Looking up takes no lock, so it must never see a map that is half changed."""
    import threading

    bus, staying = Bus(), [Recorder(), Recorder()]
    for number, device in enumerate(staying):
        bus.insert(0x1000 * number, LENGTHS[number], device, LOCK)
    done = threading.Event()
    changes = missed = 0

    def come_and_go() -> None:
        nonlocal changes
        while not done.is_set():
            for number, length in enumerate(LENGTHS):
                bus.insert(0x10000 + 0x1000 * number, length, Recorder(), LOCK)
            for number in range(2):
                bus.remove(0x10000 + 0x1000 * number)
            changes += 1

    changing = threading.Thread(target=come_and_go)
    changing.start()
    while changes < 500:
        missed += any(bus.find(0x1000 * number) is None for number in range(2))
    done.set()
    changing.join()
    assert missed == 0


def test_neighbours_do_not_overlap() -> None:
    bus, low, high = Bus(), Recorder(), Recorder()
    bus.insert(0x3F8, 8, low, LOCK)
    bus.insert(0x400, 8, high, LOCK)
    bus.insert(0x3F0, 8, Recorder(), LOCK)
    bus.read(0x3FF, 1)
    bus.read(0x400, 1)
    assert low.reads == [(7, 1)]
    assert high.reads == [(0, 1)]


@pytest.mark.parametrize(("base", "length"), [(0x10, 0), (0x10, -1), (-1, 4)])
def test_an_impossible_range_is_refused(base: int, length: int) -> None:
    with pytest.raises(ValueError, match="Recorder wants"):
        Bus().insert(base, length, Recorder(), LOCK)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_removed_device_leaves_its_range_free(length: int) -> None:
    bus, device, neighbour = Bus(), Recorder(), Recorder()
    bus.insert(0x1000, length, device, LOCK)
    bus.insert(0x1000 + length, length, neighbour, LOCK)
    bus.remove(0x1000)
    assert bus.read(0x1000, 1) == bus.read(0x1000 + length - 1, 1) == b"\xff"
    bus.write(0x1000, b"x")
    assert (device.reads, device.writes) == ([], [])
    assert bus.read(0x1000 + length, 1) == b"\x00"
    bus.insert(0x1000, length, Other(), LOCK)
    assert bus.read(0x1000, 1) == b"\x00"


@pytest.mark.parametrize("base", [0, 0xFFF, 0x1001, 0x1008])
def test_only_a_device_that_starts_there_is_removed(base: int) -> None:
    bus, device = Bus(), Recorder()
    bus.insert(0x1000, 8, device, LOCK)
    with pytest.raises(ValueError, match=f"no device starts at {base:#x}"):
        bus.remove(base)
    assert bus.read(0x1000, 1) == b"\x00"
