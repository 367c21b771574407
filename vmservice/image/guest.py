"""The system in an image: where its root is, what starts it, and what it has that a VM can use."""

from __future__ import annotations

import os
import posixpath
import re
from dataclasses import dataclass

from vmservice.errors import ConfigError, HostError, HostFacilityMissing, VmmError, quoted
from vmservice.image import file_systems, grub
from vmservice.image.boot_entry import ENTRIES, BootEntry, Files, read_entries, read_grub_environment, version_key
from vmservice.image.dissected import PROGRAM, Dissected
from vmservice.image.ext4 import Ext4
from vmservice.image.fat import Fat
from vmservice.image.partitions import BOOT, ESP, ROOT_X86_64, Partition, read_partitions
from vmservice.image.tools import Image, is_there

_OS_RELEASE = ("/etc/os-release", "/usr/lib/os-release")
_SYSTEMD_FOLDERS = ("/usr/lib/systemd", "/usr/lib/x86_64-linux-gnu/systemd", "/usr/lib64/systemd", "/lib/systemd")
_SHARED = re.compile(r"libsystemd-shared-(\d+)")
_GRUB = ("grub/grub.cfg", "grub2/grub.cfg", "EFI/debian/grub.cfg", "EFI/BOOT/grub.cfg")
_GRUB_ENVIRONMENTS = ("grub2/grubenv", "grub/grubenv")
_CLOUD_INIT = "/usr/bin/cloud-init"
_SSHD = "/usr/sbin/sshd"
_MODULES = "/usr/lib/modules"
_KERNEL = re.compile(r"^(?:vmlinuz|bzImage|linux)(?:-(.+))?$")
_INITRDS = ("initrd.img-{}", "initramfs-{}.img", "initrd-{}", "initramfs-{}", "initrd-{}.img")
# Consoles are the VM's own; the boot loader's word is for itself.
_DROPPED = re.compile(r"^(root|console|earlyprintk|earlycon|BOOT_IMAGE|initrd|vt_handoff)=|^\$")

KERNEL_MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class Guest:
    """What is in the image. `root` is None where there are no partitions. `systemd` is its version, 0: unknown."""

    pretty_name: str
    os_id: str  # ID of os-release
    source: str  # where the entry comes from, for people
    files: Files  # with the entry's kernel
    kernel: str  # paths there
    initrd: str
    cmdline: str
    root: Partition | None
    systemd: int
    has_cloud_init: bool
    has_sshd: bool


@dataclass(frozen=True)
class _Place:
    """A file system of the image and the folder of it that is /boot, or the ESP: with slashes at both ends."""

    files: Files
    folder: str
    name: str


def take(guest: Guest, path: str, output: int) -> None:
    """Copy the guest's kernel or initramfs, whole, to an empty file."""
    guest.files.copy(path, output)
    expected, there = guest.files.size(path), os.fstat(output).st_size
    if expected != there:
        raise HostError(f"only {there} of {expected} bytes of {path} could be taken out of the image")


def find_partitions(fd: int, size_bytes: int, path: str) -> list[Partition]:
    """Those of an image; none where a file system begins with it. ConfigError where it is no disk at all."""
    kind = file_systems.kind_at(fd, 0)
    if kind == "iso9660":  # it may have a partition table besides, to be started from anywhere
        raise ConfigError(f"{path} is a medium that installs a system, not a disk that has one")
    try:
        partitions = read_partitions(fd, size_bytes)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not partitions and not kind:
        raise ConfigError(f"{path} has neither a partition table nor a file system that is known; expected a disk with Linux")
    return partitions


def look_into(image: Image) -> Guest:
    """ConfigError, HostError or HostFacilityMissing where nothing can be started from there, and why."""
    partitions = find_partitions(image.fd, image.size_bytes, image.path)
    root, files, refusal = _find_root(image, partitions)
    release = {} if files is None else _os_release(files)
    places = _places(image, partitions, root, files)
    try:
        entry, place, source = _find_entry(places, image.path)
    except ConfigError as error:
        raise refusal or error from None
    kernel, place = _kernel_of(entry, place, places, image.path)
    initrd = _path_of(entry.initrd, place) if entry.initrd else ""
    if initrd and place.files.size(initrd) is None:
        raise ConfigError(f"{image.path}: {source} names the initramfs {entry.initrd}, which is not there")
    return Guest(
        pretty_name=release.get("PRETTY_NAME", release.get("NAME", entry.title if files is None else "Linux")),
        os_id=release.get("ID", ""),
        source=source,
        files=place.files,
        kernel=kernel,
        initrd=initrd,
        cmdline=_cmdline(entry, _root_word(image, root, bool(initrd))),
        root=root,
        systemd=0 if files is None else _systemd_version(files),
        # Of a root that cannot be read: cloud images have both.
        has_cloud_init=files is None or files.size(_CLOUD_INIT) is not None,
        has_sshd=files is None or files.size(_SSHD) is not None,
    )


