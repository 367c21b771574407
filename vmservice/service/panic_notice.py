"""A guest that has panicked and could not say so by pvpanic: people hear of it, and nothing else is done."""

from __future__ import annotations

from vmservice.vm.panic_line import NOTICED
from vmservice.vm.state import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from vmservice.service.journal import Log
    from vmservice.vm.vm import Vm

# The driver of pvpanic speaks behind the line, after what else the kernel prints at a console as slow as a serial one.
PATIENCE_SEC = 5.0


class PanicNotice:
    """`status` is a clause for the status of the unit, or empty; `changed` is called when it is another."""

    def __init__(self, vm: Vm, log: Log, loop: asyncio.AbstractEventLoop, changed: Callable[[], None]) -> None:
        self.status = ""
        self._vm = vm
        self._log = log
        self._loop = loop
        self._changed = changed
        self._due: asyncio.TimerHandle | None = None
        vm.on_panic_line = self._on_line

    def forget(self) -> None:
        """That guest is gone, or has said itself by pvpanic that it has panicked."""
        self.status = ""
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _on_line(self, reason: str) -> None:
        if self._due is None:
            self._due = self._loop.call_later(PATIENCE_SEC, self._say, reason)

    def _say(self, reason: str) -> None:
        if self._vm.state not in (State.RUNNING, State.PAUSED):
            return
        self.status = NOTICED
        self._log.warning(
            f"the guest's console says that its kernel has panicked ({reason}); the guest has not said so by pvpanic, so"
            " service.on_panic does not apply"
        )
        self._changed()
