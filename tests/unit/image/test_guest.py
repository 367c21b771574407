"""The system of a whole image: where it lies, what starts it, and the sentence where that cannot be known."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import pytest
from support.disk_images import (
    BOOT,
    DATA,
    ESP,
    GRUB_CFG,
    INITRD,
    KERNEL,
    MIB,
    OWN,
    ROOT,
    Part,
    disk,
    ext4,
    fat,
    gpt,
    system,
    write_tree,
)

from vmservice.errors import ConfigError, VmmError
from vmservice.image import tools
from vmservice.image.guest import Guest, look_into, take
from vmservice.image.tools import Image

PARTUUID = f"root=PARTUUID={OWN}"
FEDORA = "title Fedora\nversion 6.8\nlinux /vmlinuz-6.8\ninitrd /initramfs-6.8.img\noptions root=UUID=1 ro rhgb console=tty0\n"


def looked_into(path: Path) -> tuple[Guest, bytes, bytes]:
    """(guest, its kernel, its initramfs)."""
    fd = os.open(path, os.O_RDONLY)
    try:
        guest = look_into(Image(fd, str(path), path.stat().st_size))
        taken = []
        for name in (guest.kernel, guest.initrd):
            file = os.memfd_create("taken")
            if name:
                take(guest, name, file)
            taken.append(os.pread(file, 1 << 24, 0))
            os.close(file)
        return guest, taken[0], taken[1]
    finally:
        os.close(fd)


def refusal(path: Path) -> str:
    with pytest.raises(VmmError) as caught:
        looked_into(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files_of(folder: Path, number: int, files: Mapping[str, bytes | str]) -> bytes:
    place = folder / str(number)
    place.mkdir()
    return ext4(place, files)


def test_a_debian_with_grub(tmp_path: Path) -> None:
    guest, kernel, initrd = looked_into(disk(tmp_path))
    assert (kernel, initrd) == (KERNEL, INITRD)
    assert guest.cmdline == f"console=ttyS0 {PARTUUID} ro quiet"
    assert guest.source == "grub.cfg of /boot: Debian GNU/Linux"
    assert (guest.pretty_name, guest.os_id) == ("Debian GNU/Linux 13 (trixie)", "debian")
    assert (guest.systemd, guest.has_cloud_init, guest.has_sshd) == (257, False, True)
    assert guest.root is not None and guest.root.offset == MIB


def test_a_system_without_a_boot_loader_starts_the_newest_kernel(tmp_path: Path) -> None:
    files = system() | {"/boot/grub/grub.cfg": "", "/boot/vmlinuz-6.2": b"old", "/boot/vmlinuz-6.13.old": b"old"}
    guest, kernel, initrd = looked_into(disk(tmp_path, files))
    assert (kernel, initrd) == (KERNEL, INITRD)
    assert (guest.kernel, guest.initrd) == ("/boot/vmlinuz-6.12", "/boot/initrd.img-6.12")
    assert guest.cmdline == f"console=ttyS0 {PARTUUID} rw", "nothing would mount it anew"
    guest, _, _ = looked_into(disk(tmp_path / "b", files | {"/etc/fstab": "# /\nUUID=1 / ext4 defaults 0 1\n"}))
    assert guest.cmdline == f"console=ttyS0 {PARTUUID} ro"


def test_a_kernel_that_nothing_has_copied_to_boot(tmp_path: Path) -> None:
    modules = {f"/usr/lib/modules/{version}/vmlinuz": KERNEL + version.encode() for version in ("6.9", "6.10")}
    guest, kernel, _ = looked_into(disk(tmp_path, {"/usr/lib/os-release": "ID=x\n", **modules, "/usr/lib/modules/7/dep": ""}))
    assert (kernel, guest.initrd) == (KERNEL + b"6.10", "")
    assert guest.source == "/usr/lib/modules: the newest kernel"


DISSECT = """\
#!/bin/sh
# Stands for systemd-dissect, of an image whose files are in a folder.
cd "{tree}"
case "$1" in
--list) find . -mindepth 1 ;;
--copy-from) exec cat "./$3" ;;
esac
"""


def xfs_disk(folder: Path, *parts: Part) -> Path:
    return gpt(folder / "disk", [*parts, Part(ROOT, b"XFSB", 4 * MIB)])


@pytest.fixture
def dissect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program in a folder of its own, which comes first."""
    program = tmp_path / "bin/systemd-dissect"
    program.parent.mkdir()
    monkeypatch.setattr(tools, "_PATH", f"{program.parent}:{tools._PATH}")
    monkeypatch.setitem(tools._ENVIRONMENT, "PATH", tools._PATH)
    return program


