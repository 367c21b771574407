"""Runs on the host under test: journal_wait.py UNIT PATTERN TIMEOUT waits for a line in the journal.

It follows the unit's present invocation and prints what it reads. It ends with 0 at the first line in which the regular
expression finds something, with 1 when the seconds are over.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading


def main(unit: str, pattern: str, timeout_sec: float) -> int:
    invocation = subprocess.run(
        ["systemctl", "show", "--property=InvocationID", "--value", unit], check=True, capture_output=True, text=True
    ).stdout.strip()
    # What systemd itself says of the unit carries the id in another field.
    matches = [f"_SYSTEMD_INVOCATION_ID={invocation}", "+", f"INVOCATION_ID={invocation}"]
    command = ["journalctl", "--follow", "--lines=all", "--output=cat", *matches]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as journal:
        assert journal.stdout is not None
        clock = threading.Timer(timeout_sec, journal.kill)
        clock.daemon = True
        clock.start()
        try:
            for line in journal.stdout:
                print(line, end="", flush=True)
                if re.search(pattern, line):
                    return 0
        finally:
            clock.cancel()
            journal.kill()
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
