"""Runs in the lab's host: typist.py NAME TIMEOUT COMMAND… is a person who joins `vmservice console NAME` and types commands
into the guest's shell there, each when the prompt of bash has come, and leaves.

Prints what the terminal showed. Ends with 1 if that took longer than TIMEOUT seconds in all, or the VM went away; otherwise as
the first command did that failed, of those behind one that has put $? into the prompt.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import sys
import termios
import time

COLUMNS, ROWS = 160, 50
STATUS_PROMPT = "PS1='[$?]# '"
PROMPT = re.compile(r"(?:root@\w+:\S+|\[(\d+)\])# $")
LEAVE = b"\x1d\x1d\x1d"
# A getty that starts throws away what was typed before: a new line now and then brings the prompt. There may be one more of it
# then, so what follows is waited for.
_PROD_SEC = 8.0
_QUIET_SEC = 2.0


class Typist:
    """At the terminal `screen`, where the console is."""

    def __init__(self, screen: int, deadline: float) -> None:
        self._screen = screen
        self._deadline = deadline
        self._shown = ""

    def wait_shell(self) -> None:
        """Until there is a prompt, and quiet."""
        while not PROMPT.search(self._shown):
            if not self._read(_PROD_SEC):
                self.type(b"\r")
        while self._read(_QUIET_SEC):
            pass

    def wait_prompt(self) -> int:
        """Until what was typed last is done; the status that the prompt tells."""
        while not (found := PROMPT.search(self._shown)):
            self._read(_PROD_SEC)
        return int(found[1] or 0)

    def type(self, keys: bytes) -> None:
        self._shown = ""
        os.write(self._screen, keys)

    def read_on(self) -> None:
        """Until the command that holds the terminal has ended."""
        with contextlib.suppress(OSError):
            while self._read(_QUIET_SEC):
                pass

    def _read(self, quiet_sec: float) -> bool:
        """Shows what comes next; False if nothing does for so long."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if not select.select([self._screen], [], [], min(left, quiet_sec))[0]:
            return False
        text = os.read(self._screen, 65536).decode(errors="replace").replace("\r\n", "\n").replace("\r", "")
        print(text, end="", flush=True)
        self._shown += text
        return True


def main(name: str, timeout_sec: float, commands: list[str]) -> int:
    pid, screen = pty.fork()
    if pid == 0:
        os.execvp("vmservice", ["vmservice", "console", name])
    termios.tcsetwinsize(screen, (ROWS, COLUMNS))
    typist = Typist(screen, time.monotonic() + timeout_sec)
    try:
        typist.wait_shell()
        status = 0
        for command in commands:
            typist.type(command.encode() + b"\r")
            status = typist.wait_prompt()
            if status != 0:
                break
    except (OSError, TimeoutError):
        status = 1
    with contextlib.suppress(OSError):
        typist.type(LEAVE)
    typist.read_on()
    os.waitpid(pid, 0)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2]), sys.argv[3:]))
