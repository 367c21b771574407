"""Warnings of what a guest does, which it may do over and over: one at a time, so that it fills no journal."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

INTERVAL_SEC = 60.0


class LimitedWarnings:
    """Called with a sentence, it hands it to `warn`, or only counts it when the last one was less than INTERVAL_SEC ago.

    The next one that is said has the count. Each caller holds the same lock.
    """

    __slots__ = ("_clock", "_held_back", "_next_at", "_warn")

    def __init__(self, warn: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._warn = warn
        self._clock = clock
        self._next_at = clock()
        self._held_back = 0

    def __call__(self, text: str) -> None:
        now = self._clock()
        if now < self._next_at:
            self._held_back += 1
            return
        more = f" ({self._held_back} more like it since the last warning)" if self._held_back else ""
        self._next_at, self._held_back = now + INTERVAL_SEC, 0
        self._warn(text + more)
