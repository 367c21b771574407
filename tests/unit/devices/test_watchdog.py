"""The watchdog's registers, and its countdown against a clock of ours."""

from __future__ import annotations

import pytest
from support.timers import FakeTimers

from vmservice.devices.watchdog import Watchdog, WatchdogState

CONTROL, STATUS, FEED, TIMEOUT, REMAINING = 0, 1, 2, 4, 6


class Bench:
    def __init__(self, state: WatchdogState | None = None) -> None:
        self.timers = FakeTimers()
        self.fired = 0
        self.device = Watchdog(self.timers.call_later, self._fire, state, now=self.timers.now)
        assert self.timers.pending == 0
        self.device.start()

    def _fire(self) -> None:
        self.fired += 1

    def start(self, periods: int) -> Bench:
        self.device.write(TIMEOUT, periods.to_bytes(2, "little"))
        self.device.write(CONTROL, b"\x01")
        return self

    def run(self, seconds: float) -> None:
        self.timers.advance(seconds)

    @property
    def remaining(self) -> int:
        return int.from_bytes(self.device.read(REMAINING, 2), "little")


def test_it_is_off_at_reset() -> None:
    bench = Bench()
    assert bench.device.read(0, 8) == bytes.fromhex("00000000 2c01 0000")
    assert bench.timers.pending == 0
    bench.run(60)
    assert bench.fired == 0


def test_every_offset_and_width_is_read() -> None:
    bench = Bench(WatchdogState(fired=True)).start(0x1234)
    assert bench.timers.pending == 1
    registers = bytes.fromhex("01010000 3412 3412")
    for offset in range(10):
        for size in (1, 2, 4, 8):
            assert bench.device.read(offset, size) == registers[offset : offset + size].ljust(size, b"\0")


def test_a_write_of_another_width_or_place_does_nothing() -> None:
    bench = Bench(WatchdogState(fired=True))
    before = bench.device.state.values()
    for offset in range(10):
        for size in (1, 2, 4, 8):
            if (offset, size) not in ((CONTROL, 1), (STATUS, 1), (TIMEOUT, 2)):
                bench.device.write(offset, b"\x01" * size)
    bench.device.write(CONTROL, b"\xfe")
    bench.device.write(STATUS, b"\xfe")
    assert bench.device.state.values() == before


def test_it_fires_when_it_is_not_fed_and_counts_again() -> None:
    bench = Bench().start(20)
    bench.run(1.95)
    assert (bench.fired, bench.remaining) == (0, 1)
    bench.run(0.15)
    assert (bench.fired, bench.device.read(STATUS, 1)) == (1, b"\x01")
    bench.run(1.8)
    assert bench.fired == 1
    bench.run(0.3)
    assert bench.fired == 2


def test_it_does_not_fire_when_it_is_fed() -> None:
    bench = Bench().start(20)
    for _ in range(10):
        bench.run(1.5)
        bench.device.write(FEED, b"\x01")
        assert bench.remaining == 20
    assert bench.fired == 0


def test_what_is_no_feed() -> None:
    """Another value, starting what runs, and a new timeout, which counts from the next feed."""
    bench = Bench().start(20)
    bench.run(1.5)
    bench.device.write(FEED, b"\x02")
    bench.device.write(CONTROL, b"\x01")
    bench.device.write(TIMEOUT, b"\x50\x00")
    assert bench.remaining == 5
    bench.device.write(FEED, b"\x01")
    assert bench.remaining == 80


def test_stopping_and_starting() -> None:
    bench = Bench().start(20)
    bench.run(1.5)
    bench.device.write(CONTROL, b"\x00")
    bench.device.write(FEED, b"\x01")
    assert bench.remaining == 0
    bench.run(10)
    assert bench.timers.pending == 0
    bench.device.write(CONTROL, b"\x01")
    assert bench.remaining == 20
    bench.run(1.5)
    assert bench.fired == 0


def test_a_pause_does_not_count() -> None:
    bench = Bench().start(20)
    bench.run(1.5)
    bench.device.stop()
    assert bench.timers.pending == 0
    assert bench.device.state.remaining_sec == pytest.approx(0.5)
    bench.run(3600)
    assert bench.remaining == 5
    bench.device.start()
    bench.run(0.45)
    assert (bench.fired, bench.remaining) == (0, 6)  # the last second is counted from where the guest is seen to run
    bench.run(0.7)
    assert bench.fired == 1


def test_feeding_over_and_over_makes_no_further_timers() -> None:
    bench = Bench().start(20)
    for _ in range(1000):
        bench.device.write(FEED, b"\x01")
        bench.device.write(CONTROL, b"\x00")
        bench.device.write(CONTROL, b"\x01")
    assert len(bench.timers._timers) == 1


@pytest.mark.parametrize("frozen_sec", [1.9, 5.0, 3600.0])
def test_a_process_that_was_frozen_leaves_its_guest_time_to_feed(frozen_sec: float) -> None:
    """Whether it thaws just before the end or long after it."""
    bench = Bench().start(20)
    bench.timers.freeze(frozen_sec)
    bench.run(0.9)
    assert bench.fired == 0
    bench.device.write(FEED, b"\x01")
    bench.run(1.9)
    assert bench.fired == 0
    bench.run(0.2)
    assert bench.fired == 1


def test_a_clock_that_goes_back_adds_nothing() -> None:
    bench = Bench().start(20)
    bench.timers.time -= 3600
    assert bench.remaining == 20


def test_one_that_goes_on_from_a_state_counts_from_its_start() -> None:
    bench = Bench().start(50)
    bench.run(3)
    bench.device.stop()
    other = Bench(WatchdogState.from_values(bench.device.state.values()))
    assert other.remaining == 20
    other.run(1.9)
    assert other.fired == 0
    other.run(0.2)
    assert other.fired == 1


def test_a_timeout_of_nothing_is_one_period() -> None:
    bench = Bench().start(0)
    assert bench.device.read(TIMEOUT, 2) == b"\x01\x00"


def test_fired_is_what_the_next_guest_finds_until_it_clears_it() -> None:
    bench = Bench(WatchdogState(fired=True))
    assert bench.device.read(STATUS, 1) == b"\x01"
    bench.device.write(STATUS, b"\x01")
    assert bench.device.read(STATUS, 1) == b"\x00"
