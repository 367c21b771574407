"""The CMOS clock: an MC146818 (Motorola data sheet) with 128 bytes of RAM behind an index and a data port.

It makes no interrupts: alarms and rates are kept and read back, but nothing comes of them. The time is that of the host, moved
by an offset when the guest sets the clock. A few bytes of the RAM tell firmware how much memory there is.
"""

from __future__ import annotations

import time

from vmservice.devices.state import DeviceState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# Ports, as offsets
INDEX = 0
DATA = 1

# Bit 7 of the index port masks the NMI on a PC; it is no part of the index.
INDEX_MASK = 0x7F
RAM_BYTES = 128

# Registers
SECONDS = 0x00
MINUTES = 0x02
HOURS = 0x04
DAY_OF_WEEK = 0x06
DAY_OF_MONTH = 0x07
MONTH = 0x08
YEAR = 0x09
REGISTER_A = 0x0A
REGISTER_B = 0x0B
REGISTER_C = 0x0C
REGISTER_D = 0x0D
CENTURY = 0x32  # the FADT may name it; always BCD or binary like the others
TIME_REGISTERS = frozenset((SECONDS, MINUTES, HOURS, DAY_OF_WEEK, DAY_OF_MONTH, MONTH, YEAR, CENTURY))

# Memory sizes where SeaBIOS and other firmware look for them
MEMORY_ABOVE_16M = 0x34  # two bytes, in units of 64 KiB, what lies between 16 MiB and 4 GiB
MEMORY_ABOVE_4G = 0x5B  # three bytes, in units of 64 KiB
MEMORY_UNIT_BYTES = 64 << 10
MEMORY_ABOVE_16M_BASE = 16 << 20

# Register A: bit 7, update in progress, is never set. A driver reads the seconds again to see whether the others are of one
# moment; the chip's own promise of 244 µs is too short for a guest, one VM exit takes as long.
A_MASK = 0x7F
A_RESET = 0x26  # 32,768 Hz time base, 1,024 Hz rate: what every PC firmware sets
A_DIVIDER_RESET = 0x60

# Register B
B_SET = 0x80  # updates are held while the guest sets the clock
B_BINARY = 0x04  # else BCD
B_24_HOURS = 0x02
B_RESET = B_24_HOURS

D_VALID = 0x80  # RAM and time are valid: the battery is good
PM = 0x80


def _days_from_civil(year: int, month: int, day: int) -> int:
    """Days from 1970-01-01 to a date of the Gregorian calendar; a day beyond the month's end counts on into the next."""
    # Years begin in March, so that the leap day is the last one.
    year, month = (year, month - 3) if month > 2 else (year - 1, month + 9)
    return 365 * year + year // 4 - year // 100 + year // 400 + (153 * month + 2) // 5 + day - 719469


class RtcState(DeviceState):
    """`ram` holds all 128 bytes; the time registers in it count only while B_SET holds the clock."""

    __slots__ = ("index", "offset_sec", "ram")

    def __init__(self) -> None:
        self.index = 0
        self.offset_sec = 0.0
        self.ram = bytearray(RAM_BYTES)
        self.ram[REGISTER_A] = A_RESET
        self.ram[REGISTER_B] = B_RESET
        self.ram[REGISTER_D] = D_VALID


