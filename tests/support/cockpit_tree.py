"""The root trees of hosts that have Cockpit, and a browser to look at it with: for the test of the page alone, which the others
need not wait for."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from lab.root_tree import PACKAGES
from support.cache import cached, recipe_hash

# Cockpit as an administrator installs it, without the pages that need more; sudo is its way to administrative access.
COCKPIT_PACKAGES = ("cockpit-bridge", "cockpit-system", "cockpit-ws", "sudo", "chromium-headless-shell")

# The container chooses its bus daemon itself.
_SETTINGS = """\
set -e
systemctl --quiet disable dbus-broker.service
systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer
systemctl --quiet set-default multi-user.target
useradd --create-home --shell /bin/bash alice
"""


def cockpit_tree(release: str) -> Path:
    """The folder of the tree, built first if need be (a minute, and the network). Nobody writes into it."""
    packages = (*PACKAGES, *COCKPIT_PACKAGES)
    recipe = recipe_hash(release, *packages, _SETTINGS)
    return cached(f"cockpit-{release}", recipe, lambda target: _build(target, release, packages))


def _build(target: Path, release: str, packages: tuple[str, ...]) -> None:
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--format=directory", f"--include={','.join(packages)}"]
    command += [f'--customize-hook=chroot "$1" sh -c {shlex.quote(_SETTINGS)}', release, str(target)]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(command, check=True, env=environment, stdin=subprocess.DEVNULL)
    # Each host is a new machine.
    (target / "etc/machine-id").write_text("")
    (target / "etc/hostname").write_text("lab\n")
