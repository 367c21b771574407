"""A hardware watchdog: a countdown that the guest starts and feeds, described to it by the ACPI table WDAT (acpi/wdat.py).

It is off until the guest starts it. Time is the host's, from a clock that stands still while the host sleeps, looked at when
`tick` is called; what passes while the VM is paused, or while its process is frozen, does not count.
"""

from __future__ import annotations

from vmservice.devices.state import DeviceState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

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

# Ticks come several times a second. After a longer gap nobody ran: the process was frozen, and the guest with it.
_GAP_MAX_SEC = 1.0


class WatchdogState(DeviceState):
    """`fired`: the guest before this one was ended by the watchdog, and nobody has cleared that yet."""

    __slots__ = ("fired", "remaining_sec", "running", "timeout")

    def __init__(self, *, fired: bool = False) -> None:
        self.running = False
        self.fired = fired
        self.timeout = _COUNT_RESET
        self.remaining_sec = 0.0


class Watchdog:
    """`now` is a clock in seconds; `on_expired` is called when the guest has not fed in time; it counts again then."""

    def __init__(self, now: Callable[[], float], on_expired: Callable[[], None], state: WatchdogState | None = None) -> None:
        self.state = state or WatchdogState()
        self._now = now
        self._on_expired = on_expired
        self._seen_sec = now()

    # The host's side

    def tick(self) -> None:
        """Count what has passed since the last tick; called several times a second while the guest may run."""
        state, before, self._seen_sec = self.state, self._seen_sec, self._now()
        if not state.running:
            return
        state.remaining_sec -= min(max(self._seen_sec - before, 0.0), _GAP_MAX_SEC)
        if state.remaining_sec <= 0:
            state.fired = True
            self._reload()
            self._on_expired()

    def skip(self) -> None:
        """What has passed since the last tick does not count: the guest was paused."""
        self._seen_sec = self._now()

    # The guest's side

    def read(self, offset: int, size: int) -> bytes:
        state = self.state
        left = -int(-state.remaining_sec // _PERIOD_SEC) if state.running else 0
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
        elif offset == STATUS and value & FIRED:
            state.fired = False
        elif offset == FEED and value == FEED_VALUE and state.running:
            self._reload()

    def _reload(self) -> None:
        self._seen_sec = self._now()
        self.state.remaining_sec = self.state.timeout * _PERIOD_SEC