def test_xfs_by_systemd_dissect(tmp_path: Path, dissect: Path) -> None:
    dissect.write_text(DISSECT.format(tree=write_tree(tmp_path / "tree", system())))
    dissect.chmod(0o755)
    guest, kernel, initrd = looked_into(xfs_disk(tmp_path))
    assert (kernel, initrd) == (KERNEL, INITRD)
    assert (guest.pretty_name, guest.systemd, guest.has_sshd) == ("Debian GNU/Linux 13 (trixie)", 257, True)
    assert (guest.has_cloud_init, guest.cmdline) == (False, f"console=ttyS0 {PARTUUID} ro quiet")


def test_systemd_dissect_that_cannot(tmp_path: Path, dissect: Path) -> None:
    dissect.write_text("#!/bin/sh\necho 'Failed to mount image: Operation not permitted' >&2\nexit 1\n")
    dissect.chmod(0o755)
    assert "cannot be read by systemd-dissect: Failed to mount image: Operation not perm" in refusal(xfs_disk(tmp_path))


def test_a_root_that_cannot_be_read_with_a_boot_partition_that_can(tmp_path: Path, dissect: Path) -> None:
    """As Fedora's cloud images: btrfs, and /boot in ext4. What is not known of the root is taken to be as there."""
    dissect.write_text("#!/bin/sh\nexit 1\n")
    dissect.chmod(0o755)
    files: dict[str, bytes | str] = {"/loader/entries/id-6.8.conf": FEDORA, "/vmlinuz-6.8": KERNEL}
    files["/initramfs-6.8.img"] = INITRD
    boot = files_of(tmp_path, 1, files)
    guest, kernel, initrd = looked_into(xfs_disk(tmp_path, Part(BOOT, boot, len(boot), uuid.UUID(int=7))))
    assert (kernel, initrd) == (KERNEL, INITRD)
    assert guest.cmdline == f"console=ttyS0 {PARTUUID} ro rhgb"
    assert (guest.pretty_name, guest.systemd, guest.has_cloud_init, guest.has_sshd) == ("Fedora", 0, True, True)


def test_boot_as_a_partition_of_its_own(tmp_path: Path) -> None:
    """Paths in its entries begin at its own top."""
    root = files_of(tmp_path, 1, {"/usr/lib/os-release": "NAME=Fedora\n", "/usr/lib/systemd/libsystemd-shared-255.4-1.so": b""})
    boot = files_of(
        tmp_path,
        2,
        {"/loader/entries/id-6.8.conf": FEDORA, "/vmlinuz-6.8": KERNEL, "/initramfs-6.8.img": INITRD, "/grub2/grubenv": ""},
    )
    path = gpt(tmp_path / "disk", [Part(BOOT, boot, len(boot)), Part(ROOT, root, len(root), uuid.UUID(int=7))])
    guest, kernel, initrd = looked_into(path)
    assert (kernel, initrd) == (KERNEL, INITRD)
    assert guest.cmdline == f"console=ttyS0 root=PARTUUID={uuid.UUID(int=7)} ro rhgb"
    assert guest.source == "partition 1: Fedora"
    assert (guest.pretty_name, guest.systemd, guest.has_sshd) == ("Fedora", 255, False)


def test_entries_on_the_efi_system_partition(tmp_path: Path) -> None:
    root = files_of(tmp_path, 1, {"/etc/os-release": "PRETTY_NAME='Arch'\n"})
    esp = fat(16, {"/vmlinuz-6.8": KERNEL, "/initramfs-6.8.img": INITRD, "/loader/entries/a.conf": FEDORA.encode()})
    path = gpt(tmp_path / "disk", [Part(ESP, esp, 8 * MIB), Part(ROOT, root, len(root))])
    guest, kernel, initrd = looked_into(path)
    assert (kernel, initrd) == (KERNEL, INITRD)
    assert (guest.pretty_name, guest.source) == ("Arch", "partition 1: Fedora")


