"""How far a long copy has come: a line that is drawn anew on a terminal, else a line now and then."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TextIO

_REDRAW_SEC = 0.1
_LINE_SEC = 5.0
_BAR_CELLS = 24
# A rate over less than this says nothing.
_RATE_SEC = 0.3


class Progress:
    """`total` in bytes. `at` may be called as often as one likes."""

    def __init__(
        self, what: str, total: int, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._what = what
        self._total = max(total, 1)
        self._stream = sys.stderr if stream is None else stream
        self._is_terminal = self._stream.isatty()
        self._clock = clock
        self._began = self._said = clock()

    def at(self, done: int) -> None:
        """`done` bytes of the total are copied."""
        now = self._clock()
        if now - self._said >= (_REDRAW_SEC if self._is_terminal else _LINE_SEC):
            self._said = now
            self._say(self._line(done, now - self._began))

    def end(self) -> None:
        """All is copied."""
        seconds = self._clock() - self._began
        rate = f", {human(self._total / seconds)}/s" if seconds >= _RATE_SEC else ""
        self._say(f"{self._what}: {human(self._total)} in {seconds:.1f} s{rate}")
        if self._is_terminal:
            print(file=self._stream, flush=True)

    def abandon(self) -> None:
        """It comes to nothing: the next line begins at the left."""
        if self._is_terminal:
            print(file=self._stream, flush=True)

    def _line(self, done: int, seconds: float) -> str:
        share = min(done / self._total, 1.0)
        full = int(share * _BAR_CELLS)
        bar = f" [{'#' * full}{'.' * (_BAR_CELLS - full)}]" if self._is_terminal else ""
        text = f"{self._what}: {share:4.0%}{bar} {human(done)} of {human(self._total)}"
        if seconds >= _RATE_SEC and done:
            rate = done / seconds
            text += f", {human(rate)}/s, {_time((self._total - done) / rate)} left"
        return text

    def _say(self, text: str) -> None:
        if not self._is_terminal:
            print(text, file=self._stream, flush=True)
            return
        try:
            columns = os.get_terminal_size(self._stream.fileno()).columns
        except (OSError, ValueError):
            columns = 80
        # To the left, the text, and nothing of what was there before.
        print(f"\r{text[: max(columns - 1, 1)]}\x1b[K", end="", file=self._stream, flush=True)


def human(size: float) -> str:
    """Bytes for people: "1.5 GiB"."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if size >= 100 else f"{f'{size:.1f}'.removesuffix('.0')} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
