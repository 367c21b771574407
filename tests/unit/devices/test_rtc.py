"""The CMOS clock: formats, setting it, memory sizes, and that nonsense gives some time but no error."""

from __future__ import annotations

import calendar
import itertools

import pytest

from vmservice.devices.rtc import Rtc, RtcState

GIB = 1 << 30
SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY = 0, 2, 4, 6, 7, 8, 9, 0x32
DATE = (CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS)


def utc(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> float:
    return float(calendar.timegm((year, month, day, hour, minute, second)))


class Rig:
    """A clock whose host time is what the test says."""

    def __init__(self, now: float = 0.0, state: RtcState | None = None, **sizes: int) -> None:
        self.now = now
        self.rtc = Rtc(lambda: self.now, state=state, **sizes)

    def get(self, register: int) -> int:
        self.rtc.write(0, bytes((register,)))
        return self.rtc.read(1, 1)[0]

    def put(self, register: int, value: int) -> None:
        self.rtc.write(0, bytes((register,)))
        self.rtc.write(1, bytes((value,)))

    def time(self) -> tuple[int, ...]:
        return tuple(self.get(register) for register in DATE)

    def set_time(self, values: tuple[int, ...]) -> None:
        control = self.get(0x0B)
        self.put(0x0B, control | 0x80)
        for register, value in zip(DATE, values, strict=True):
            self.put(register, value)
        self.put(0x0B, control)


def test_the_time_is_bcd_and_24_hours_at_reset() -> None:
    rig = Rig(utc(2026, 11, 25, 23, 59, 58))  # a Wednesday
    assert rig.time() == (0x20, 0x26, 0x11, 0x25, 4, 0x23, 0x59, 0x58)
    rig.now += 2.5
    assert rig.time() == (0x20, 0x26, 0x11, 0x26, 5, 0x00, 0x00, 0x00)


def test_register_b_chooses_binary() -> None:
    rig = Rig(utc(1999, 12, 31, 23, 59, 58))
    rig.put(0x0B, 0x06)
    assert rig.time() == (19, 99, 12, 31, 6, 23, 59, 58)


@pytest.mark.parametrize(
    ("hour", "bcd", "binary"),
    [(0, 0x12, 12), (1, 0x01, 1), (11, 0x11, 11), (12, 0x92, 0x8C), (13, 0x81, 0x81), (23, 0x91, 0x8B)],
)
def test_register_b_chooses_12_hours_with_a_bit_for_pm(hour: int, bcd: int, binary: int) -> None:
    rig = Rig(utc(2026, 1, 1, hour))
    rig.put(0x0B, 0x00)
    assert rig.get(HOURS) == bcd
    rig.put(0x0B, 0x04)
    assert rig.get(HOURS) == binary
    rig.set_time((20, 30, 2, 3, 1, binary, 0, 0))  # a Sunday
    rig.put(0x0B, 0x06)
    assert rig.get(HOURS) == hour
    assert rig.get(DAY) == 3


def test_sunday_is_day_one() -> None:
    assert [Rig(utc(2026, 11, 22 + day)).get(WEEKDAY) for day in range(7)] == [1, 2, 3, 4, 5, 6, 7]


def test_control_registers() -> None:
    rig = Rig()
    assert rig.rtc.read(0, 1) == b"\x00"
    assert rig.rtc.state.ram[0x0E:] == bytes(0x72)
    assert (rig.get(0x0A), rig.get(0x0B), rig.get(0x0C), rig.get(0x0D)) == (0x26, 0x02, 0x00, 0x80)
    rig.put(0x0A, 0xFF)
    assert rig.get(0x0A) == 0x7F  # no update is ever in progress
    rig.put(0x0C, 0xFF)
    rig.put(0x0D, 0x00)
    assert (rig.get(0x0C), rig.get(0x0D)) == (0x00, 0x80)


def test_the_nmi_bit_is_no_part_of_the_index() -> None:
    rig = Rig(utc(2026, 1, 1, 0, 0, 17))
    rig.rtc.write(0, b"\x80")
    assert rig.rtc.read(0, 1) == b"\x00"
    assert rig.rtc.read(1, 1) == b"\x17"
    rig.rtc.write(0, b"\x8d")
    assert rig.rtc.read(1, 1) == b"\x80"


def test_a_wide_write_sets_index_and_register() -> None:
    rig = Rig()
    rig.rtc.write(0, b"\x0f\x0a")
    assert rig.get(0x0F) == 0x0A
    assert rig.rtc.read(0, 4) == b"\x0f\x0a\xff\xff"


def test_alarms_and_ram_are_kept() -> None:
    rig = Rig()
    for register in (1, 3, 5, 0x0E, 0x0F, 0x10, 0x31, 0x33, 0x7F):
        rig.put(register, register ^ 0xA5)
    assert all(rig.get(register) == register ^ 0xA5 for register in (1, 3, 5, 0x0E, 0x0F, 0x10, 0x31, 0x33, 0x7F))


@pytest.mark.parametrize(
    ("below", "above", "expected"),
    [
        (512 << 20, 0, (0x00, 0x1F, 0, 0, 0)),
        (3 * GIB, 5 * GIB, (0x00, 0xBF, 0x00, 0x40, 0x01)),
        (8 << 20, 0, (0, 0, 0, 0, 0)),
        (3 * GIB, 1 << 50, (0x00, 0xBF, 0xFF, 0xFF, 0xFF)),
    ],
)
def test_memory_sizes(below: int, above: int, expected: tuple[int, ...]) -> None:
    rig = Rig(memory_below_4g_bytes=below, memory_above_4g_bytes=above)
    assert tuple(rig.get(register) for register in (0x34, 0x35, 0x5B, 0x5C, 0x5D)) == expected


# Setting the clock


def test_a_clock_that_the_guest_sets_runs_on_from_there() -> None:
    rig = Rig(utc(2026, 11, 25, 12, 0, 0))
    rig.set_time((0x20, 0x24, 0x02, 0x28, 4, 0x23, 0x59, 0x58))
    assert rig.time() == (0x20, 0x24, 0x02, 0x28, 4, 0x23, 0x59, 0x58)
    rig.now += 3
    assert rig.time() == (0x20, 0x24, 0x02, 0x29, 5, 0x00, 0x00, 0x01)
    rig.now += 86400 * 365
    assert rig.time()[:4] == (0x20, 0x25, 0x02, 0x28)


def test_the_clock_stands_while_it_is_being_set() -> None:
    rig = Rig(utc(2026, 11, 25, 12, 34, 56))
    rig.put(0x0B, 0x82)
    rig.now += 60
    assert rig.time() == (0x20, 0x26, 0x11, 0x25, 4, 0x12, 0x34, 0x56)
    rig.put(MINUTES, 0x50)
    rig.now += 60
    rig.put(0x0B, 0x86)  # still held, and nothing is frozen anew
    rig.put(0x0B, 0x82)
    assert rig.time() == (0x20, 0x26, 0x11, 0x25, 4, 0x12, 0x50, 0x56)
    rig.put(0x0B, 0x02)
    rig.now += 60
    assert rig.time() == (0x20, 0x26, 0x11, 0x25, 4, 0x12, 0x51, 0x56)


def test_linux_sets_the_clock_half_a_second_before_the_next_one() -> None:
    """mc146818_set_time() holds the divider in reset meanwhile, and calls half a second ahead."""
    rig = Rig(utc(2026, 11, 25, 12, 0, 0) + 0.3)
    rig.put(0x0B, 0x82)
    rig.put(0x0A, 0x76)
    rig.put(SECONDS, 0x10)
    rig.put(0x0B, 0x02)
    rig.put(0x0A, 0x26)
    assert rig.get(SECONDS) == 0x10
    rig.now += 0.49
    assert rig.get(SECONDS) == 0x10
    rig.now += 0.02
    assert rig.get(SECONDS) == 0x11


def test_a_register_written_without_the_set_bit_takes_effect_at_once_and_keeps_the_phase() -> None:
    rig = Rig(utc(2026, 11, 25, 12, 34, 56) + 0.75)
    rig.put(HOURS, 0x05)
    assert rig.time() == (0x20, 0x26, 0x11, 0x25, 4, 0x05, 0x34, 0x56)
    rig.put(HOURS, 0x06)
    rig.now += 0.2
    assert rig.get(SECONDS) == 0x56
    rig.put(MINUTES, 0x35)
    rig.now += 0.1
    assert rig.get(SECONDS) == 0x57


@pytest.mark.parametrize(
    "date",
    [
        (1970, 1, 1),
        (1999, 12, 31),
        (2000, 2, 29),
        (2024, 3, 1),
        (2038, 1, 19),
        (2100, 2, 28),
        (2100, 3, 1),
        (2401, 3, 1),
        (2026, 12, 31),
        (9999, 12, 31),
    ],
)
def test_every_date_that_is_set_reads_back(date: tuple[int, int, int]) -> None:
    year, month, day = date
    rig = Rig(1e9)
    rig.put(0x0B, 0x06)
    rig.set_time((year // 100, year % 100, month, day, 0, 1, 2, 3))
    weekday = (calendar.weekday(year, month, day) + 1) % 7 + 1
    assert rig.time() == (year // 100, year % 100, month, day, weekday, 1, 2, 3)
    assert rig.now + rig.rtc.state.offset_sec == utc(year, month, day, 1, 2, 3)


@pytest.mark.parametrize("control", [0x00, 0x02, 0x04, 0x06])
def test_nonsense_gives_some_time_but_no_error(control: int) -> None:
    rig = Rig(1e9)
    rig.put(0x0B, control)
    for values in itertools.product((0x00, 0xFF), repeat=len(DATE)):
        rig.set_time(values)
        assert len(rig.time()) == len(DATE)
        rig.now += 12345.6


def test_a_clock_built_from_the_state_goes_on_the_same() -> None:
    rig = Rig(1e9, memory_below_4g_bytes=GIB)
    rig.set_time((0x20, 0x30, 0x02, 0x28, 4, 0x23, 0x59, 0x58))
    rig.put(0x0F, 0x0A)
    twin = Rig(rig.now + 1, state=rig.rtc.state)
    rig.now += 1
    assert twin.time() == rig.time()
    assert [twin.get(register) for register in (0x0F, 0x34, 0x35)] == [0x0A, 0x00, 0x3F]
