"""What an interactive shell does with one job, for a test that holds the other end of the terminal.

Run as the leader of a session whose terminal is standard input: shell_job.py REPORT_FD ORDER_FD COMMAND… starts COMMAND in the
foreground. Each time it stops or ends it says so on REPORT_FD ("started PID", "stopped", "ended STATUS", a line each) with the
terminal as it then is ("raw" or "cooked") behind it, and takes the terminal. On ORDER_FD a byte f or b has it go on in the
foreground or background.
"""

from __future__ import annotations

import os
import signal
import sys
import termios


def mode() -> str:
    return "cooked" if termios.tcgetattr(0)[3] & termios.ICANON else "raw"


def main() -> None:
    report, order = int(sys.argv[1]), int(sys.argv[2])

    def say(text: str) -> None:
        os.write(report, f"{text}\n".encode())

    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    pid = os.posix_spawn(sys.argv[3], sys.argv[3:], os.environ, setpgroup=0, setsigdef=[signal.SIGTTOU])
    os.tcsetpgrp(0, pid)
    say(f"started {pid}")
    while True:
        status = os.waitpid(pid, os.WUNTRACED)[1]
        if not os.WIFSTOPPED(status):
            break
        say(f"stopped {mode()}")
        os.tcsetpgrp(0, os.getpgrp())
        if os.read(order, 1) == b"f":
            os.tcsetpgrp(0, pid)
        os.killpg(pid, signal.SIGCONT)
    say(f"ended {os.waitstatus_to_exitcode(status)} {mode()}")


if __name__ == "__main__":
    main()
