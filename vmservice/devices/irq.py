"""The one thing that a device knows of interrupts: a line that it holds high or low."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class IrqLine:
    """An interrupt line; `set_level` is told of every change, and only of changes.

    A device that goes on from a state sets `level` itself: the interrupt controller's state has it already.
    """

    def __init__(self, set_level: Callable[[bool], None]) -> None:
        self._set_level = set_level
        self.level = False

    def set(self, level: bool) -> None:
        if level != self.level:
            self.level = level
            self._set_level(level)

    def pulse(self) -> None:
        """One edge, for an edge-triggered input: low, high, low."""
        self.set(False)
        self.set(True)
        self.set(False)
