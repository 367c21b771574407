"""Movers for tests: one that moves at once, in the thread that wakes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vmservice.host.consoles.mover import Mover

if TYPE_CHECKING:
    from vmservice.host.consoles.mover import Movable


class MoveNow:
    """`move` of a console is called by whoever has left something there."""

    def add(self, console: Movable) -> None:
        """It has nothing to be waited for here."""

    def apart(self, gather_sec: float = 0.0) -> MoveNow:
        return self

    def remove(self, console: Movable) -> bool:
        """It is not moved by anybody else."""
        return True

    def wake(self, console: Movable, *, at_once: bool = False) -> None:
        console.move()


@contextmanager
def running_mover() -> Iterator[Mover]:
    """The real one; a bug in a console fails the test."""
    mover, bugs = Mover(), list[Exception]()
    mover.on_bug(bugs.append)
    try:
        yield mover
    finally:
        mover.close()
    assert bugs == []
