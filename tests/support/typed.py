"""A person at a terminal: runs a command in a pseudoterminal of its own, answers each prompt, and shows what was to be seen.

    typed.py PROMPT ANSWER COMMAND…

Its exit status is the command's; 99 where it takes more than a minute.
"""

from __future__ import annotations

import os
import pty
import select
import sys
import termios
import time

prompt, answer, *command = sys.argv[1:]
pid, terminal = pty.fork()
if pid == 0:
    os.execvp(command[0], command)
seen, answered, deadline = b"", 0, time.monotonic() + 60
while select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0]:
    try:
        data = os.read(terminal, 4096)
    except OSError:  # nobody has the other end any more
        break
    if not data:
        break
    seen += data
    if seen.count(prompt.encode()) > answered:
        answered += 1
        while termios.tcgetattr(terminal)[3] & termios.ECHO and time.monotonic() < deadline:
            time.sleep(0.01)  # who asks throws away what was typed before the echo was off
        os.write(terminal, answer.encode() + b"\n")
else:
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    print(seen.decode(errors="replace"), "\nnothing more came")
    sys.exit(99)
print(seen.decode(errors="replace"), end="")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