class Rtc:
    """`now` is the host's time in seconds since 1970, UTC; the sizes are those of guest memory below and above 4 GiB."""

    def __init__(
        self,
        now: Callable[[], float],
        memory_below_4g_bytes: int = 0,
        memory_above_4g_bytes: int = 0,
        state: RtcState | None = None,
    ) -> None:
        self._now = now
        self.state = state or RtcState()
        if state is None:
            above_16m = max(0, memory_below_4g_bytes - MEMORY_ABOVE_16M_BASE) // MEMORY_UNIT_BYTES
            above_4g = memory_above_4g_bytes // MEMORY_UNIT_BYTES
            self._store(MEMORY_ABOVE_16M, min(above_16m, 0xFFFF), 2)
            self._store(MEMORY_ABOVE_4G, min(above_4g, 0xFFFFFF), 3)

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self._read_port(offset + position) for position in range(size))

    def write(self, offset: int, data: bytes) -> None:
        """A wide write sets the index and then the register, byte by byte, as on the ISA bus."""
        for port, value in enumerate(data, offset):
            if port == INDEX:
                self.state.index = value & INDEX_MASK
            elif port == DATA:
                self._write_register(self.state.index, value)

    def _store(self, register: int, value: int, size: int) -> None:
        self.state.ram[register : register + size] = value.to_bytes(size, "little")

    def _read_port(self, port: int) -> int:
        if port == INDEX:
            return self.state.index
        return self._read_register(self.state.index) if port == DATA else 0xFF

    def _read_register(self, register: int) -> int:
        if register in TIME_REGISTERS and not self.state.ram[REGISTER_B] & B_SET:
            return self._encoded_time()[register]
        return self.state.ram[register]

    def _write_register(self, register: int, value: int) -> None:
        ram = self.state.ram
        if register in (REGISTER_C, REGISTER_D):
            return  # read-only: no interrupt pending, battery good
        if register == REGISTER_A:
            ram[REGISTER_A] = value & A_MASK
        elif register == REGISTER_B:
            self._write_register_b(value)
        elif register in TIME_REGISTERS and not ram[REGISTER_B] & B_SET:
            self._hold()
            ram[register] = value
            self._let_go()
        else:
            ram[register] = value

    def _write_register_b(self, value: int) -> None:
        ram, before = self.state.ram, self.state.ram[REGISTER_B]
        if value & ~before & B_SET:
            self._hold()
        ram[REGISTER_B] = value
        if before & ~value & B_SET:
            self._let_go()

    def _hold(self) -> None:
        """Freeze the present time into the registers, in the format that register B asks for."""
        for register, value in self._encoded_time().items():
            self.state.ram[register] = value

    def _let_go(self) -> None:
        """Run on from what the registers say."""
        now = self._now()
        # A divider in reset makes its first update half a second after it is let go, and Linux counts on that. Else it has
        # gone on all the while, and the seconds change when they would have changed.
        in_reset = self.state.ram[REGISTER_A] & A_DIVIDER_RESET == A_DIVIDER_RESET
        fraction = 0.5 if in_reset else (now + self.state.offset_sec) % 1.0
        self.state.offset_sec = self._decoded_time() + fraction - now

    def _encoded_time(self) -> dict[int, int]:
        at = time.gmtime(self._now() + self.state.offset_sec)
        values = {
            SECONDS: min(at.tm_sec, 59),
            MINUTES: at.tm_min,
            HOURS: at.tm_hour,
            DAY_OF_WEEK: (at.tm_wday + 1) % 7 + 1,  # 1 is Sunday
            DAY_OF_MONTH: at.tm_mday,
            MONTH: at.tm_mon,
            YEAR: at.tm_year % 100,
            CENTURY: at.tm_year // 100 % 100,
        }
        pm = 0
        if not self.state.ram[REGISTER_B] & B_24_HOURS:
            pm = PM if at.tm_hour >= 12 else 0
            values[HOURS] = at.tm_hour % 12 or 12
        if not self.state.ram[REGISTER_B] & B_BINARY:
            values = {register: value // 10 << 4 | value % 10 for register, value in values.items()}
        values[HOURS] |= pm
        return values

    def _decoded_time(self) -> int:
        """Seconds since 1970. Senseless values give some time or other, never an error; the day of the week follows from it."""
        hour_byte = self.state.ram[HOURS]
        if self.state.ram[REGISTER_B] & B_24_HOURS:
            hours = self._number(hour_byte)
        else:
            hours = self._number(hour_byte & ~PM) % 12 + (12 if hour_byte & PM else 0)
        year = self._register_number(CENTURY) * 100 + self._register_number(YEAR)
        month = min(max(self._register_number(MONTH), 1), 12)
        days = _days_from_civil(year, month, self._register_number(DAY_OF_MONTH))
        return ((days * 24 + hours) * 60 + self._register_number(MINUTES)) * 60 + self._register_number(SECONDS)

    def _register_number(self, register: int) -> int:
        return self._number(self.state.ram[register])

    def _number(self, value: int) -> int:
        return value if self.state.ram[REGISTER_B] & B_BINARY else (value >> 4) * 10 + (value & 0x0F)
