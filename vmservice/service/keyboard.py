"""What a person types, on its way to the guest: raw from a terminal, with one way out."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import stat
import threading
from functools import partial
from typing import TYPE_CHECKING

from vmservice.host.terminal import EscapeKeys, RawTerminal

if TYPE_CHECKING:
    from collections.abc import Callable

_CHUNK_BYTES = 256

_TIOCGPTN = 0x80045430  # <asm-generic/ioctls.h>


class Keyboard:
    """Reads `fd` while the event loop runs. `on_input` takes bytes and answers how many it took; `on_escape` is the way out.
    `read` answers up to so many bytes when `fd` is readable; os.read(fd, …) unless given. With `took`, `read` only looks, and
    `took` is told how many bytes the guest took, and at which `visit`: the rest stays where it is. `visit` answers another
    number for each client that comes: what one has typed, and the guest not taken, is nothing of the next one's, and `forget`
    has it forgotten where it waits for the guest.

    A terminal is raw from `start` to `close`, but not while the process is stopped (SIGTSTP) or another job has the terminal;
    SIGCONT has us look again. The controlling side of a pseudoterminal is read as a pipe is. What cannot be read (a file,
    /dev/null, a terminal that belongs to another job) is left alone.
    """

    def __init__(
        self,
        fd: int,
        on_input: Callable[[bytes], int],
        on_escape: Callable[[], None],
        read: Callable[[int], bytes] | None = None,
        *,
        took: Callable[[int, int], None] | None = None,
        visit: Callable[[], int] | None = None,
        forget: Callable[[], None] | None = None,
    ) -> None:
        self._fd = fd
        self._read_some = read if read is not None else partial(os.read, fd)
        self._on_input = on_input
        self._on_escape = on_escape
        self._terminal: RawTerminal | None = None
        self._reading = False
        self._took = took
        self._waiting = b""  # what was read and the guest has not taken
        self._is_held = False  # read no more until the guest has room
        self._keys = EscapeKeys()
        self._visit_now = visit if visit is not None else lambda: 0
        self._visit = self._visit_now()
        self._forget = forget if forget is not None else lambda: None

    def start(self) -> None:
        if not _is_readable(self._fd):
            return
        if not os.isatty(self._fd) or _is_controller(self._fd):
            self._read()
            return
        self._terminal = RawTerminal(self._fd)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTSTP, self._on_stop)
        loop.add_signal_handler(signal.SIGCONT, self._take_terminal)
        self._take_terminal()

    def retry(self) -> None:
        """The guest has room again, or may have: offer it what it did not take. Reading goes on when all is taken."""
        if self._waiting:
            self._waiting = self._waiting[self._on_input(self._waiting) :]
        if not self._waiting:
            self._read_on()

    def look_at_visit(self) -> None:
        """Somebody may have come: nothing of what the last one typed is left, and the guest may take of this one's."""
        if self._follow_visit(self._visit_now()):
            self._read_on()

    def close(self) -> None:
        self._leave()
        if self._terminal is not None:
            self._terminal = None
            for number in (signal.SIGTSTP, signal.SIGCONT):
                asyncio.get_running_loop().remove_signal_handler(number)

    def _take_terminal(self) -> None:
        """The terminal for the guest, if it is ours now; else for the job that has it."""
        if self._terminal is None:
            return
        if self._terminal.is_ours():
            self._terminal.enter()
            self._read()
        else:
            self._leave()

    def _on_stop(self) -> None:
        """SIGTSTP: stop as any program does, but not before the terminal is itself again.

        The default action for a signal that a thread sends to itself is carried out before the call returns.
        """
        self._leave()
        loop = asyncio.get_running_loop()
        loop.remove_signal_handler(signal.SIGTSTP)  # which restores the default
        signal.pthread_kill(threading.get_ident(), signal.SIGTSTP)
        loop.add_signal_handler(signal.SIGTSTP, self._on_stop)
        self._take_terminal()

    def _read(self) -> None:
        self._reading = True
        if not self._is_held:
            asyncio.get_running_loop().add_reader(self._fd, self._on_readable)

    def _leave(self) -> None:
        """Read no more, and give the terminal back."""
        if self._reading:
            self._reading = False
            asyncio.get_running_loop().remove_reader(self._fd)
        if self._terminal is not None:
            self._terminal.leave()

    def _on_readable(self) -> None:
        visit = self._visit_now()
        try:
            data = self._read_some(_CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:  # the terminal was hung up
            data = b""
        if not data:
            self._stop_reading()
            self._reading = False
            return
        if self._visit_now() != visit:  # the mover has let somebody in meanwhile: it is not known whose it is, nor taken
            return
        self._follow_visit(visit)
        self._offer(data, visit)
        if self._terminal is not None and self._keys.feed(data):
            self._on_escape()

    def _offer(self, data: bytes, visit: int) -> None:
        taken = self._on_input(data)
        if self._took is not None:
            self._took(taken, visit)
        else:
            self._waiting = data[taken:]
        if taken < len(data):
            self._is_held = True
            self._stop_reading()

    def _follow_visit(self, visit: int) -> bool:
        """Whether it is another client than before; then what waits of the last one's is gone."""
        if visit == self._visit:
            return False
        self._visit = visit
        self._waiting = b""
        self._forget()
        return True

    def _read_on(self) -> None:
        if self._is_held:
            self._is_held = False
            if self._reading:
                asyncio.get_running_loop().add_reader(self._fd, self._on_readable)

    def _stop_reading(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)


def _is_controller(fd: int) -> bool:
    """Whether it is the controlling side of a pseudoterminal, which looks like a terminal too."""
    try:
        fcntl.ioctl(fd, _TIOCGPTN, bytes(4))
    except OSError:
        return False
    return True


def _is_readable(fd: int) -> bool:
    if fd < 0:
        return False
    mode = os.fstat(fd).st_mode
    # No type at all has what watches several others (epoll).
    return os.isatty(fd) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or not stat.S_IFMT(mode)
