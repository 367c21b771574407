"""Things that are to be looked at anew, each by its name: at once, few at a time, and again later where that fails."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable

FIRST_RETRY_SEC = 1.0
LAST_RETRY_SEC = 60.0


class Looks:
    """Calls `look(names)` with those that `wanted` was called for, at most `names_a_look` each time and `most` at a time.

    A name that is wanted while it is being looked at is looked at once more. `look` returns the names to try again, later and
    later. Made inside the running event loop; `close` ends all of it.
    """

    def __init__(
        self, look: Callable[[list[str]], Awaitable[set[str]]], *, most: int, names_a_look: int, log: Callable[[str], None]
    ) -> None:
        self._look = look
        self._most = most
        self._names_a_look = names_a_look
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, None] = {}  # oldest first
        self._under_way: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._delays: dict[str, float] = {}
        self._retries: dict[str, asyncio.TimerHandle] = {}
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()

    def want(self, *names: str) -> None:
        if self._closed:
            return
        for name in names:
            retry = self._retries.pop(name, None)
            if retry is not None:
                retry.cancel()
            self._waiting[name] = None
        self._begin()

    def forget(self, name: str) -> None:
        """It is gone: there is nothing to be looked at."""
        self._waiting.pop(name, None)
        self._delays.pop(name, None)
        retry = self._retries.pop(name, None)
        if retry is not None:
            retry.cancel()

    async def settled(self, timeout_sec: float) -> None:
        """Returns when all have been looked at, or after so long."""
        try:
            async with asyncio.timeout(timeout_sec):
                await self._idle.wait()
        except TimeoutError:
            return

    async def close(self) -> None:
        self._closed = True
        self._waiting.clear()
        for retry in self._retries.values():
            retry.cancel()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _begin(self) -> None:
        while len(self._tasks) < self._most:
            names = [name for name in self._waiting if name not in self._under_way][: self._names_a_look]
            if not names:
                break
            for name in names:
                del self._waiting[name]
            self._under_way.update(names)
            task = self._loop.create_task(self._one(names))
            self._tasks.add(task)
            task.add_done_callback(self._done)
            self._idle.clear()
        if not self._tasks:
            self._idle.set()

    async def _one(self, names: list[str]) -> None:
        try:
            again = await self._look(names)
        finally:
            self._under_way.difference_update(names)
        for name in names:
            if name in again:
                self._try_later(name)
            else:
                self._delays.pop(name, None)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log("".join(traceback.format_exception(error)).rstrip())
        if not self._closed:
            self._begin()

    def _try_later(self, name: str) -> None:
        if self._closed or name in self._waiting:
            return
        delay_sec = self._delays.get(name, FIRST_RETRY_SEC)
        self._delays[name] = min(2 * delay_sec, LAST_RETRY_SEC)
        self._retries[name] = self._loop.call_later(delay_sec, self._retry, name)

    def _retry(self, name: str) -> None:
        self._retries.pop(name, None)
        self.want(name)
