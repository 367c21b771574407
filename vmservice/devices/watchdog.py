"""A hardware watchdog: a countdown that the guest starts and feeds, described to it by the ACPI table WDAT (acpi/wdat.py).

It is off until the guest starts it. Time is the host's, from a clock that stands still while the host sleeps; what passes while
the VM is paused does not count, nor what passes while its process is frozen.
"""

from __future__ import annotations

import time

from vmservice.devices.state import DeviceState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.devices.timer import CallLater, Timer

# Registers, by offset.
CONTROL = 0  # u8: RUNNING
STATUS = 1  # u8: FIRED; writing the bit clears it
FEED = 2  # u8: writing FEED_VALUE starts the countdown again; reads 0
TIMEOUT = 4  # u16: periods from a feed to the end, taken at the next feed or start
REMAINING = 6  # u16, read only: periods that are left, 0 while it is off
LENGTH = 8

RUNNING = 0x01
FIRED = 0x01
FEED_VALUE = 0x01

PERIOD_MS = 100
COUNT_MIN = 1
COUNT_MAX = 0xFFFF
_COUNT_RESET = 300  # 30 seconds
_PERIOD_SEC = PERIOD_MS / 1000

# The last part of a countdown, half of it at most, begins when somebody is seen to run: a guest that was frozen with its VMM,
# and thawed a moment before the end, has so long to feed.
_LAST_SEC = 1.0
# Timers may come so much too early by our own reckoning.
_CLOCK_SEC = 0.001
# A timer that comes so late was set by a process that was frozen meanwhile.
_FROZEN_SEC = 1.0


class WatchdogState(DeviceState):
    """`fired`: the guest before this one was ended by the watchdog, and nobody has cleared that yet.

    `remaining_sec` is true while the watchdog is stopped; while it counts, it is what was left when it was last looked at.
    """

    __slots__ = ("fired", "remaining_sec", "running", "timeout")

    def __init__(self, *, fired: bool = False) -> None:
        self.running = False
        self.fired = fired
        self.timeout = _COUNT_RESET
        self.remaining_sec = 0.0


class Watchdog:
    """`on_expired` is called when the guest has not fed in time; it counts again then. `now` is a clock in seconds.

    Between `start` and `stop` the guest runs, and only then time passes.
    """

    def __init__(
        self,
        call_later: CallLater,
        on_expired: Callable[[], None],
        state: WatchdogState | None = None,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state = state or WatchdogState()
        self._call_later = call_later
        self._on_expired = on_expired
        self._now = now
        self._counts = False
        self._seen_sec = 0.0  # when `remaining_sec` was true
        self._timer: Timer | None = None
        self._due_sec = 0.0
        self._is_last = False  # the timer is that of the last part

    # The host's side

    def start(self) -> None:
        """The guest runs from now on."""
        self._counts = True
        self._seen_sec = self._now()
        self._expect()

    def stop(self) -> None:
        """The guest is paused: what is left is kept."""
        self.state.remaining_sec = self._remaining_sec()
        self._counts = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # The guest's side

    def read(self, offset: int, size: int) -> bytes:
        state = self.state
        left = -int(-self._remaining_sec() // _PERIOD_SEC) if state.running else 0
        registers = bytes((state.running, state.fired, 0, 0))
        registers += state.timeout.to_bytes(2, "little") + min(left, COUNT_MAX).to_bytes(2, "little")
        return registers[offset : offset + size].ljust(size, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        """One register at a time, in its own width; all else does nothing."""
        if len(data) == 2 and offset == TIMEOUT:
            self.state.timeout = max(int.from_bytes(data, "little"), COUNT_MIN)
        elif len(data) == 1:
            self._write_byte(offset, data[0])

    def _write_byte(self, offset: int, value: int) -> None:
        state = self.state
        if offset == CONTROL:
            starts = bool(value & RUNNING) and not state.running
            state.running = bool(value & RUNNING)
            if starts:
                self._reload()
                self._expect()
        elif offset == STATUS and value & FIRED:
            state.fired = False
        elif offset == FEED and value == FEED_VALUE and state.running:
            self._reload()

    # The countdown

    def _reload(self) -> None:
        self._set_remaining(self.state.timeout * _PERIOD_SEC)

    def _set_remaining(self, seconds: float) -> None:
        self._seen_sec = self._now()
        self.state.remaining_sec = seconds

    def _remaining_sec(self) -> float:
        passed = max(self._now() - self._seen_sec, 0.0) if self._counts and self.state.running else 0.0
        return max(self.state.remaining_sec - passed, 0.0)

    def _last_sec(self) -> float:
        return min(_LAST_SEC, self.state.timeout * _PERIOD_SEC / 2)

    def _expect(self) -> None:
        """One timer at a time, which a feed leaves alone: it finds out by itself that it came too early."""
        if self._counts and self.state.running and self._timer is None:
            self._is_last = False
            self._arm(self._remaining_sec() - self._last_sec())

    def _arm(self, delay_sec: float) -> None:
        delay_sec = max(delay_sec, 0.0)
        self._due_sec = self._now() + delay_sec
        self._timer = self._call_later(delay_sec, self._due)

    def _due(self) -> None:
        self._timer = None
        if not (self._counts and self.state.running):
            return
        if self._now() - self._due_sec > _FROZEN_SEC:
            self._reload()
        last_sec = self._last_sec()
        left_sec = self._remaining_sec()
        if left_sec > last_sec + _CLOCK_SEC:
            self._expect()
        elif not self._is_last:
            self._set_remaining(last_sec)
            self._is_last = True
            self._arm(last_sec)
        elif left_sec > _CLOCK_SEC:
            self._arm(left_sec)
        else:
            self.state.fired = True
            self._reload()
            self._expect()
            self._on_expired()
