"""The disks and the initramfs of the lab's own host, made without mounting anything."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from lab.guest import initramfs
from lab.kernel import KernelPackage
from lab.root_disk import root_disk
from lab.root_tree import RELEASES, root_tree
from support.cache import cached, recipe_hash

_HERE = Path(__file__).parent
# virtio_pci is built into the cloud kernel; ext4 asks the crypto API for crc32c.
_HOST_MODULES = ("virtio_blk", "crc32c_generic", "crc32c_intel", "ext4")
# Sparse: room for the package, the journal and copies of the guests' disks.
_ROOT_SIZE = "6G"


def host_disk() -> Path:
    """The root file system of the nested host, ext4. Start it with snapshot=on: every run uses the same file."""
    root = root_tree()

    def build(target: Path) -> None:
        subprocess.run(
            ["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", root, target, _ROOT_SIZE],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    return cached("host-disk", recipe_hash(root.name, _ROOT_SIZE), build)


def host_initramfs() -> Path:
    """Enough to mount the root disk: a tenth of what Debian's initramfs takes to unpack under emulation."""
    root = root_tree()
    recipe = recipe_hash(
        root.name, *((_HERE / name).read_bytes() for name in ("images.py", "root_init.sh", "cpio.py", "kernel.py"))
    )

    def build(target: Path) -> None:
        busybox = (root / "usr/bin/busybox").read_bytes()
        modules = KernelPackage(root).modules(*_HOST_MODULES)
        initramfs(target, busybox, (_HERE / "root_init.sh").read_bytes(), modules)

    return cached("host-initramfs", recipe, build)


def guest_disks() -> Path:
    """An ext4 image with RELEASE.raw, .vmlinuz, .initrd and .quick of each release. As big as two root disks, it is made once
    and not laid into each run's payload."""
    roots = {release: root_disk(release) for release in RELEASES}
    recipe = recipe_hash(*(root.name for root in roots.values()))

    def build(target: Path) -> None:
        files: dict[str, Path] = {}
        for release, root in roots.items():
            files |= {f"{release}.{name}": root / name for name in ("raw", "vmlinuz", "initrd", "quick")}
        scratch = target.with_name(f"{target.name}.tree")
        scratch.mkdir()
        try:
            payload_disk(target, files, scratch)
        finally:
            shutil.rmtree(scratch)

    return cached("guest-disks", recipe, build)


def payload_disk(target: Path, files: Mapping[str, Path], scratch: Path) -> None:
    """An ext4 image at `target` that holds `files` (name in the image → source), laid out in the new folder `scratch`."""
    size = 0
    for name, source in files.items():
        place = scratch / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.hardlink_to(source) if _same_device(source, scratch) else place.write_bytes(source.read_bytes())
        size += source.stat().st_size
    megabytes = size * 11 // 10 // 2**20 + 8
    subprocess.run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", scratch, target, f"{megabytes}M"],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


def _same_device(source: Path, folder: Path) -> bool:
    return source.stat().st_dev == folder.stat().st_dev
