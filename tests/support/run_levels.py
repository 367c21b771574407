"""Runs levels of the tests, in processes of pytest: `run_levels.py LEVEL… [-- PYTEST OPTION…]`.

The fast levels and the system level go side by side, each in two processes: they wait for most of their time. What the system
level says comes behind what the fast levels say. The lab has the machine for itself, for two emulated hosts of one processor
each: its tests have limits.
The status is 0 if all of them passed, else that of the first that did not.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).parents[1]
ASIDE, ALONE = "system", "lab"
# Containers of Debian 13, and those of Debian 12 and with Cockpit: a test's name has what it runs in.
HALVES = (["-k", "not (bookworm or cockpit)"], ["-k", "bookworm or cockpit"])
# pytest-xdist: a file, and in the lab a test, goes to whichever of two processes is free.
FAST_IN_TWO = ["--numprocesses=2", "--dist=loadfile"]
LAB_IN_TWO = ["--numprocesses=2", "--dist=load", "--maxschedchunk=1"]


def command(levels: Sequence[str], options: Sequence[str]) -> list[str]:
    run = [sys.executable, str(TESTS / "support/environment.py"), "-m", "pytest", "-p", "tests.support.skips"]
    return [*run, *(str(TESTS / level) for level in levels), *options]


def run(levels: Sequence[str], options: Sequence[str]) -> int:
    fast = [level for level in levels if level not in (ASIDE, ALONE)]
    statuses = []
    with contextlib.ExitStack() as said:
        aside = []
        if ASIDE in levels:
            for half in HALVES:
                output = said.enter_context(tempfile.TemporaryFile())
                aside.append((subprocess.Popen(command([ASIDE], [*half, *options]), stdout=output, stderr=output), output))
        if fast:
            statuses.append(subprocess.run(command(fast, [*FAST_IN_TWO, *options]), check=False).returncode)
        for process, output in aside:
            statuses.append(process.wait())
            output.seek(0)
            sys.stdout.buffer.write(output.read())
            sys.stdout.flush()
    if ALONE in levels:
        statuses.append(subprocess.run(command([ALONE], [*LAB_IN_TWO, *options]), check=False).returncode)
    return next((status for status in statuses if status), 0)


def main() -> int:
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    return run(words[:cut], words[cut + 1 :])


if __name__ == "__main__":
    sys.exit(main())
