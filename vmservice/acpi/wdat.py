"""WDAT, which tells a guest how to work the watchdog (Microsoft, "Hardware Watchdog Timers Design Specification", 2006).

It maps the actions of a driver to accesses of registers; those are named in vmservice/devices/watchdog.py.
"""

from __future__ import annotations

import struct

from vmservice.acpi.tables import table

# Actions
_FEED = 1
_GET_REMAINING = 4
_GET_TIMEOUT = 5
_SET_TIMEOUT = 6
_GET_RUNNING = 8
_SET_RUNNING = 9
_GET_STOPPED = 10
_SET_STOPPED = 11
_GET_STATUS = 32
_SET_STATUS = 33

# Instructions
_READ_VALUE, _READ_COUNT, _WRITE_VALUE, _WRITE_COUNT = range(4)

_ENABLED = 1 << 0
_NO_PCI = 0xFF
_HEADER = struct.Struct("<IHBBB3xIIIB3xI")
_ENTRY = struct.Struct("<BB2xBBBBQII")
_SYSTEM_IO = 1
_WIDE = 2  # the count of bytes in a count register, and also its code as an access size (ACPI 6.5 §5.2.3.2)


def wdat(
    *, control: int, status: int, feed: int, timeout: int, remaining: int, period_ms: int, count_min: int, count_max: int
) -> bytes:
    """The table for registers at these I/O ports: bit 0 of `control`, `status` and `feed`; 16 bits of the other two.

    No action sets what happens at the end of the countdown: that is for the host to say.
    """
    entries = (
        _entry(_FEED, _WRITE_VALUE, feed, 1),
        _entry(_GET_REMAINING, _READ_COUNT, remaining, size=_WIDE),
        _entry(_GET_TIMEOUT, _READ_COUNT, timeout, size=_WIDE),
        _entry(_SET_TIMEOUT, _WRITE_COUNT, timeout, size=_WIDE),
        _entry(_GET_RUNNING, _READ_VALUE, control, 1),
        _entry(_SET_RUNNING, _WRITE_VALUE, control, 1),
        _entry(_GET_STOPPED, _READ_VALUE, control, 0),
        _entry(_SET_STOPPED, _WRITE_VALUE, control, 0),
        _entry(_GET_STATUS, _READ_VALUE, status, 1),
        _entry(_SET_STATUS, _WRITE_VALUE, status, 1),
    )
    header = _HEADER.pack(
        _HEADER.size, _NO_PCI, _NO_PCI, _NO_PCI, _NO_PCI, period_ms, count_max, count_min, _ENABLED, len(entries)
    )
    return table(b"WDAT", 1, header + b"".join(entries))


def _entry(action: int, instruction: int, port: int, value: int = 0, *, size: int = 1) -> bytes:
    mask = 1 if size == 1 else 0xFFFF
    return _ENTRY.pack(action, instruction, _SYSTEM_IO, 8 * size, 0, size, port, value, mask)
