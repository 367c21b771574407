"""Ctrl-C in a command: it ends the work between two steps of the event loop, and never within one."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine
from typing import TypeVar

T = TypeVar("T")


def run(work: Coroutine[None, None, T]) -> T:
    """As asyncio.run, which cancels the work wherever the signal finds it: also between a look at a future and its result.

    Raises KeyboardInterrupt, which the command line has an exit status for. As there, signals are the main thread's.
    """

    async def interruptible() -> T:
        task = asyncio.current_task()
        assert task is not None
        if threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, task.cancel)
        return await work

    try:
        return asyncio.run(interruptible())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
