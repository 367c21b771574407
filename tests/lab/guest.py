"""What the lab boots as guests: stock Debian kernels with an initramfs of busybox and the modules of our devices."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path, PurePath

from lab.cpio import CpioArchive
from lab.kernel import KernelPackage
from lab.root_tree import root_tree
from support.cache import cached, recipe_hash
from support.extract_vmlinux import extract_vmlinux

_HERE = Path(__file__).parent

# Whatever of it the kernel has built in is left out.
_VIRTIO_MODULES = ("virtio_pci", "virtio_mmio", "virtio_console", "virtio_rng", "virtio_balloon")
_STORAGE_MODULES = ("virtio_blk", "virtio_pmem", "nd_pmem", "crc32c_generic", "crc32c_intel", "ext4")
_VSOCK_MODULES = ("vmw_vsock_virtio_transport",)
MODULES = ("button", "evdev", *_VIRTIO_MODULES, "wdat_wdt", "pvpanic_mmio")


def guest_images() -> Path:
    """A folder with NAME.vmlinuz (a bzImage), NAME.vmlinux (its ELF) and NAME.initramfs for each of trixie and bookworm;
    NAME-storage.initramfs and NAME-vsock.initramfs (modules), lspci.initramfs and vsock.initramfs are to put behind one."""
    root = root_tree()
    sources = ("guest.py", "guest_init.sh", "vsock_guest.py", "cpio.py", "kernel.py")
    recipe = recipe_hash(root.name, *((_HERE / name).read_bytes() for name in sources))
    return cached("guests", recipe, lambda target: _build(target, root))


def _build(target: Path, root: Path) -> None:
    busybox = (root / "usr/bin/busybox").read_bytes()
    target.mkdir()
    _add_guest(target, "trixie", KernelPackage(root), busybox)
    _add_guest(target, "bookworm", KernelPackage(bookworm_kernel()), busybox)
    _add_program(target / "lspci.initramfs", "/usr/bin/lspci", root)
    # An interpreter, with what it cannot do without.
    encodings = [path.relative_to(root) for path in root.glob("usr/lib/python3.*/encodings/*.py")]
    needed = [f"/{path}" for path in encodings if path.stem in ("__init__", "aliases", "ascii", "utf_8")]
    needed += [f"/{path.relative_to(root)}" for path in root.glob("usr/lib/python3.*/__future__.py")]
    script = ("vsock_guest.py", (_HERE / "vsock_guest.py").read_bytes())
    _add_program(target / "vsock.initramfs", "/usr/bin/python3", root, needed, [script])


def bookworm_kernel() -> Path:
    """Debian 12's cloud kernel, unpacked."""

    def build(target: Path) -> None:
        command = ["mmdebstrap", "--quiet", "--variant=extract", "--format=directory", "--include=linux-image-cloud-amd64"]
        subprocess.run([*command, "bookworm", target], check=True, stdin=subprocess.DEVNULL)

    return cached("bookworm-kernel", recipe_hash("1"), build)


def _add_guest(target: Path, name: str, kernel: KernelPackage, busybox: bytes) -> None:
    shutil.copy(kernel.image, target / f"{name}.vmlinuz")
    extract_vmlinux(kernel.image, target / f"{name}.vmlinux")
    modules = kernel.modules(*MODULES)
    initramfs(target / f"{name}.initramfs", busybox, (_HERE / "guest_init.sh").read_bytes(), modules)
    for kind, more in (("storage", _STORAGE_MODULES), ("vsock", _VSOCK_MODULES)):
        archive = CpioArchive()
        _add_modules(archive, kernel.modules(*more), len(modules))
        archive.write(target / f"{name}-{kind}.initramfs")


def _add_program(
    target: Path, program: str, root: Path, needed: Sequence[str] = (), more: Sequence[tuple[str, bytes]] = ()
) -> None:
    """An archive to put behind an initramfs: a program of the root tree, the shared libraries that it is linked with, other
    files of the tree that are `needed`, and `more`, by name and content."""
    listed = subprocess.run(["chroot", root, "ldd", program], check=True, capture_output=True, text=True).stdout
    paths = [program, *sorted(set(re.findall(r"(/\S+) \(0x", listed))), *needed]
    archive = CpioArchive()
    for directory in sorted({parent for path in paths for parent in PurePath(path).parents} - {PurePath("/")}):
        archive.add_directory(str(directory).lstrip("/"))
    for path in paths:
        archive.add_file(path.lstrip("/"), (root / path.lstrip("/")).read_bytes(), 0o755)
    for name, data in more:
        archive.add_file(name, data, 0o755)
    archive.write(target)


def initramfs(target: Path, busybox: bytes, init: bytes, modules: list[tuple[str, bytes]]) -> None:
    """busybox, /init and /modules/NN-NAME.ko in the order to load them. Not compressed: unpacking costs more than copying."""
    archive = CpioArchive()
    for directory in ("bin", "dev", "modules", "proc", "root", "sys"):
        archive.add_directory(directory)
    # /init's standard streams, before devtmpfs is there.
    archive.add_character_device("dev/console", 5, 1)
    archive.add_file("bin/busybox", busybox, 0o755)
    archive.add_file("init", init, 0o755)
    _add_modules(archive, modules, 0)
    archive.write(target)


def _add_modules(archive: CpioArchive, modules: list[tuple[str, bytes]], first: int) -> None:
    for index, (name, data) in enumerate(modules, first):
        archive.add_file(f"modules/{index:02}-{name}", data)
