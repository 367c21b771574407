"""Calls that are due later, for a process that sleeps until the first of them.

There are few at a time, a handful for each device, so they are kept in a plain list.
"""

from __future__ import annotations

import _thread
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Timer:
    """One call that is due at `when`, on the clock of its `Timers`. After `cancel` it is not made."""

    __slots__ = ("_callback", "when")

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self._callback: Callable[[], None] | None = callback

    @property
    def is_pending(self) -> bool:
        return self._callback is not None

    def cancel(self) -> None:
        self._callback = None

    def run(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()


class Timers:
    """Any thread may ask for a call; they are made in the thread that calls `run_due`, the event loop's.

    `fd` is readable when somebody has asked for an earlier call than that thread knows of: it then calls `run_due` again.
    `clock` is in seconds and stands still while the host sleeps, as CLOCK_MONOTONIC does.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = _thread.allocate_lock()
        self._timers: list[Timer] = []
        self._woken = False
        self._known: float | None = None  # when the next call of `run_due` is due, as far as its thread knows

    def call_later(self, delay_sec: float, callback: Callable[[], None]) -> Timer:
        return self.call_at(self.clock() + delay_sec, callback)

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Have `callback` called at `when` or soon after. It may ask for further calls."""
        timer = Timer(when, callback)
        with self._lock:
            self._timers.append(timer)
            if self._known is None or when < self._known:
                self._known = when
                self._wake()
        return timer

    def run_due(self) -> float | None:
        """Make the calls that are due, earliest first; when the next one is, or None when there is none."""
        now = self.clock()
        with self._lock:
            self._clear_wake()
            pending = [timer for timer in self._timers if timer.is_pending]
            due = [timer for timer in pending if timer.when <= now]
            self._timers = [timer for timer in pending if timer.when > now]
        for timer in sorted(due, key=lambda timer: timer.when):
            timer.run()
        with self._lock:
            self._known = min((timer.when for timer in self._timers if timer.is_pending), default=None)
            return self._known

    def _wake(self) -> None:
        if not self._woken and self.fd >= 0:
            self._woken = True
            os.eventfd_write(self.fd, 1)

    def _clear_wake(self) -> None:
        if self._woken:
            self._woken = False
            os.eventfd_read(self.fd)

    def close(self) -> None:
        """No call is made any more."""
        with self._lock:
            self._timers = []
            fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
