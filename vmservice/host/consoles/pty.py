"""A guest's console at a pseudoterminal of its own."""

from __future__ import annotations

import ctypes
import os
import select
import struct
import time

from vmservice.errors import HostError
from vmservice.host.consoles.stream import StreamConsole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.host.consoles.base import Log
    from vmservice.host.consoles.mover import Waits, Wakes


# <sys/inotify.h>
_IN_CLOSE = 0x18
_IN_OPEN = 0x20
_EVENT = struct.Struct("iIII")  # without a name, for it is a file that is watched
_EVENTS_BYTES = 4096

# How often a person's terminal is asked for its size: the controlling side of a pseudoterminal is told of no change.
_SIZE_PERIOD_SEC = 0.5


class PtyConsole(StreamConsole):
    """A pseudoterminal of our own; `path` is what `screen` or `picocom` opens, and the log says it.

    A link to it, called `label`, is put into `directory`, where `vmservice console` looks for it.
    """

    def __init__(self, log: Log, mover: Wakes, label: str = "serial", directory: str | None = None) -> None:
        import tty

        try:
            controller, terminal = os.openpty()
        except OSError as error:
            raise HostError.from_os("cannot make a pseudoterminal for the console", error) from None
        # The terminal's side stays open, so that the controller's does not fail with EIO while nobody is connected.
        self._terminal = terminal
        tty.setraw(terminal)
        os.set_blocking(controller, False)
        self.path = os.ttyname(terminal)
        self._visitors = 0
        self._watch = -1
        super().__init__(label, mover, controller, controller)
        self._link = _put_link(f"{directory}/{label}", self.path, log) if directory else ""
        log.info(f"the {label} console is at {self.path}")
        mover.add(self)

    def follow_size(self) -> None:
        """From now on `on_resized` is told when the person who has it open changes the size of their terminal."""
        if self._watch < 0:
            self._watch = _watch_opens(self.path)
            self._mover.wake(self)

    def move(self) -> Waits:
        watches, due = super().move()
        if self._watch < 0:
            return watches, due
        self._count_visitors()
        self.look_at_size()
        return [*watches, (self._watch, select.POLLIN)], time.monotonic() + _SIZE_PERIOD_SEC if self._visitors > 0 else due

    def fds(self) -> dict[str, int]:
        return {"output": self._fd, "terminal": self._terminal}

    def details(self) -> dict[str, str | int | bool]:
        return {"mode": "pty", "path": self.path}

    def close(self) -> None:
        super().close()
        self.input_fd = -1
        for fd in (self._terminal, self._watch):
            if fd >= 0:
                os.close(fd)
        self._terminal = self._watch = -1
        link, self._link = self._link, ""
        if link and os.path.islink(link):
            os.unlink(link)

    def _count_visitors(self) -> None:
        try:
            events = os.read(self._watch, _EVENTS_BYTES)
        except BlockingIOError:
            return
        for _watch, mask, _cookie, _name in _EVENT.iter_unpack(events):
            self._visitors += bool(mask & _IN_OPEN) - bool(mask & _IN_CLOSE)


def _watch_opens(path: str) -> int:
    """A descriptor of inotify(7) that tells when somebody opens or closes `path`; -1 where the account has no more of them."""
    libc = ctypes.CDLL(None)
    fd: int = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    if fd >= 0 and libc.inotify_add_watch(fd, path.encode(), _IN_OPEN | _IN_CLOSE) < 0:
        os.close(fd)
        return -1
    return fd


def _put_link(link: str, target: str, log: Log) -> str:
    """Make `link`, in place of one of before; its path, or nothing if it cannot be."""
    try:
        if os.path.islink(link):
            os.unlink(link)
        os.symlink(target, link)
    except OSError as error:
        log.warning(f"cannot make {link}, by which `vmservice console` would find the console: {error.strerror}")
        return ""
    return link