def _find_root(image: Image, partitions: list[Partition]) -> tuple[Partition | None, Files | None, VmmError | None]:
    """(partition, its files). Of the partitions the one that says so, or the first that has an os-release.

    Where there is a root that cannot be read, it is without files, and why; its kernel may lie in a partition of its own.
    """
    if not partitions:
        return None, _open_root(image, 0), None
    kinds = {one.number: file_systems.kind_at(image.fd, one.offset) for one in partitions}
    # The largest first: systems with two halves for updates have their like in both.
    candidates = sorted(partitions, key=lambda one: (one.kind != ROOT_X86_64, -one.size_bytes))
    for one in candidates:
        if kinds[one.number] == "ext4" and _os_release(files := _open_ext4(image, one.offset)):
            return one, files, None
    for one in candidates:
        kind, what = kinds[one.number], f"partition {one.number}"
        if kind in ("luks", "lvm"):
            raise _unreadable(image.path, kind, what)
        if kind in ("xfs", "btrfs", "squashfs", "erofs"):
            return one, *_dissect(image, kind, what)
    shown = ", ".join(f"{one.number} ({kinds[one.number] or 'unknown'})" for one in partitions)
    raise ConfigError(f"{image.path}: no partition has a Linux system with /etc/os-release; it has the partitions {shown}")


def _open_ext4(image: Image, offset: int) -> Ext4:
    """A file system that may be a root, with what will be asked of one known already."""
    files = Ext4(image, offset)
    loaders = [f"/boot/{name}" for name in ("loader/loader.conf", *_GRUB, *_GRUB_ENVIRONMENTS)]
    folders = ["/boot/", f"/boot/{ENTRIES}", _MODULES, *_SYSTEMD_FOLDERS]
    files.look_ahead([*_OS_RELEASE, *loaders, _CLOUD_INIT, _SSHD, "/etc/fstab"], folders)
    return files


def _dissect(image: Image, kind: str, what: str) -> tuple[Files | None, VmmError | None]:
    """The files, where systemd-dissect is there and can; else why not."""
    if not is_there(PROGRAM):
        return None, _unreadable(image.path, kind, what)
    try:
        files = Dissected(image)
    except VmmError as error:
        return None, HostFacilityMissing(f"{_unreadable(image.path, kind, what)}. {error}")
    return (files, None) if _os_release(files) else (None, _unreadable(image.path, kind, what))


def _open_root(image: Image, offset: int) -> Files:
    """The file system of an image without partitions."""
    kind = file_systems.kind_at(image.fd, offset)
    if kind == "ext4":
        files = _open_ext4(image, offset)
        if _os_release(files):
            return files
        raise ConfigError(f"{image.path} has no partition table, and its file system has no /etc/os-release")
    raise _unreadable(image.path, kind, "what it holds")


def _unreadable(path: str, kind: str, what: str) -> VmmError:
    if kind in ("luks", "lvm"):
        return ConfigError(
            f"{path}: {what} is {kind}, which is not looked into; write the configuration by hand, with [kernel] and root="
        )
    return HostFacilityMissing(
        f"{path}: {what} is {kind}, and kernels are taken out of ext4, or by root with systemd-dissect (systemd 253 and later)"
        " out of what the host's kernel can mount"
    )


def _places(image: Image, partitions: list[Partition], root: Partition | None, files: Files | None) -> list[_Place]:
    """Where a boot loader's files may be: a partition for them, and the root's /boot."""
    found = []
    for one in partitions:
        if root is not None and one.number == root.number:
            continue
        kind = file_systems.kind_at(image.fd, one.offset)
        if kind == "ext4":
            other = Ext4(image, one.offset)
            if one.kind == BOOT or any(name in ("grub", "grub2", "loader") for name in other.names("/")):
                found.append(_Place(other, "/", f"partition {one.number}"))
        elif kind == "vfat" and one.kind in (ESP, BOOT, None):
            found.append(_Place(Fat(image, one.offset), "/", f"partition {one.number}"))
    if files is not None:
        found.append(_Place(files, "/boot/", "/boot"))
        if files.kind == Dissected.kind:
            found.append(_Place(files, "/efi/", "/efi"))
    return found


