"""The root trees: a small Debian with systemd and both bus daemons, for each release that vmservice is made for.

The containers of the system level boot them. That of Debian 13 has QEMU and a kernel besides: the nested host of the lab boots
it, and QEMU is run out of it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from support.cache import cached, recipe_hash

# By Debian's names; the first is that of the lab.
RELEASES = ("trixie", "bookworm")
PACKAGES = (
    # the host
    *("systemd", "systemd-sysv", "libpam-systemd", "udev", "kmod", "login", "passwd"),
    *("dbus", "dbus-user-session", "dbus-broker", "polkitd", "systemd-container"),
    # what the package depends on
    *("python3", "python3-dbus-next", "python3-pyelftools", "python3-systemd"),
    # what tests and people use there
    *("iproute2", "logrotate", "passt", "procps", "strace"),
)
LAB_PACKAGES = (
    *("acpica-tools", "busybox-static", "e2fsprogs", "linux-image-cloud-amd64", "openssh-client", "pciutils"),
    *("qemu-system-x86", "qemu-utils"),
)
# qemu-storage-daemon; in Debian 13 qemu-utils has it.
OLD_PACKAGES = ("qemu-system-common", "qemu-utils")

# The kernel's initramfs is the lab's own (images.py): Debian's would take half a minute to build and ten seconds to unpack.
_ENVIRONMENT = {"INITRD": "No", "DEBIAN_FRONTEND": "noninteractive"}

# Files laid over the tree of the lab, each with its reason in it.
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


def root_tree(release: str = RELEASES[0]) -> Path:
    """The folder of the tree, built first if need be (half a minute, and the network). Nobody writes into it."""
    if release != RELEASES[0]:
        return debian_tree(f"root-{release}", release, (*PACKAGES, *OLD_PACKAGES))
    overlay = sorted(path for path in _OVERLAY.rglob("*") if path.is_file())
    recipe = recipe_hash(
        release,
        *PACKAGES,
        *LAB_PACKAGES,
        _SETTINGS,
        *(part for path in overlay for part in (str(path.relative_to(_OVERLAY)), path.read_bytes())),
    )
    return cached("root", recipe, _build_lab)


def debian_tree(name: str, release: str, packages: tuple[str, ...]) -> Path:
    """The folder of a tree of that release with those packages, in the cache by that name, and likewise."""
    recipe = recipe_hash(release, *packages, _SETTINGS)
    return cached(name, recipe, lambda target: _build(target, release, packages))


def _build_lab(target: Path) -> None:
    lay = f'--customize-hook=cp --recursive --no-preserve=mode,ownership {shlex.quote(str(_OVERLAY))}/. "$1"'
    _build(target, RELEASES[0], (*PACKAGES, *LAB_PACKAGES), lay)


def _build(target: Path, release: str, packages: tuple[str, ...], *hooks: str) -> None:
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--format=directory", f"--include={','.join(packages)}", *hooks]
    command += [f'--customize-hook=chroot "$1" sh -c {shlex.quote(_SETTINGS)}', release, str(target)]
    subprocess.run(command, check=True, env={**os.environ, **_ENVIRONMENT}, stdin=subprocess.DEVNULL)
    # Each host is a new machine.
    (target / "etc/machine-id").write_text("")
    (target / "etc/hostname").write_text("lab\n")
