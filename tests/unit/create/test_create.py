"""`vmservice create`, as a person runs it, and what it leaves when it does not come to its end."""

from __future__ import annotations

import errno
import gc
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from support.disk_images import INITRD, KERNEL, MIB, OWN, disk, system, write_tree
from unit.create.conftest import KEY, left

from vmservice.cli import main
from vmservice.config.load import load_config
from vmservice.config.sections.cloud_init import CloudInitDevice
from vmservice.create import places, ways
from vmservice.create.configuration import Shape
from vmservice.create.create import Options, create
from vmservice.create.places import Place
from vmservice.create.undo import Interrupted
from vmservice.create.ways import Network
from vmservice.errors import HostError
from vmservice.image.ext4 import Ext4
from vmservice.image.guest import look_into
from vmservice.image.partitions import read_partitions
from vmservice.image.tools import Account, Image

MADE = [f"state/vmservice/web/{name}" for name in ("created.json", "initrd.img", "root.raw", "vmlinuz")]
ALL = ["config/vmservice/web.toml", *MADE]


def run(*words: str) -> int:
    return main(["create", "web", "--user", "--memory", "64M", "--network", "none", *words])


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    status = run(*words)
    said = capsys.readouterr()
    assert said.out == ""
    return status, said.err


def test_an_image_becomes_a_vm(home: Path, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--image", str(image)) == 0
    said = capsys.readouterr()
    folder = home / "state/vmservice/web"
    assert left(home) == ALL
    assert (folder / "vmlinuz").read_bytes() == KERNEL
    assert (folder / "initrd.img").read_bytes() == INITRD
    assert (folder / "root.raw").read_bytes() == image.read_bytes()
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    config = load_config("web", str(home / "config/vmservice/web.toml"))
    assert config.kernel is not None
    assert config.kernel.cmdline == f"console=ttyS0 root=PARTUUID={OWN} ro quiet"
    assert (config.serial.mode, config.serial.log) == ("socket", "journal")
    assert config.memory.size_bytes == 64 * MIB
    assert [(one.name, one.value) for one in config.credentials] == [("ssh.authorized_keys.root", KEY.encode())]
    assert "web is made: Debian GNU/Linux 13 (trixie), a disk of 9 MiB" in said.out
    assert "systemctl --user start vm@web" in said.out
    assert f"SSH key         {home}/.ssh/id_ed25519.pub" in said.out
    assert "copy: " in said.err


def test_a_qcow2_becomes_raw(home: Path, image: Path, tmp_path: Path) -> None:
    qcow2 = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", image, qcow2], check=True)
    assert run("--image", str(qcow2), "--size", "64M", "--cpus", "3") == 0
    made = home / "state/vmservice/web/root.raw"
    data, original = made.read_bytes(), image.read_bytes()
    # Behind the first megabyte all is as it was, but for the table's backup.
    assert data[MIB : 9 * MIB] == original[MIB : 9 * MIB]
    assert len(data) == 64 * MIB
    assert made.stat().st_blocks * 512 < 16 * MIB
    fd = os.open(made, os.O_RDONLY)
    (root,) = read_partitions(fd, len(data))
    os.close(fd)
    assert root.size_bytes > 62 * MIB
    config = load_config("web", str(home / "config/vmservice/web.toml"))
    assert config.cpus.boot == 3


TREE: dict[str, bytes | str] = {
    "/usr/lib/os-release": "PRETTY_NAME='My own'\n",
    "/boot/vmlinuz-6.1": KERNEL,
    "/usr/share/file": b"x" * 5000,
}


def root_only() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root reads a tree as it is")


def test_a_disk_of_the_files_of_a_root(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root_only()
    tree = write_tree(tmp_path / "tree", TREE)
    assert run("--from-root", str(tree), "--size", "64M") == 0
    folder = home / "state/vmservice/web"
    assert (folder / "vmlinuz").read_bytes() == KERNEL
    assert not (folder / "initrd.img").exists()
    assert (folder / "root.raw").stat().st_size == 64 * MIB
    with (folder / "root.raw").open("rb") as file:
        (root,) = read_partitions(file.fileno(), 64 * MIB)
        files = Ext4(Image(file.fileno(), "disk", 64 * MIB), root.offset)
        assert files.text("/usr/share/file") == "x" * 5000
    config = load_config("web", str(home / "config/vmservice/web.toml"))
    assert config.kernel is not None
    assert config.kernel.cmdline == f"console=ttyS0 root=PARTUUID={root.partuuid} rw"
    said = capsys.readouterr().out
    assert "web is made: My own, a disk of 64 MiB" in said
    assert "there is no initramfs: the kernel must have virtio_pci" in said


def test_a_root_that_does_not_fit_leaves_nothing(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root_only()
    tree = write_tree(tmp_path / "tree", TREE | {"/usr/large": os.urandom(9 * MIB)})
    status, said = refused(capsys, "--from-root", str(tree), "--size", "8M")
    assert (status, left(home)) == (71, [])
    assert f"no disk of 8 MiB can be made of {tree}: " in said


def test_a_tar_without_the_library_that_reads_it(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As mke2fs of Debian 13 says it."""
    with tarfile.open(tmp_path / "root.tar", "w") as tar:
        tar.add(write_tree(tmp_path / "tree", TREE), arcname=".")

    def mke2fs(line: list[str], *_: object, **__: object) -> subprocess.CompletedProcess[bytes]:
        if "-V" in line:
            return subprocess.CompletedProcess(line, 0, b"", b"mke2fs 1.47.2 (1-Jan-2025)")
        said = (
            b"__populate_fs_from_tar: you need libarchive to be able to process tarballs\n\nmke2fs: Operation not permitted\n"
        )
        return subprocess.CompletedProcess(line, 1, b"", said)

    monkeypatch.setattr("vmservice.create.from_root.tools.run", mke2fs)
    status, said = refused(capsys, "--from-root", str(tmp_path / "root.tar"), "--size", "64M")
    assert (status, left(home)) == (69, [])
    assert "by libarchive, which is not there: install libarchive13t64" in said


def test_a_tree_is_roots_to_read(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path / "tree", TREE)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert run("--from-root", str(tmp_path / "tree")) == 77
    assert left(home) == []


def test_a_tar_where_mke2fs_takes_one(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = write_tree(tmp_path / "tree", TREE)
    with tarfile.open(tmp_path / "root.tar", "w") as tar:
        tar.add(tree, arcname=".")
    status = run("--from-root", str(tmp_path / "root.tar"), "--size", "64M")
    said = capsys.readouterr()
    if status == 69:
        assert "takes mke2fs 1.47.1" in said.err
        return
    assert status == 0
    assert (home / "state/vmservice/web/vmlinuz").read_bytes() == KERNEL


def test_a_vm_of_the_system_is_the_accounts(home: Path, image: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chmod(image, 0o600)
    nobody = Account("nobody", 65534, 65534)
    place = Place("web", False, str(tmp_path / "etc/web.toml"), str(tmp_path / "lib/web"), nobody)
    create(place, Options(str(image), None, 0, Shape(None, "64M"), Network("tap"), None, None))
    folder = tmp_path / "lib/web"
    assert {path.stat().st_uid for path in (folder, *folder.iterdir())} == {65534}
    assert folder.stat().st_mode & 0o777 == 0o700
    config = tmp_path / "etc/web.toml"
    assert (config.stat().st_uid, config.stat().st_mode & 0o777) == (0, 0o644)
    assert load_config("web", str(config)).kernel is not None


def test_an_empty_folder_of_an_earlier_start_is_no_hindrance(home: Path, image: Path) -> None:
    (home / "state/vmservice/web").mkdir(parents=True)
    assert run("--image", str(image)) == 0
    assert left(home) == ALL


def test_what_a_killed_create_left_is_removed(home: Path, image: Path) -> None:
    scratch = home / "state/vmservice/.web.create"
    scratch.mkdir(parents=True)
    (scratch / "root.raw").write_bytes(b"half")
    assert run("--image", str(image)) == 0
    assert left(home) == ALL


def test_names_in_an_image_and_of_folders_are_quoted(home: Path, tmp_path: Path) -> None:
    place = tmp_path / 'a "b" \\ c'
    files = system() | {"/usr/lib/os-release": 'PRETTY_NAME="x" # "y" \\\n'}
    assert run("--image", str(disk(place, files))) == 0
    assert tomllib.loads((home / "config/vmservice/web.toml").read_text())["kernel"]["path"].endswith("/vmlinuz")


def test_an_image_with_cloud_init_gets_a_disk_for_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here one whose systemd knows no credentials yet, on a host without vsocks: all comes by cloud-init."""
    monkeypatch.setattr(ways, "_VHOST_VSOCK", "/nowhere")
    monkeypatch.setattr(ways, "is_there", lambda program: True)
    monkeypatch.setattr("vmservice.host.passt.PASST", "/bin/true")
    files = system() | {
        "/usr/bin/cloud-init": b"#!python",
        "/usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-257.so": "-> x",
    }
    files["/usr/lib/systemd/libsystemd-shared-247.so"] = files.pop("/usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-257.so")
    image = disk(tmp_path / "image", files)
    assert run("--image", str(image), "--network", "passt", "--size", "32M") == 0
    folder = home / "state/vmservice/web"
    assert left(home) == sorted([*ALL, "state/vmservice/web/user-data"])
    config = load_config("web", str(home / "config/vmservice/web.toml"))
    (device,) = (one for one in config.devices if isinstance(one, CloudInitDevice))
    assert (device.user_data, device.keys) == (f"{folder}/user-data", KEY)
    assert "disable_root: false" in (folder / "user-data").read_text()
    said = capsys.readouterr().out
    assert "vmservice ssh --user debian@web" in said
    assert "resize2fs" not in said, "cloud-init does that"
    assert main(["delete", "web", "--user", "--yes"]) == 0
    (tmp_path / "mine").write_text("#cloud-config\npackages: [hello]\n")
    assert run("--image", str(image), "--user-data", str(tmp_path / "mine")) == 0
    assert (folder / "user-data").read_text() == "#cloud-config\npackages: [hello]\n"


def test_user_data_without_cloud_init_is_said(
    home: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "user-data").write_text("#cloud-config\n")
    (home / ".ssh/id_ed25519.pub").unlink()
    assert run("--image", str(image), "--user-data", str(tmp_path / "user-data")) == 0
    said = capsys.readouterr().out
    assert "--user-data is left out: the image has no cloud-init" in said
    assert "no SSH key was found" in said
    assert "vmservice ssh" not in said.partition("What to do next")[2]
    assert "[credentials]" not in (home / "config/vmservice/web.toml").read_text()


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (("--image", "/nowhere"), 78, "--image: /nowhere does not exist"),
        (("--image", "/dev/null"), 78, "--image: /dev/null is a character device"),
        (("--image", "IMAGE", "--size", "1M"), 64, "--size 1 MiB is less than the image, which is a disk of 9 MiB"),
        (("--image", "IMAGE", "--size", "20 G"), 64, "--size 20 G is no size; expected"),
        (("--image", "IMAGE", "--size", "100001"), 64, "--size 100001 is no multiple of 1M"),
        (("--image", "IMAGE", "--from-root", "/"), 64, "argument --from-root: not allowed with argument --image"),
        (("--from-root", "/nowhere"), 78, "--from-root: /nowhere cannot be read: No such file or directory"),
        (("--from-root", "/dev/null"), 78, "--from-root: /dev/null is neither a folder nor a tar"),
        (("--from-root", "/proc"), 78, "--from-root: /proc is no root of a system: it has no folder usr"),
        (("--image", "IMAGE", "--cpus", "0"), 64, "no VM can have 0 vCPUs"),
        (("--image", "IMAGE", "--memory", "1"), 64, "--memory 1 is too little"),
        (("--image", "IMAGE", "--network", "lan"), 64, "--network lan is none of passt, tap"),
        (("--image", "IMAGE", "--ssh-key", "/nowhere"), 78, "the SSH key /nowhere does not exist"),
        (("--image", "IMAGE", "--user-data", "/nowhere"), 78, "the user data /nowhere does not exist"),
        (("--image", "IMAGE", "--memory", "5000T"), 78, 'web.toml: memory.size is "5000T"'),
        ((), 64, "one of the arguments --image --from-root is required"),
    ],
)
def test_what_is_refused_leaves_nothing(
    home: Path, image: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], status: int, sentence: str
) -> None:
    got, said = refused(capsys, *(word.replace("IMAGE", str(image)) for word in words))
    assert (got, left(home)) == (status, [])
    assert sentence in said
    assert not list((home / "state").rglob(".*"))


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"\xfd7zXZ\0", "is compressed with xz; unpack it with xz -d first"),
        (b"KDMV", "is an image in vmdk; convert it"),
        (
            b"QFI\xfb\0\0\0\2" + (99).to_bytes(8, "big") + bytes(8) + (MIB).to_bytes(8, "big"),
            "has a part of its data in another file",
        ),
        (b"", "neither a partition table nor a file system"),
    ],
)
def test_files_that_are_no_disk_are_not_even_copied(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], head: bytes, words: str
) -> None:
    monkeypatch.setattr("vmservice.create.copy.copy", None)
    (tmp_path / "x").write_bytes(head + bytes(2 * MIB))
    status, said = refused(capsys, "--image", str(tmp_path / "x"))
    assert (status, left(home)) == (78, [])
    assert words in said


