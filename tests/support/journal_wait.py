"""Runs on the host under test: journal_wait.py UNIT PATTERN TIMEOUT waits for a line in the journal.

It follows the unit's present invocation and prints what it reads. It ends with 0 at the first line in which the regular
expression finds something, with 1 when the seconds are over.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time

# A follower that is told nothing for so long is replaced: on an emulated host journalctl may miss that there is more.
_FOLLOWER_SEC = 15.0


def main(unit: str, pattern: str, timeout_sec: float) -> int:
    deadline = time.monotonic() + timeout_sec
    invocation = subprocess.run(
        ["systemctl", "show", "--property=InvocationID", "--value", unit], check=True, capture_output=True, text=True
    ).stdout.strip()
    shown = 0
    while (left := deadline - time.monotonic()) > 0:
        shown, found = _follow(invocation, pattern, min(left, _FOLLOWER_SEC), shown)
        if found:
            return 0
    return 1


def _follow(invocation: str, pattern: str, timeout_sec: float, shown: int) -> tuple[int, bool]:
    """Prints the lines from number `shown` on; how many there are, and whether the last one is what was waited for."""
    # What systemd itself says of the unit carries the id in another field.
    matches = [f"_SYSTEMD_INVOCATION_ID={invocation}", "+", f"INVOCATION_ID={invocation}"]
    command = ["journalctl", "--follow", "--lines=all", "--output=cat", *matches]
    count = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as journal:
        assert journal.stdout is not None
        clock = threading.Timer(timeout_sec, journal.kill)
        clock.daemon = True
        clock.start()
        try:
            for line in journal.stdout:
                count += 1
                if count <= shown:
                    continue
                print(line, end="", flush=True)
                if re.search(pattern, line):
                    return count, True
        finally:
            clock.cancel()
            journal.kill()
    return count, False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
