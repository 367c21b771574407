"""Runs levels of the tests, in processes of pytest: `run_levels.py LEVEL… [-- PYTEST OPTION…]`.

The fast levels and the system level go side by side, each in two processes: they wait for most of their time. What one of these
says comes behind what the one before it says. The lab has the machine for itself, for two emulated hosts of one processor each:
its tests have limits.
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
UNIT, SYSTEM, LAB = "unit", "system", "lab"
# Containers of Debian 13, and those of Debian 12 and with Cockpit: a test's name has what it runs in.
HALVES = (["-k", "not (bookworm or cockpit)"], ["-k", "bookworm or cockpit"])
# pytest-xdist: a test goes to whichever of two processes is free. Not for the other levels: its processes have a second thread,
# and tests that fork are not to have one.
LAB_IN_TWO = ["--numprocesses=2", "--dist=load", "--maxschedchunk=1"]


def command(levels: Sequence[str], options: Sequence[str]) -> list[str]:
    run = [sys.executable, str(TESTS / "support/environment.py"), "-m", "pytest", "-p", "tests.support.skips"]
    return [*run, *(str(TESTS / level) for level in levels), *options]


def side_by_side(levels: Sequence[str], options: Sequence[str]) -> list[list[str]]:
    """The commands; the unit level takes about as long as all other fast ones."""
    others = [level for level in levels if level not in (UNIT, SYSTEM, LAB)]
    commands = [command(fast, options) for fast in (others, [UNIT] if UNIT in levels else []) if fast]
    if SYSTEM in levels:
        # pytest has one expression: who gives another one has all that it finds in one process.
        halves = HALVES if "-k" not in options else ([],)
        commands += [command([SYSTEM], [*half, *options]) for half in halves]
    return commands


def run(levels: Sequence[str], options: Sequence[str]) -> int:
    statuses = []
    commands = side_by_side(levels, options)
    with contextlib.ExitStack() as said:
        # The first one is seen at once.
        outputs = [said.enter_context(tempfile.TemporaryFile()) if number else None for number in range(len(commands))]
        processes = [subprocess.Popen(words, stdout=out, stderr=out) for words, out in zip(commands, outputs, strict=True)]
        for process, output in zip(processes, outputs, strict=True):
            statuses.append(process.wait())
            if output is not None:
                output.seek(0)
                sys.stdout.buffer.write(output.read())
                sys.stdout.flush()
    if LAB in levels:
        statuses.append(subprocess.run(command([LAB], [*LAB_IN_TWO, *options]), check=False).returncode)
    return next((status for status in statuses if status), 0)


def main() -> int:
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    return run(words[:cut], words[cut + 1 :])


if __name__ == "__main__":
    sys.exit(main())
