"""Timers of a clock that a test moves."""

from __future__ import annotations

from collections.abc import Callable

from vmservice.board.timers import Timer


class Clock:
    """`call_later` as `vmservice.board.timers.Timers` has it; the calls are made by `advance`."""

    def __init__(self) -> None:
        self.now = 0.0
        self._timers: list[Timer] = []

    def call_later(self, delay_sec: float, callback: Callable[[], None]) -> Timer:
        self._timers.append(Timer(self.now + delay_sec, callback))
        return self._timers[-1]

    def advance(self, seconds: float) -> None:
        """Time passes; what is due by then is called, earliest first."""
        self.now += seconds
        due = [timer for timer in self._timers if timer.when <= self.now]
        self._timers = [timer for timer in self._timers if timer.when > self.now]
        for timer in sorted(due, key=lambda timer: timer.when):
            timer.run()

    @property
    def pending(self) -> int:
        return sum(timer.is_pending for timer in self._timers)
