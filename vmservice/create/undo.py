"""Work that is either done or leaves nothing, whatever ends it: an error, Ctrl-C, a signal."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """Somebody has ended the program. Nothing but the top of a command catches it."""


class Undo:
    """A list of steps back. What comes out of the `with` block by an exception takes them, the last one first."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], None]] = []

    def add(self, step: Callable[[], None]) -> None:
        """Add one before what it takes back is begun: it has to work out itself how far that has come."""
        self._steps.append(step)

    def keep(self) -> None:
        """All is done: nothing is taken back any more."""
        self._steps.clear()

    def __enter__(self) -> Undo:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        before = [(number, signal.signal(number, signal.SIG_IGN)) for number in _SIGNALS]
        try:
            while self._steps:
                with contextlib.suppress(OSError):
                    self._steps.pop()()
        finally:
            for number, handler in before:
                signal.signal(number, handler)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP are an `Interrupted` in here; a second one does not end what the first has begun."""

    is_first = True

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal is_first
        if is_first:
            is_first = False
            raise Interrupted

    before = [(number, signal.signal(number, interrupt)) for number in _SIGNALS]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


@contextlib.contextmanager
def unmoved_by_ctrl_c() -> Iterator[None]:
    """While another program has the terminal, to which Ctrl-C is a key: it is a signal to us all the same."""
    # A handler, and not SIG_IGN, which the program would inherit.
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