def test_a_file_system_without_partitions(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(ext4(tmp_path, system()))
    own = uuid.UUID(bytes=path.read_bytes()[0x468:0x478])
    guest, kernel, _ = looked_into(path)
    assert (guest.root, kernel) == (None, KERNEL)
    assert guest.cmdline == f"console=ttyS0 root=UUID={own} ro quiet"


def test_without_an_initramfs_the_kernel_finds_the_disk_itself(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(ext4(tmp_path, system() | {"/boot/grub/grub.cfg": GRUB_CFG.replace("initrd ", "# initrd ")}))
    guest, _, _ = looked_into(path)
    assert (guest.initrd, guest.cmdline) == ("", "console=ttyS0 root=/dev/vda ro quiet")


def test_the_root_is_known_by_its_type_or_by_its_os_release(tmp_path: Path) -> None:
    other = files_of(tmp_path, 1, {"/etc/passwd": "x"})
    root = files_of(tmp_path, 2, system())
    path = gpt(tmp_path / "disk", [Part(DATA, other, len(other), uuid.UUID(int=1)), Part(DATA, root, len(root))])
    guest, _, _ = looked_into(path)
    assert guest.root is not None and guest.root.number == 2


@pytest.mark.parametrize(
    ("magic", "place", "words"),
    [
        (b"XFSB", 0, "partition 1 is xfs, and kernels are taken out of ext4, or by root with systemd-dissect"),
        (b"_BHRfS_M", 0x10040, "partition 1 is btrfs"),
        (b"LUKS\xba\xbe", 0, "partition 1 is luks, which is not looked into; write the configuration by hand"),
        (b"", 0, "no partition has a Linux system with /etc/os-release; it has the partitions 1 (unknown)"),
    ],
)
def test_what_cannot_be_looked_into(tmp_path: Path, magic: bytes, place: int, words: str) -> None:
    content = bytes(place) + magic
    assert words in refusal(gpt(tmp_path / "disk", [Part(ROOT, content, 4 * MIB)]))


def test_a_disk_with_nothing(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(MIB))
    assert "neither a partition table nor a file system" in refusal(tmp_path / "disk")
    (tmp_path / "iso").write_bytes(bytes(0x8001) + b"CD001" + bytes(4096))
    assert "is a medium that installs a system" in refusal(tmp_path / "iso")
    hybrid = gpt(tmp_path / "hybrid", [Part(ESP, fat(16, {}), 8 * MIB)])
    with hybrid.open("r+b") as file:
        file.seek(0x8001)
        file.write(b"CD001")
    assert "is a medium that installs a system" in refusal(hybrid)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"/etc/os-release": "ID=x\n"}, "its system has no kernel in /boot; an image for a container has none"),
        (
            {"/etc/os-release": "ID=x\n", "/boot/grub/grub.cfg": GRUB_CFG},
            "names the kernel /boot/vmlinuz-6.12, which is not there",
        ),
        (
            {"/etc/os-release": "ID=x\n", "/boot/grub/grub.cfg": GRUB_CFG, "/boot/vmlinuz-6.12": KERNEL},
            "names the initramfs /boot/initrd.img-6.12, which is not there",
        ),
    ],
)
def test_a_system_that_cannot_be_started(tmp_path: Path, files: Mapping[str, bytes | str], words: str) -> None:
    assert words in refusal(disk(tmp_path, files))


def test_a_damaged_table_is_named_with_the_image(tmp_path: Path) -> None:
    path = disk(tmp_path)
    with path.open("r+b") as file:
        file.seek(1024 + 5)
        file.write(b"\xff")
    assert "GUID partition table is damaged" in refusal(path)


def test_a_kernel_that_cannot_be_read_whole(tmp_path: Path) -> None:
    fd = os.open(disk(tmp_path), os.O_RDONLY)
    guest = look_into(Image(fd, "disk", os.fstat(fd).st_size))
    target = os.memfd_create("taken")
    os.write(target, b"more")
    try:
        with pytest.raises(VmmError, match=f"only {len(KERNEL) + 4} of {len(KERNEL)} bytes"):
            take(guest, guest.kernel, target)
    finally:
        os.close(target)
        os.close(fd)
    assert isinstance(guest, Guest)


def test_names_of_an_image_reach_nobodys_terminal(tmp_path: Path) -> None:
    files = system() | {"/usr/lib/os-release": 'PRETTY_NAME="x\x1b[31mred"\n'}
    assert looked_into(disk(tmp_path, files))[0].pretty_name == "x[31mred"
    with pytest.raises(ConfigError) as caught:
        looked_into(disk(tmp_path / "b", system() | {"/boot/grub/grub.cfg": GRUB_CFG.replace("vmlinuz-6.12", "vm\x1b[31m")}))
    assert "\x1b" not in str(caught.value)
