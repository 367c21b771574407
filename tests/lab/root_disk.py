"""Root disks as guests have them: an ordinary Debian with systemd in one ext4 partition, made without mounting anything.

Their kernels and initramfs are taken out for direct boot. Whoever is at the serial console is root; a line tells when
multi-user.target is reached; `apt-get install` has an archive of one package in the image.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import uuid
from pathlib import Path

from lab.gpt import FIRST_BYTE, partition_size, write_table
from lab.guest import initramfs
from lab.kernel import KernelPackage
from lab.root_tree import RELEASES
from support.cache import cached, recipe_hash

_HERE = Path(__file__).parent
# Files laid over the tree, each with its reason in it.
_OVERLAY = _HERE / "disk_root"

REACHED = "guest: multi-user.target reached"
# The package in the image's archive, not installed.
ARCHIVED = "hello"
# Sparse: what Debian takes, and room for tests.
SIZE = 1280 << 20

_INIT = "root_init.sh"
_MODULES = ("virtio_pci", "virtio_mmio", "virtio_blk", "crc32c_generic", "crc32c_intel", "ext4")

_PACKAGES = (
    *("systemd", "systemd-sysv", "udev", "dbus", "kmod", "login", "passwd", "util-linux", "e2fsprogs", "procps"),
    *("initramfs-tools", "busybox-static", "lz4", "linux-image-cloud-amd64"),
)
# sshd is started for a connection over vsock alone.
_MORE_PACKAGES = {"trixie": ("fio", "openssh-server"), "bookworm": ()}

# What a machine of some minutes has no use for: timers, file systems that nobody looks at, records of boots, what was done when
# the image was made. Each process at boot costs a second where the processor is emulated twice. All else is as Debian has it.
_MASKED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "fstrim.timer", "systemd-tmpfiles-clean.timer"),
    *("e2scrub_all.timer", "e2scrub_reap.service", "dev-hugepages.mount", "dev-mqueue.mount", "sys-kernel-debug.mount"),
    *("sys-kernel-tracing.mount", "sys-kernel-config.mount", "sys-fs-fuse-connections.mount", "modprobe@.service"),
    *("proc-sys-fs-binfmt_misc.automount", "kmod-static-nodes.service", "systemd-modules-load.service"),
    *("systemd-tmpfiles-setup-dev.service", "systemd-tmpfiles-setup-dev-early.service", "systemd-random-seed.service"),
    *("systemd-update-utmp.service", "systemd-update-utmp-runlevel.service", "systemd-journal-flush.service"),
    *("systemd-sysusers.service", "systemd-sysctl.service"),
)
_SETTINGS = f"""\
set -e
systemctl --quiet mask {" ".join(_MASKED)}
systemctl --quiet set-default multi-user.target
systemctl --quiet enable guest-reached.service
[ ! -e /usr/lib/systemd/system/ssh.service ] || systemctl --quiet disable ssh.service
mkdir -p /etc/systemd/system-generators
for generator in /usr/lib/systemd/system-generators/*; do
    case "$generator" in
        */systemd-fstab-generator | */systemd-getty-generator | */systemd-ssh-generator) ;;
        *) ln -s /dev/null "/etc/systemd/system-generators/${{generator##*/}}" ;;
    esac
done
for modules in /lib/modules/*; do update-initramfs -c -k "${{modules##*/}}"; done
touch /etc/.updated /var/.updated /root/.hushlogin
"""
# By mmdebstrap's apt, as the image has no sources to get it from.
_ARCHIVE = (
    'mkdir -p "$1/srv/archive" && cd "$1/srv/archive" && APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get -qq download ' + ARCHIVED
)


def partuuid(release: str) -> uuid.UUID:
    """By which the kernel's command line names the root partition."""
    return uuid.uuid5(uuid.NAMESPACE_DNS, f"{release}.root.lab")


def root_cmdline(release: str) -> str:
    """What a guest of the root disk is booted with. TERM is that of systemd, which would ask the console for its size."""
    return f"console=ttyS0 root=PARTUUID={partuuid(release)} rw quiet TERM=dumb"


def root_disk(release: str = RELEASES[0]) -> Path:
    """A folder, built first if need be (a minute, and the network). The disk is `raw`, with its kernel `vmlinuz` and Debian's
    own `initrd`. With `quick` in place of that a boot is ten seconds shorter; the disk's serial must be "root" then."""
    overlay = sorted(path for path in _OVERLAY.rglob("*") if path.is_file())
    recipe = recipe_hash(
        *(release, str(SIZE), *_PACKAGES, *_MORE_PACKAGES[release], _SETTINGS, _ARCHIVE),
        *((_HERE / name).read_bytes() for name in ("root_disk.py", "gpt.py", "cpio.py", "kernel.py", _INIT)),
        *(part for path in overlay for part in (str(path.relative_to(_OVERLAY)), path.read_bytes())),
    )
    return cached(f"root-disk-{release}", recipe, lambda target: _build(target, release))


def _build(target: Path, release: str) -> None:
    target.mkdir()
    tree = target / "tree"
    _debootstrap(tree, release)
    for name in ("vmlinuz", "initrd"):
        (found,) = (tree / "boot").glob(f"{name}*-*")
        shutil.copy(found, target / name)
    busybox = (tree / "usr/bin/busybox").resolve().read_bytes()
    initramfs(target / "quick", busybox, (_HERE / _INIT).read_bytes(), KernelPackage(tree).modules(*_MODULES))
    _make_disk(target / "raw", tree, release)
    shutil.rmtree(tree)


def _debootstrap(tree: Path, release: str) -> None:
    lay = f'cp --recursive --no-preserve=mode,ownership {shlex.quote(str(_OVERLAY))}/. "$1"'
    # The overlay replaces the list of sources, and has a say in the initramfs.
    hooks = [_ARCHIVE, lay, f'chroot "$1" sh -c {shlex.quote(_SETTINGS)}']
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--format=directory"]
    command += [f"--include={','.join((*_PACKAGES, *_MORE_PACKAGES[release]))}"]
    command += ["--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*"]
    command += ["--dpkgopt=path-exclude=/usr/share/locale/*", *(f"--customize-hook={hook}" for hook in hooks)]
    environment = {**os.environ, "INITRD": "No", "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run([*command, release, str(tree)], check=True, env=environment, stdin=subprocess.DEVNULL)
    _write_index(tree / "srv/archive")
    # Each guest is a new machine.
    (tree / "etc/machine-id").write_text("")
    (tree / "etc/hostname").write_text(f"{release}\n")


def _write_index(archive: Path) -> None:
    """The archive's list of packages, as apt reads it."""
    (package,) = archive.glob("*.deb")
    data = package.read_bytes()
    fields = subprocess.run(["dpkg-deb", "--field", package], check=True, capture_output=True, text=True).stdout
    more = f"Filename: ./{package.name}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"
    (archive / "Packages").write_text(fields + more)


def _make_disk(disk: Path, tree: Path, release: str) -> None:
    with disk.open("xb") as file:
        file.truncate(SIZE)
    write_table(disk, uuid.uuid5(uuid.NAMESPACE_DNS, f"{release}.disk.lab"), partuuid(release))
    # What would be different each time: the UUID, and the seed by which directories are hashed.
    same = f"offset={FIRST_BYTE},root_owner=0:0,nodiscard,hash_seed={partuuid(release)}"
    command = ["mke2fs", "-q", "-F", "-t", "ext4", "-U", str(partuuid(release)), "-L", "root", "-E", same, "-d", str(tree)]
    subprocess.run(
        [*command, str(disk), f"{partition_size(SIZE) >> 10}k"],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
