"""The thread that moves what guests print: the vCPUs only leave it with their console, whatever the other side does.

It does not belong to the event loop, which is imported when the guest runs already. It sleeps while there is nothing to move.
"""

from __future__ import annotations

import _thread
import os
import select
import time

from vmservice.host.poll import wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    Waits = tuple[list[tuple[int, int]], float | None]
    """(descriptor, events of poll(2)) to be waited for, and when to look in any case, on the monotonic clock."""

    class Movable(Protocol):
        def move(self) -> Waits:
            """Move on what can be moved now, and say what is to be waited for. Called by one thread at a time, never raises."""

    class Wakes(Protocol):
        """What a console needs of a mover."""

        def apart(self, gather_sec: float = 0.0) -> Wakes:
            """One with a thread of its own, for a console whose `move` may wait for the host: others go on meanwhile. It moves
            what comes within `gather_sec` after a move at once, so that a burst does not cost a wake-up a line."""

        def add(self, console: Movable) -> None:
            """Look after `console` from now on."""

        def remove(self, console: Movable) -> bool:
            """Have `console` not moved any more. False: it is being moved still, since the host keeps it waiting."""

        def wake(self, console: Movable, *, at_once: bool = False) -> None:
            """There is something to move at `console`, or much of it; from any thread, and quick."""


# How long the end waits for a disk or terminal that does not take what is written to it.
_PATIENCE_SEC = 5.0


class Mover:
    """One for a process, and those `apart` from it. The thread is started by the first console that needs it."""

    def __init__(self, gather_sec: float = 0.0) -> None:
        self._gather_sec = gather_sec
        self._on_bug: Callable[[Exception], None] | None = None
        self._bug: Exception | None = None
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = _thread.allocate_lock()  # held while consoles are moved
        self._consoles: list[Movable] = []
        self._is_awake = False  # it will look at every console before it sleeps
        self._is_running = False
        self._is_closing = False
        self._ended = _thread.allocate_lock()
        self._others: list[Mover] = []

    def apart(self, gather_sec: float = 0.0) -> Mover:
        other = Mover(gather_sec)
        if self._on_bug is not None:
            other.on_bug(self._on_bug)
        self._others.append(other)
        return other

    def on_bug(self, report: Callable[[Exception], None]) -> None:
        """`report` is told, in the mover's thread or here, of the exception in a console that has ended the thread."""
        self._on_bug = report
        if self._bug is not None:
            report(self._bug)
        for other in self._others:
            other.on_bug(report)

    def add(self, console: Movable) -> None:
        with self._lock:
            self._consoles.append(console)
        self.wake(console)

    def remove(self, console: Movable) -> bool:
        if not self._lock.acquire(timeout=_PATIENCE_SEC):
            return False
        try:
            if console in self._consoles:
                self._consoles.remove(console)
        finally:
            self._lock.release()
        return True

    def wake(self, console: Movable, *, at_once: bool = False) -> None:
        if self._is_awake and not at_once:
            return
        self._is_awake = True
        if not self._is_running:
            self._start()
        os.eventfd_write(self._fd, 1)

    def close(self) -> None:
        """When every console has been removed. A thread that the host keeps waiting is left to the end of the process."""
        while self._others:
            self._others.pop().close()
        self._is_closing = True
        if self._is_running:
            os.eventfd_write(self._fd, 1)
            if not self._ended.acquire(timeout=_PATIENCE_SEC):
                return
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _start(self) -> None:
        with self._lock:
            if not self._is_running:
                self._is_running = True
                self._ended.acquire()
                _thread.start_new_thread(self._main, ())

    def _main(self) -> None:
        try:
            timeout_ms: float | None = 0
            poll = select.poll()
            woken = select.poll()
            woken.register(self._fd, select.POLLIN)
            looked_at = 0.0
            while not self._is_closing:
                wait(poll, timeout_ms)
                rest_sec = looked_at + self._gather_sec - time.monotonic()
                if rest_sec > 0:
                    _drain(self._fd)
                    wait(woken, rest_sec * 1000)
                # In this order, and before the look: who leaves something behind it wakes us again. One that was told that
                # we are awake before `_drain` has left it already; one that wakes us behind it is not taken back.
                _drain(self._fd)
                self._is_awake = False
                poll, timeout_ms = self._look()
                looked_at = time.monotonic()
        except Exception as error:  # a thread's top: our bug, which ends the process as soon as somebody listens
            self._bug = error
            if self._on_bug is not None:
                self._on_bug(error)
        finally:
            self._ended.release()

    def _look(self) -> tuple[select.poll, float | None]:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        due: float | None = None
        with self._lock:
            for console in self._consoles:
                watches, when = console.move()
                for fd, events in watches:
                    poll.register(fd, events)
                if when is not None:
                    due = when if due is None else min(due, when)
        return poll, None if due is None else max(0.0, (due - time.monotonic()) * 1000)


def _drain(fd: int) -> None:
    try:
        os.eventfd_read(fd)
    except BlockingIOError:
        return
