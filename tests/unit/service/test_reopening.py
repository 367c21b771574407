"""Files of consoles before a reload: it waits for all of them, and for a file system that hangs no longer than it must."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from vmservice.host.consoles.base import NullConsole
from vmservice.service import reopening
from vmservice.service.reopening import Reopening

TIMEOUT_SEC = 20.0


class Slow(NullConsole):
    """Its file is opened when it is told to."""

    done: Callable[[], None]

    def reopen(self, done: Callable[[], None]) -> None:
        self.done = done


def test_it_waits_for_all_and_each_may_be_done_in_another_thread() -> None:
    async def run() -> None:
        ended = asyncio.Event()
        first, second = Slow("serial"), Slow("hvc")
        Reopening([first, NullConsole("port"), second], ended.set)
        for console in (first, second):
            assert not ended.is_set()
            thread = threading.Thread(target=console.done)
            thread.start()
            await asyncio.to_thread(thread.join)
        await asyncio.wait_for(ended.wait(), TIMEOUT_SEC)

    asyncio.run(run())


def test_without_a_console_nothing_is_waited_for() -> None:
    async def run() -> None:
        told: list[str] = []
        Reopening([], lambda: told.append("done"))
        assert told == ["done"]

    asyncio.run(run())


def test_a_file_system_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it says later is no second end."""
    monkeypatch.setattr(reopening, "PATIENCE_SEC", 0.01)
    told: list[str] = []
    hung = Slow("serial")

    async def run() -> None:
        ended = asyncio.Event()

        def end() -> None:
            told.append("done")
            ended.set()

        Reopening([hung], end)
        await asyncio.wait_for(ended.wait(), TIMEOUT_SEC)
        hung.done()
        await asyncio.sleep(0)

    asyncio.run(run())
    hung.done()  # the loop is gone
    assert told == ["done"]
