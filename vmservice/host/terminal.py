"""The terminal that a person sits at, raw while the guest has it, and given back as it was on every way out."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import termios
import time

# As systemd-nspawn has it: this key, three times within a second, is for us and not for the guest.
ESCAPE = 0x1D  # Ctrl-]
ESCAPE_PRESSES = 3
ESCAPE_WINDOW_SEC = 1.0

# Where tcgetattr(3) puts what.
_IFLAG, _OFLAG, _CFLAG, _LFLAG, _ISPEED, _OSPEED, _CC = range(7)

# Out of the way of those that the guard's own are to become.
_FIRST_SPARE_FD = 10

# The guard waits for a line; when its pipe ends without one, we are gone and it does our duty. A session of its own: neither
# signals of the terminal nor those for our process group reach it. coreutils' stty takes what `stty -g` prints.
_SHELL = "/bin/sh"
_GUARD = 'read -r _ || stty "$1" <&3'


class RawTerminal:
    """`enter` puts the terminal at `fd` into raw mode: the guest, not the host, makes Ctrl-C of Ctrl-C. Output processing stays
    on unless `raw_output`, for messages of our own that share the terminal. `leave` gives it back. Both may be called again.

    While it is raw, a small process watches over us: should we be killed, it gives the terminal back.
    """

    def __init__(self, fd: int, *, raw_output: bool = False) -> None:
        self._fd = fd
        self._raw_output = raw_output
        self._saved: list[int | list[bytes | int]] | None = None
        self._guard: _Guard | None = None

    @property
    def is_raw(self) -> bool:
        return self._saved is not None

    def is_ours(self) -> bool:
        """Whether this process may read and set the terminal: another job's would stop us with SIGTTIN or SIGTTOU.

        A pseudoterminal's controlling side is nobody's job; tcgetpgrp(3) fails for it.
        """
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:
            return False

    def enter(self) -> None:
        """Also when it is raw as far as we know: a shell that saw us stopped, by SIGSTOP say, has changed it since."""
        raw = termios.tcgetattr(self._fd)
        saved = termios.tcgetattr(self._fd) if self._saved is None else self._saved
        raw[_IFLAG] &= ~(termios.BRKINT | termios.ICRNL | termios.INLCR | termios.IGNCR | termios.ISTRIP | termios.IXON)
        if self._raw_output:
            raw[_OFLAG] &= ~termios.OPOST
        raw[_LFLAG] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        raw[_CC][termios.VMIN], raw[_CC][termios.VTIME] = 1, 0
        if self._saved is None:
            self._guard = _Guard.start(self._fd, saved)
            self._saved = saved
            atexit.register(self.leave)
        termios.tcsetattr(self._fd, termios.TCSADRAIN, raw)

    def leave(self) -> None:
        """A terminal that has meanwhile become another job's is left alone: whoever stopped us has put it right."""
        saved, self._saved = self._saved, None
        if saved is None:
            return
        atexit.unregister(self.leave)
        if self.is_ours():
            # At once: a terminal that shows nothing more (Ctrl-S) must not keep us.
            with contextlib.suppress(termios.error):  # hung up meanwhile
                termios.tcsetattr(self._fd, termios.TCSANOW, saved)
        if self._guard is not None:
            self._guard.dismiss()
            self._guard = None


class EscapeKeys:
    """The one way out that a person has by keys which otherwise all go to the guest: ESCAPE three times within a second."""

    def __init__(self) -> None:
        self._presses: list[float] = []

    def feed(self, data: bytes) -> bool:
        """Whether `data`, typed just now, ends the sequence; any other key begins it anew."""
        now = time.monotonic()
        for key in data:
            self._presses = [*self._presses, now] if key == ESCAPE else []
        self._presses = [press for press in self._presses if now - press <= ESCAPE_WINDOW_SEC]
        if len(self._presses) < ESCAPE_PRESSES:
            return False
        self._presses = []
        return True


class _Guard:
    """The process that watches over us."""

    def __init__(self, pid: int, pipe: int) -> None:
        self._pid = pid
        self._pipe = pipe

    @classmethod
    def start(cls, fd: int, saved: list[int | list[bytes | int]]) -> _Guard | None:
        """None where there is no shell to be had: it is a precaution."""
        reader, writer = os.pipe()
        spare = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, _FIRST_SPARE_FD) for one in (reader, fd)]
        os.close(reader)
        actions = [(os.POSIX_SPAWN_DUP2, spare[0], 0), (os.POSIX_SPAWN_DUP2, spare[1], 3)]
        try:
            pid = os.posix_spawn(
                _SHELL,
                ["sh", "-c", _GUARD, "vmservice: gives the terminal back", _stty(saved)],
                os.environ,
                file_actions=actions,
                setsid=True,
                setsigmask=(),
            )
        except OSError:
            os.close(writer)
            return None
        finally:
            for one in spare:
                os.close(one)
        return cls(pid, writer)

    def dismiss(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # somebody has killed it
            os.write(self._pipe, b"\n")
        os.close(self._pipe)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


def _stty(saved: list[int | list[bytes | int]]) -> str:
    """The modes as `stty -g` prints them: four flag words and the control characters, in hexadecimal."""
    words = [word for word in saved[:_ISPEED] if isinstance(word, int)]
    characters = saved[_CC]
    assert isinstance(characters, list)
    codes = [code if isinstance(code, int) else code[0] for code in characters]
    return ":".join(f"{word:x}" for word in [*words, *codes])