def test_a_backing_file_is_not_followed(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It could name any file of the host, and root is who creates VMs."""
    (tmp_path / "secret").write_bytes(b"secret" * 1000)
    line: list[str | Path] = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", tmp_path / "secret", "-F", "raw", tmp_path / "x"]
    subprocess.run(line, check=True)
    status, said = refused(capsys, "--image", str(tmp_path / "x"))
    assert (status, left(home)) == (78, [])
    assert "has a part of its data in another file" in said


@pytest.mark.parametrize(("mode", "uid"), [(0o644, 65534), (0o600, 0)])
def test_qemu_img_is_the_vms_account_where_that_may_read_the_image(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, uid: int
) -> None:
    root_only()
    qcow2 = tmp_path / "x"
    qcow2.write_bytes(b"QFI\xfb\0\0\0\2" + bytes(16) + MIB.to_bytes(8, "big") + bytes(1000))
    qcow2.chmod(mode)
    tools = Path(tempfile.mkdtemp())
    tools.chmod(0o755)
    fake = tools / "qemu-img"
    fake.write_text('#!/bin/sh\nid -u >&2\nfor file; do :; done\nexec 3<> "$file" && exit 1\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    place = Place("web", False, str(tmp_path / "etc/web.toml"), str(tmp_path / "lib/web"), Account("nobody", 65534, 65534))
    with pytest.raises(HostError, match=f"cannot be converted: {uid}$"):
        create(place, Options(str(qcow2), None, 0, Shape(None, "64M"), Network("tap"), None, None))
    shutil.rmtree(tools)


def test_a_vm_that_is_there_stays(home: Path, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = home / "config/vmservice/web.toml"
    config.parent.mkdir()
    config.write_text("mine")
    status, said = refused(capsys, "--image", str(image))
    assert (status, config.read_text()) == (78, "mine")
    assert "there is a VM web already" in said
    config.unlink()
    (home / "state/vmservice/web").mkdir(parents=True)
    (home / "state/vmservice/web/mine").write_text("mine")
    status, said = refused(capsys, "--image", str(image))
    assert (status, left(home)) == (78, ["state/vmservice/web/mine"])
    assert 'has files of an earlier VM, such as "mine"; move that away' in said


def test_two_at_once(home: Path, image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The second one neither disturbs the first nor clears up behind it."""
    real = os.copy_file_range
    second: list[int] = []

    def copy(*arguments: Any) -> int:
        if not second:
            second.append(0)
            second[0] = run("--image", str(image))
        return real(*arguments)

    monkeypatch.setattr("vmservice.create.copy._clone", lambda source, target: False)
    monkeypatch.setattr(os, "copy_file_range", copy)
    assert run("--image", str(image)) == 0
    assert second == [69]
    assert "another `vmservice create web` is under way" in capsys.readouterr().err
    assert left(home) == ALL


def test_a_full_disk_leaves_nothing(
    home: Path, image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vmservice.create.copy._clone", lambda source, target: False)
    monkeypatch.setattr(os, "copy_file_range", full)
    status, said = refused(capsys, "--image", str(image))
    assert (status, left(home)) == (71, [])
    assert f"{image} cannot be copied: No space left on device (errno 28)" in said


class Interrupter:
    """Interrupts the work at its N-th entry into, or return from, a function of C: before and behind each system call."""

    def __init__(self, at: int) -> None:
        self._left = at

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if not event.startswith("c_") or "/vmservice/create/" not in frame.f_code.co_filename:
            return
        if frame.f_code.co_filename.endswith("/undo.py"):
            return
        self._left -= 1
        if self._left == 0:
            sys.setprofile(None)
            raise Interrupted


def open_fds() -> set[int]:
    """Without that of the look itself."""
    return {int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")}


def interrupted(work: Callable[[], object], at: int) -> bool:
    """Descriptors that the interruption took before they had a name are closed, as the process' end would do."""
    before = open_fds()
    sys.setprofile(Interrupter(at))
    try:
        work()
    except Interrupted:
        return True
    finally:
        sys.setprofile(None)
        gc.collect()
        for fd in open_fds() - before:
            os.close(fd)
    return False


# A file object that is interrupted between its open and its `with`.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.long)])
def test_interrupted_at_any_moment_it_leaves_nothing_or_all(
    home: Path, image: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """What takes long and makes nothing has been done before: the looks into the image."""
    fd = os.open(image, os.O_RDONLY)
    guest = look_into(Image(fd, str(image), image.stat().st_size))
    os.close(fd)
    monkeypatch.setattr("vmservice.create.create.look_into", lambda image: guest)
    monkeypatch.setattr("vmservice.create.create.take", lambda guest, path, output: os.write(output, KERNEL))
    place = places.place_of("web", user=True)
    asked = Options(str(image), None, 0, Shape(None, "64M"), Network("none"), None, None)
    moments = random.randrange(step)
    while interrupted(lambda: create(place, asked), moments + 1):
        moments += step
        there = left(home)
        assert there in ([], ALL), f"at moment {moments}"
        assert not list((home / "state/vmservice").glob(".*")) if (home / "state/vmservice").exists() else True
        if there:
            for name in there:
                (home / name).unlink()
    assert moments > 100
    assert left(home) == ALL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_another_program_works(home: Path, image: Path, tmp_path: Path, number: signal.Signals) -> None:
    qcow2 = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", image, qcow2], check=True)
    tools = tmp_path / "tools"
    tools.mkdir()
    fake = tools / "qemu-img"
    fake.write_text(f"#!/bin/sh\nkill -{int(number)} $PPID\nexec sleep 60\n")
    fake.chmod(0o755)
    words = ["-m", "vmservice", "create", "web", "--user", "--image", str(qcow2)]
    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.endswith("vmservice: interrupted; nothing is changed\n")
    assert left(home) == []


def test_a_file_that_comes_meanwhile_stays(home: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = home / "config/vmservice/web.toml"
    real = os.link

    def link(source: str, target: str) -> None:
        config.write_text("mine")
        real(source, target)

    monkeypatch.setattr(os, "link", link)
    assert run("--image", str(image)) == 78
    assert left(home) == ["config/vmservice/web.toml"]
    assert config.read_text() == "mine"


def test_without_room_in_the_folder_of_configurations(home: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", source)

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(HostError, match=r"cannot write .*No space left"):
        place = places.place_of("web", user=True)
        create(place, Options(str(image), None, 0, Shape(None, "64M"), Network("none"), None, None))
    assert left(home) == []


def test_of_the_system_only_root_makes_one(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["create", "web", "--image", "/nowhere"]) == 77
    assert "/etc/vmservice/web.toml is root's: run this as root, or with --user" in capsys.readouterr().err
