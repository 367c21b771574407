"""Runs levels of the tests, each in a pytest of its own: `run_levels.py LEVEL… [-- PYTEST OPTION…]`.

The fast levels and the system level go side by side, for each leaves a processor idle half of the time; what the second says
comes behind the first. The lab has the machine for itself: its host is emulated, and its tests have limits.
The status is 0 if all of them passed, else that of the first that did not.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).parents[1]
ASIDE, ALONE = "system", "lab"


def command(levels: Sequence[str], options: Sequence[str]) -> list[str]:
    paths = [str(TESTS / level) for level in levels]
    return [
        sys.executable,
        str(TESTS / "support/environment.py"),
        "-m",
        "pytest",
        "-p",
        "tests.support.skips",
        *paths,
        *options,
    ]


def run(levels: Sequence[str], options: Sequence[str]) -> int:
    fast = [level for level in levels if level not in (ASIDE, ALONE)]
    statuses = []
    with tempfile.TemporaryFile() as said:
        aside = None
        if ASIDE in levels:
            # Unless it is the only one, which may as well be seen at once.
            output = said if fast else None
            aside = subprocess.Popen(command([ASIDE], options), stdout=output, stderr=output)
        if fast:
            statuses.append(subprocess.run(command(fast, options), check=False).returncode)
        if aside is not None:
            statuses.append(aside.wait())
            said.seek(0)
            sys.stdout.buffer.write(said.read())
            sys.stdout.flush()
    if ALONE in levels:
        statuses.append(subprocess.run(command([ALONE], options), check=False).returncode)
    return next((status for status in statuses if status), 0)


def main() -> int:
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    return run(words[:cut], words[cut + 1 :])


if __name__ == "__main__":
    sys.exit(main())
