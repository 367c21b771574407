"""WDAT, byte by byte, and worked against the device as Linux' wdat_wdt works it."""

from __future__ import annotations

import struct

from support.timers import FakeTimers

from vmservice.acpi.wdat import wdat
from vmservice.devices import watchdog
from vmservice.devices.watchdog import Watchdog

BASE = 0x620
FEED, GET_REMAINING, GET_TIMEOUT, SET_TIMEOUT = 1, 4, 5, 6
GET_RUNNING, SET_RUNNING, GET_STOPPED, SET_STOPPED, GET_STATUS, SET_STATUS = 8, 9, 10, 11, 32, 33
TABLE = wdat(
    control=BASE + watchdog.CONTROL,
    status=BASE + watchdog.STATUS,
    feed=BASE + watchdog.FEED,
    timeout=BASE + watchdog.TIMEOUT,
    remaining=BASE + watchdog.REMAINING,
    period_ms=100,
    count_min=1,
    count_max=0xFFFF,
)


class Driver:
    """Runs an action's instruction as the table says it."""

    def __init__(self, device: Watchdog) -> None:
        self._device = device
        self._entries = {entry[0]: entry for entry in struct.iter_unpack("<BBHBBBBQII", TABLE[68:])}

    def run(self, action: int, count: int = 0) -> int:
        _, instruction, _, space, bits, shift, access, port, value, mask = self._entries[action]
        assert (space, shift) == (1, 0)
        size = {1: 1, 2: 2}[access]
        assert bits == 8 * size
        if instruction in (0, 1):
            found = int.from_bytes(self._device.read(port - BASE, size), "little") & mask
            return int(found == value) if instruction == 0 else found
        self._device.write(port - BASE, ((value if instruction == 2 else count) & mask).to_bytes(size, "little"))
        return 0


def test_header() -> None:
    assert (TABLE[:4], int.from_bytes(TABLE[4:8], "little"), TABLE[8]) == (b"WDAT", len(TABLE), 1)
    assert sum(TABLE) & 0xFF == 0
    assert TABLE[36:68] == bytes.fromhex("20000000 ff00ffffff 000000 64000000 ffff0000 01000000 01 000000 0a000000")
    assert len(TABLE) == 68 + 10 * 24


def test_entries() -> None:
    assert TABLE[68:92] == bytes.fromhex("01020000 01080001 2206000000000000 01000000 01000000")
    assert TABLE[92:116] == bytes.fromhex("04010000 01100002 2606000000000000 00000000 ffff0000")


def test_no_register_is_the_clocks() -> None:
    """Linux leaves a table alone that uses ports 0x70 to 0x73."""
    ports = {entry[7] for entry in struct.iter_unpack("<BBHBBBBQII", TABLE[68:])}
    assert ports == {BASE, BASE + 1, BASE + 2, BASE + 4, BASE + 6}


def test_a_driver_works_the_device_by_it() -> None:
    timers, fired = FakeTimers(0.0), []
    device = Watchdog(timers.call_later, lambda: fired.append(round(timers.time, 3)), now=timers.now)
    device.start()
    driver = Driver(device)
    assert [driver.run(action) for action in (GET_STATUS, GET_RUNNING, GET_STOPPED)] == [0, 0, 1]
    driver.run(SET_TIMEOUT, 5)
    driver.run(SET_RUNNING)
    assert [driver.run(action) for action in (GET_RUNNING, GET_STOPPED, GET_TIMEOUT, GET_REMAINING)] == [1, 0, 5, 5]
    timers.advance(0.41)
    assert driver.run(GET_REMAINING) == 1
    driver.run(FEED)
    assert driver.run(GET_REMAINING) == 5
    timers.advance(0.6)
    assert (fired, driver.run(GET_STATUS)) == ([0.91], 1)
    driver.run(SET_STATUS)
    driver.run(SET_STOPPED)
    assert [driver.run(action) for action in (GET_STATUS, GET_RUNNING)] == [0, 0]
