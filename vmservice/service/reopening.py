"""The files of consoles, opened anew before a reload: whoever has renamed one waits for that."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmservice.host.consoles.base import Console

# A file system that hangs keeps a reload waiting for no longer.
PATIENCE_SEC = 10.0


class Reopening:
    """Begins at once, each file in its console's thread. `then` is called once, in the loop: when all is done or PATIENCE_SEC
    are over."""

    def __init__(self, consoles: Sequence[Console], then: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._left = len(consoles)
        self._then: Callable[[], None] | None = then
        self._timer = self._loop.call_later(PATIENCE_SEC, self._end)
        for console in consoles:
            console.reopen(self._tell)
        if not consoles:
            self._end()

    def _tell(self) -> None:
        """In any thread. One that is done when the loop has ended comes too late."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._one_done)

    def _one_done(self) -> None:
        self._left -= 1
        if not self._left:
            self._end()

    def _end(self) -> None:
        then, self._then = self._then, None
        self._timer.cancel()
        if then is not None:
            then()
