"""The thread that moves what guests print: the vCPUs only leave it with their console, whatever the other side does.

It does not belong to the event loop, which is imported when the guest runs already. It sleeps while there is nothing to move.
"""

from __future__ import annotations

import _thread
import os
import select
import time

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

        def add(self, console: Movable) -> None:
            """Look after `console` from now on."""

        def remove(self, console: Movable) -> None:
            """Returns when `console` is not being moved, and will not be any more."""

        def wake(self, console: Movable) -> None:
            """There is something to move at `console`; from any thread, and quick."""


class Mover:
    """One for a process. The thread is started by the first console that needs it."""

    def __init__(self) -> None:
        self._on_bug: Callable[[Exception], None] | None = None
        self._bug: Exception | None = None
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = _thread.allocate_lock()  # held while consoles are moved
        self._consoles: list[Movable] = []
        self._is_awake = False  # it will look at every console before it sleeps
        self._is_running = False
        self._is_closing = False
        self._ended = _thread.allocate_lock()

    def on_bug(self, report: Callable[[Exception], None]) -> None:
        """`report` is told, in the mover's thread or here, of the exception in a console that has ended the thread."""
        self._on_bug = report
        if self._bug is not None:
            report(self._bug)

    def add(self, console: Movable) -> None:
        with self._lock:
            self._consoles.append(console)
        self.wake(console)

    def remove(self, console: Movable) -> None:
        with self._lock:
            if console in self._consoles:
                self._consoles.remove(console)

    def wake(self, console: Movable) -> None:
        if self._is_awake:
            return
        self._is_awake = True
        if not self._is_running:
            self._start()
        os.eventfd_write(self._fd, 1)

    def close(self) -> None:
        """When every console has been removed."""
        self._is_closing = True
        if self._is_running:
            os.eventfd_write(self._fd, 1)
            self._ended.acquire()
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
            while not self._is_closing:
                poll.poll(timeout_ms)
                # Before the look: who leaves something behind it wakes us again.
                self._is_awake = False
                _drain(self._fd)
                poll, timeout_ms = self._look()
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
