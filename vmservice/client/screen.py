"""A terminal that a table is shown on for a while, in its alternate screen, and given back as it was on every way out."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Sequence

from vmservice.host.terminal import RawTerminal

# ECMA-48, and xterm's private modes 1049 (alternate screen) and 25 (cursor).
_ENTER = b"\x1b[?1049h\x1b[?25l"
_LEAVE = b"\x1b[?25h\x1b[?1049l"
_HOME = "\x1b[H"
_END_OF_LINE = "\x1b[K"
_END_OF_SCREEN = "\x1b[J"

_KEYS_BYTES = 64
_CTRL_C = 0x03
_CTRL_Z = 0x1A
_QUIT = b"qQ"
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Screen:
    """`ended` is set by q, Ctrl-C, the terminal's end, or a signal, whose number is then `signal`. `redraw` is called when all
    has to be drawn anew. Made inside the running event loop of the main thread.

    Keys are read where `input_fd` is a terminal that this process is in the foreground of.
    """

    def __init__(self, input_fd: int, output_fd: int, redraw: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._input = input_fd
        self._output = output_fd
        self._redraw = redraw
        self._terminal = RawTerminal(input_fd)
        self._has_keys = os.isatty(input_fd)
        self._is_shown = False
        self.ended = asyncio.Event()
        self.signal = 0

    def __enter__(self) -> Screen:
        for number in _ENDING:
            self._loop.add_signal_handler(number, self._on_ending, number)
        self._loop.add_signal_handler(signal.SIGWINCH, self._on_resize)
        self._loop.add_signal_handler(signal.SIGTSTP, self._stop)
        self._loop.add_signal_handler(signal.SIGCONT, self._show)
        self._show()
        return self

    def __exit__(self, *_error: object) -> None:
        self._hide()
        for number in (*_ENDING, signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT):
            self._loop.remove_signal_handler(number)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines."""
        try:
            found = os.get_terminal_size(self._output)
        except OSError:
            return 80, 24
        return found.columns or 80, found.lines or 24

    def draw(self, lines: Sequence[str]) -> None:
        """In place of what is shown, in one write, so that nothing flickers. Not while another job has the terminal."""
        if not self._is_shown and self._has_keys and self._terminal.is_ours():
            self._show()  # which draws
        elif self._is_shown:
            shown = lines[: self.size[1]]
            self._write((_HOME + "\r\n".join(f"{line}{_END_OF_LINE}" for line in shown) + _END_OF_SCREEN).encode())

    def _show(self) -> None:
        """Again, too, when the process goes on in the foreground."""
        if self._has_keys and not self._terminal.is_ours():
            return
        if self._has_keys:
            self._terminal.enter()
            self._loop.add_reader(self._input, self._on_keys)
        self._is_shown = True
        self._write(_ENTER)
        self._redraw()

    def _hide(self) -> None:
        if not self._is_shown:
            return
        self._is_shown = False
        self._write(_LEAVE)
        if self._has_keys:
            self._loop.remove_reader(self._input)
            self._terminal.leave()

    def _stop(self) -> None:
        """As any program stops: the terminal is itself again meanwhile."""
        self._hide()
        self._loop.remove_signal_handler(signal.SIGTSTP)
        os.kill(os.getpid(), signal.SIGTSTP)
        self._loop.add_signal_handler(signal.SIGTSTP, self._stop)
        self._show()

    def _on_keys(self) -> None:
        try:
            keys = os.read(self._input, _KEYS_BYTES)
        except OSError:
            keys = b""
        if not keys or _CTRL_C in keys or any(key in _QUIT for key in keys):
            self.ended.set()
        elif _CTRL_Z in keys:
            os.kill(0, signal.SIGTSTP)  # the whole job, as the terminal does it

    def _on_ending(self, number: int) -> None:
        self.signal = number
        self.ended.set()

    def _on_resize(self) -> None:
        if self._is_shown:
            self._redraw()

    def _write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # hung up, of which SIGHUP tells
            while data:
                data = data[os.write(self._output, data) :]
