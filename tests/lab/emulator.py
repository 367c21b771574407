"""The QEMU that emulates the lab's host: the newest that Debian 13 has, from trixie-backports, in a tree of its own.

QEMU 10, which is Debian 13's own, loses a processor's state now and then when it emulates AMD's SVM: the guest's, which is
reset then, or the host's, which dies. Under QEMU 11 the host died, too, but no guest was reset (docs/design.md, "Tests").
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from support.cache import cached, recipe_hash

# As if what is in trixie-backports were in trixie: QEMU needs a newer SeaBIOS, too.
_PREFERENCES = """\
Package: *
Pin: release n=trixie-backports
Pin-Priority: 500
"""
# The archive is the one that mmdebstrap takes.
_SETUP = f"""\
sed -n 's/ trixie main/ trixie-backports main/p' "$1/etc/apt/sources.list" > "$1/etc/apt/sources.list.d/backports.list"
mkdir -p "$1/etc/apt/preferences.d"
printf %s {shlex.quote(_PREFERENCES)} > "$1/etc/apt/preferences.d/qemu"\
"""


def emulator_tree() -> Path:
    """The folder of the tree, built first if need be (half a minute, and the network)."""
    return cached("emulator", recipe_hash(_SETUP), _build)


def _build(target: Path) -> None:
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--format=directory", "--include=qemu-system-x86"]
    command += [f"--setup-hook={_SETUP}", "trixie", str(target)]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(command, check=True, env=environment, stdin=subprocess.DEVNULL)