def _find_entry(places: list[_Place], path: str) -> tuple[BootEntry, _Place, str]:
    """(entry, where it is, that in words). Entries of the boot loader specification, then grub.cfg, then the newest kernel."""
    for place in places:
        entries = read_entries(place.files, place.folder, lambda place=place: _grub_environment(place))  # type: ignore[misc]
        if entries:
            entry = entries[0].printable()
            return entry, place, f"{place.name}: {entry.title}"
    for place in places:
        for name in _GRUB:
            text = place.files.text(f"{place.folder}{name}")
            menu = grub.read_menu(text, _grub_environment(place)) if text else []
            if menu:
                entry = menu[0].printable()
                return entry, place, f"{name.rpartition('/')[2]} of {place.name}: {entry.title}"
    for place in places:
        newest = _newest(place)
        if newest is not None:
            return newest.printable(), place, f"{place.name}: the newest kernel"
    for place in places:
        modules = _newest_of_modules(place.files)
        if modules is not None:
            return modules.printable(), _Place(place.files, "/", "/"), f"{_MODULES}: the newest kernel"
    raise ConfigError(f"{path}: its system has no kernel in /boot; an image for a container has none. Install one in it first")


def _grub_environment(place: _Place) -> dict[str, str]:
    for name in _GRUB_ENVIRONMENTS:
        text = place.files.text(f"{place.folder}{name}")
        if text:
            return read_grub_environment(text)
    return {}


def _newest(place: _Place) -> BootEntry | None:
    """The kernel of the highest version, and the initramfs of its name."""
    names = place.files.names(place.folder)
    kernels = [(found[1] or "", name) for name in names if (found := _KERNEL.match(name)) and not name.endswith(".old")]
    if not kernels:
        return None
    version, kernel = max(kernels, key=lambda one: version_key(one[0]))
    candidates = [pattern.format(version) for pattern in _INITRDS] if version else ["initrd.img", "initrd"]
    initrd = next((name for name in candidates if name in names), "")
    return BootEntry(kernel, f"/{kernel}", f"/{initrd}" if initrd else "", _options_without_loader(place.files))


def _newest_of_modules(files: Files) -> BootEntry | None:
    """Where a distribution's package has put it, before anything has copied it to /boot: of mkosi's folders, for one."""
    versions = [name for name in files.names(_MODULES) if files.size(f"{_MODULES}/{name}/vmlinuz") is not None]
    if not versions:
        return None
    version = max(versions, key=version_key)
    return BootEntry(version, f"{_MODULES}/{version}/vmlinuz", "", _options_without_loader(files))


def _options_without_loader(files: Files) -> str:
    """systemd mounts the root anew, to write to it, only if fstab has it."""
    lines = [line.split() for line in (files.text("/etc/fstab") or "").splitlines() if not line.lstrip().startswith("#")]
    return "ro" if any(len(fields) > 1 and fields[1] == "/" for fields in lines) else "rw"


def _kernel_of(entry: BootEntry, place: _Place, places: list[_Place], path: str) -> tuple[str, _Place]:
    """The kernel's path, and the place that has it: what an entry names may lie in another file system than the entry."""
    for one in (place, *places):
        kernel = _path_of(entry.kernel, one)
        size = one.files.size(kernel)
        if size is not None:
            if size > KERNEL_MAX_BYTES:
                raise ConfigError(f"{path}: its kernel {entry.kernel} has {size} bytes")
            return kernel, one
    raise ConfigError(f"{path}: the boot entry {quoted(entry.title)} names the kernel {entry.kernel}, which is not there")


def _path_of(name: str, place: _Place) -> str:
    """A boot loader's path in the file system of `place`: with /boot, where that is a folder of it and not said."""
    name = posixpath.normpath(f"/{name.lstrip('/')}")
    return name if name.startswith(place.folder) else posixpath.join(place.folder, name.lstrip("/"))


def _os_release(files: Files) -> dict[str, str]:
    for path in _OS_RELEASE:
        text = files.text(path)
        if text:
            pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
            found = {key.strip(): value.strip().strip("\"'") for key, value in pairs}
            return {key: "".join(one for one in value if one.isprintable())[:100] for key, value in found.items()}
    return {}


def _systemd_version(files: Files) -> int:
    for folder in _SYSTEMD_FOLDERS:
        for name in files.names(folder):
            found = _SHARED.match(name)
            if found:
                return int(found[1])
    return 0


def _root_word(image: Image, root: Partition | None, has_initramfs: bool) -> str:
    if root is not None:
        return f"root=PARTUUID={root.partuuid}"
    # The kernel itself knows partitions only; udev, in an initramfs, file systems too.
    return f"root=UUID={file_systems.ext4_uuid(image.fd, 0)}" if has_initramfs else "root=/dev/vda"


def _cmdline(entry: BootEntry, root: str) -> str:
    words = [word for word in entry.options.split() if not _DROPPED.match(word)]
    if not any(word in ("ro", "rw") for word in words):
        words.insert(0, "ro")
    return " ".join(["console=ttyS0", root, *words])
