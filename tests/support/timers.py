"""Time for tests of devices: a clock that stands still until a test moves it, and the calls that become due as it does."""

from __future__ import annotations

from collections.abc import Callable


class FakeTimer:
    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class FakeTimers:
    """`now` is the clock. What is due is called by `advance`, in its order and at its time."""

    def __init__(self, now: float = 1000.0) -> None:
        self.time = now
        self._timers: list[FakeTimer] = []

    def now(self) -> float:
        return self.time

    def call_later(self, delay_sec: float, callback: Callable[[], None]) -> FakeTimer:
        assert delay_sec >= 0
        timer = FakeTimer(self.time + delay_sec, callback)
        self._timers.append(timer)
        return timer

    @property
    def pending(self) -> int:
        """How many calls are still to come."""
        self._timers = [timer for timer in self._timers if timer.callback is not None]
        return len(self._timers)

    def advance(self, seconds: float) -> None:
        end = self.time + seconds
        while self.pending:
            first = min(self._timers, key=lambda timer: timer.when)
            if first.when > end:
                break
            self.time = max(self.time, first.when)
            self._call(first)
        self.time = end

    def freeze(self, seconds: float) -> None:
        """Time passes while nobody runs; what became due is called at the end."""
        self.time += seconds
        self.advance(0)

    def _call(self, timer: FakeTimer) -> None:
        callback, timer.callback = timer.callback, None
        if callback is not None:
            callback()
