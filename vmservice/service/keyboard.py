"""What a person types, on its way to the guest: raw from a terminal, with one way out."""

from __future__ import annotations

import asyncio
import os
import stat
import termios
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# As systemd-nspawn has it: this key, three times within a second, is for us and not for the guest.
ESCAPE = 0x1D  # Ctrl-]
ESCAPE_PRESSES = 3
ESCAPE_WINDOW_SEC = 1.0

_CHUNK_BYTES = 256

# Where tcgetattr(3) puts what.
_IFLAG, _OFLAG, _CFLAG, _LFLAG, _ISPEED, _OSPEED, _CC = range(7)


class Keyboard:
    """Reads `fd` while the event loop runs. `on_input` takes bytes and answers how many it took; `on_escape` is the way out.

    A terminal is put into raw mode by `start` and given back as it was by `close`: the guest, not the host, makes Ctrl-C of
    Ctrl-C. Output processing stays on, for our own messages share the terminal. What cannot be read (a file, /dev/null, a
    terminal that belongs to another job) is left alone.
    """

    def __init__(self, fd: int, on_input: Callable[[bytes], int], on_escape: Callable[[], None]) -> None:
        self._fd = fd
        self._on_input = on_input
        self._on_escape = on_escape
        self._saved: list[int | list[bytes | int]] | None = None
        self._reading = False
        self._waiting = b""
        self._presses: list[float] = []

    def start(self) -> None:
        if not _is_readable(self._fd):
            return
        if os.isatty(self._fd):
            if not _is_ours(self._fd):
                return
            self._make_raw()
        asyncio.get_running_loop().add_reader(self._fd, self._on_readable)
        self._reading = True

    def retry(self) -> None:
        """Offer again what the guest did not take; reading goes on when all is taken."""
        if self._waiting:
            self._waiting = self._waiting[self._on_input(self._waiting) :]
            if not self._waiting and self._reading:
                asyncio.get_running_loop().add_reader(self._fd, self._on_readable)

    def close(self) -> None:
        if self._reading:
            self._reading = False
            asyncio.get_running_loop().remove_reader(self._fd)
        if self._saved is not None:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)
            self._saved = None

    def _make_raw(self) -> None:
        self._saved = termios.tcgetattr(self._fd)
        raw = termios.tcgetattr(self._fd)
        raw[_IFLAG] &= ~(termios.BRKINT | termios.ICRNL | termios.INLCR | termios.IGNCR | termios.ISTRIP | termios.IXON)
        raw[_LFLAG] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        raw[_CC][termios.VMIN], raw[_CC][termios.VTIME] = 1, 0
        termios.tcsetattr(self._fd, termios.TCSADRAIN, raw)

    def _on_readable(self) -> None:
        try:
            data = os.read(self._fd, _CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:  # the terminal was hung up
            data = b""
        if not data:
            self._stop_reading()
            self._reading = False
            return
        self._waiting = data[self._on_input(data) :]
        if self._waiting:
            self._stop_reading()
        if self._saved is not None and self._is_escape(data):
            self._on_escape()

    def _stop_reading(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)

    def _is_escape(self, data: bytes) -> bool:
        """Whether `data` ends the sequence; any other key begins it anew."""
        now = time.monotonic()
        for key in data:
            self._presses = [*self._presses, now] if key == ESCAPE else []
        self._presses = [press for press in self._presses if now - press <= ESCAPE_WINDOW_SEC]
        if len(self._presses) < ESCAPE_PRESSES:
            return False
        self._presses = []
        return True


def _is_readable(fd: int) -> bool:
    if fd < 0:
        return False
    mode = os.fstat(fd).st_mode
    return os.isatty(fd) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _is_ours(fd: int) -> bool:
    """Whether this process may read the terminal: another job's would stop us with SIGTTIN.

    A pseudoterminal's controlling side is nobody's job; tcgetpgrp(3) fails for it.
    """
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return False
