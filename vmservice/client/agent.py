"""The question for a password, as systemctl asks it: pkttyagent(1), at the terminal of the person who runs the command.

polkit's own programs do the asking; no password comes near this process. The agent answers for this process alone, and only
where no agent of a desktop session does (`--fallback`).
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from signal import SIGCONT, SIGTERM

PROGRAM = "pkttyagent"
# polkit may have to be started first.
_BEGIN_TIMEOUT_SEC = 30.0
_END_TIMEOUT_SEC = 5.0
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class PasswordAgent:
    """Nobody asks before `begin`, and nobody at all unless `allowed`. Made inside the running event loop."""

    def __init__(self, *, allowed: bool) -> None:
        self.allowed = allowed
        # The terminal has room for one question at a time, and pkttyagent refuses a second one.
        self.turn = asyncio.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    async def begin(self) -> None:
        """Returns when polkit knows the agent, or there can be none: nobody sits at a terminal, or there is no pkttyagent.

        Then it is for an agent of the desktop to ask, if there is one.
        """
        if self._process is not None or not self.allowed or os.geteuid() == 0:
            return
        try:
            terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return
        try:
            if os.isatty(0) and os.tcgetpgrp(terminal) == os.getpgrp():
                await self._begin(terminal)
        finally:
            os.close(terminal)

    async def _begin(self, terminal: int) -> None:
        reader, writer = os.pipe()
        try:
            try:
                self._process = subprocess.Popen(
                    [PROGRAM, "--process", str(os.getpid()), "--notify-fd", str(writer), "--fallback"],
                    stdin=terminal,
                    stdout=terminal,
                    stderr=terminal,
                    pass_fds=(writer,),
                    preexec_fn=_ender(),  # noqa: PLW1509 - this process has one thread
                )
            except OSError:
                return
            finally:
                os.close(writer)
            with suppress(TimeoutError):
                async with asyncio.timeout(_BEGIN_TIMEOUT_SEC):
                    await _readable(reader)  # its end: the agent has closed it, or has failed and said why
        finally:
            os.close(reader)

    def end(self) -> None:
        """On every way out. An agent that is in the middle of a question gives the terminal its echo back."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(SIGTERM)
        process.send_signal(SIGCONT)
        try:
            process.wait(_END_TIMEOUT_SEC)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ender() -> Callable[[], None]:
    """What a child does first, so that it never outlives this process, whatever ends it."""
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def end_with_parent() -> None:
        prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(SIGTERM))
        if os.getppid() != parent:
            os._exit(1)

    return end_with_parent


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
