"""The root tree: a small Debian 13 with systemd, both bus daemons, QEMU and a kernel.

The container of the system level boots it, the nested host of the lab boots it, and QEMU is run out of it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from support.cache import cached, recipe_hash

SUITE = "trixie"
PACKAGES = (
    # the host
    *("systemd", "systemd-sysv", "libpam-systemd", "udev", "kmod", "login", "passwd"),
    *("dbus", "dbus-user-session", "dbus-broker", "polkitd", "systemd-container", "linux-image-cloud-amd64"),
    # what the package depends on
    *("python3", "python3-dbus-next", "python3-pyelftools"),
    # what tests and people use there
    *("acpica-tools", "busybox-static", "iproute2", "procps", "qemu-system-x86", "strace"),
)

# The kernel's initramfs is the lab's own (images.py): Debian's would take half a minute to build and ten seconds to unpack.
_ENVIRONMENT = {"INITRD": "No", "DEBIAN_FRONTEND": "noninteractive"}

# Files laid over the tree, each with its reason in it.
_OVERLAY = Path(__file__).parent / "root"

# dbus-daemon is what Debian runs; a test switches to dbus-broker. The rest is work that would only slow a host of two minutes.
_SETTINGS = """\
set -e
systemctl --quiet disable dbus-broker.service
systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer \
    e2scrub_all.timer e2scrub_reap.service systemd-pcrphase.service
systemctl --quiet set-default multi-user.target
useradd --create-home --shell /bin/bash alice
"""


def root_tree() -> Path:
    """The folder of the tree, built first if need be (half a minute, and the network). Nobody writes into it."""
    overlay = sorted(path for path in _OVERLAY.rglob("*") if path.is_file())
    recipe = recipe_hash(
        SUITE,
        *PACKAGES,
        _SETTINGS,
        *(part for path in overlay for part in (str(path.relative_to(_OVERLAY)), path.read_bytes())),
    )
    return cached("root", recipe, _build)


def _build(target: Path) -> None:
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--format=directory", f"--include={','.join(PACKAGES)}"]
    hooks = [
        f'--customize-hook=cp --recursive --no-preserve=mode,ownership {shlex.quote(str(_OVERLAY))}/. "$1"',
        f'--customize-hook=chroot "$1" sh -c {shlex.quote(_SETTINGS)}',
    ]
    subprocess.run([*command, *hooks, SUITE, target], check=True, env={**os.environ, **_ENVIRONMENT}, stdin=subprocess.DEVNULL)
    # Each host is a new machine.
    (target / "etc/machine-id").write_text("")
    (target / "etc/hostname").write_text("lab\n")
