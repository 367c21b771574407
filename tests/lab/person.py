"""Runs in the lab's host: person.py COLUMNS ROWS WORD COMMAND… is a person who starts COMMAND in a terminal of that size.

They type WORD when they are told how to leave, leave when the guest has repeated it, and print all that was shown. Ends as
COMMAND does.
"""

from __future__ import annotations

import os
import pty
import select
import sys
import termios
import time

TIMEOUT_SEC = 60.0


def main(columns: int, rows: int, word: str, command: list[str]) -> int:
    pid, screen = pty.fork()
    if pid == 0:
        termios.tcsetwinsize(0, (rows, columns))
        os.execvp(command[0], command)
    shown = b""
    to_do = [(b"leaves it", word.encode() + b"\r"), (b"you typed " + word.encode(), b"\x1d\x1d\x1d")]
    deadline = time.monotonic() + TIMEOUT_SEC
    while time.monotonic() < deadline:
        if select.select([screen], [], [], 1.0)[0]:
            try:
                shown += os.read(screen, 4096)
            except OSError:  # the command has ended
                break
        if to_do and to_do[0][0] in shown:
            os.write(screen, to_do.pop(0)[1])
    print(shown.decode(errors="replace"))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]))
