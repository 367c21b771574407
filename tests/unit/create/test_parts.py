"""The parts of `create` by themselves: the progress, the copy, keys, networks, and the ways to a guest."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest
from unit.create.conftest import KEY

from vmservice.create import copy, keys, ways
from vmservice.create.configuration import Shape, configuration, toml_string
from vmservice.create.places import Place
from vmservice.create.progress import Progress, human
from vmservice.create.ways import Network, Ways, read_network, ways_to
from vmservice.errors import ConfigError, HostError, HostFacilityMissing, UsageError
from vmservice.image.guest import Guest

MIB = 1 << 20


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_the_progress_is_a_line_now_and_then() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = Progress("copy", 100 * MIB, stream, clock)
    for second in range(1, 11):
        clock.now = second
        progress.at(second * 10 * MIB)
    progress.end()
    assert stream.getvalue().splitlines() == [
        "copy:  50% 50 MiB of 100 MiB, 10 MiB/s, 5 s left",
        "copy: 100% 100 MiB of 100 MiB, 10 MiB/s, 0 s left",
        "copy: 100 MiB in 10.0 s, 10 MiB/s",
    ]


def test_on_a_terminal_it_is_one_line_drawn_anew() -> None:
    clock, stream = Clock(), Terminal()
    progress = Progress("copy", 1000 * MIB, stream, clock)
    clock.now = 0.01
    progress.at(MIB)
    assert stream.getvalue() == "", "not ten thousand times a second"
    clock.now = 1
    progress.at(4 * MIB)
    clock.now = 2
    progress.at(500 * MIB)
    progress.abandon()
    first, second = stream.getvalue().split("\r")[1:]
    assert first == f"copy:   0% [{'.' * 24}] 4 MiB of 1000 MiB, 4 MiB/s, 4 min left\x1b[K"
    assert second == f"copy:  50% [{'#' * 12}{'.' * 12}] 500 MiB of 1000 MiB, 250 MiB/s, 2 s left\x1b[K\n"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1536, "1.5 KiB"),
        (1 << 30, "1 GiB"),
        (10 * MIB + 1, "10 MiB"),
        (5 << 40, "5.0 TiB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert human(size) == text


def holes(path: Path) -> Path:
    """A megabyte at 1 MiB and one at 9 MiB, of 20; and the magic number of a swap area, at the end of the first page."""
    with path.open("wb") as file:
        file.truncate(20 * MIB)
        file.seek(4086)
        file.write(b"SWAPSPACE2")
        for place in (1, 9):
            file.seek(place * MIB)
            file.write(os.urandom(MIB))
    return path


@pytest.mark.parametrize("fault", [None, errno.EXDEV, errno.EINVAL])
def test_a_copy_is_whole_and_keeps_its_holes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int | None) -> None:
    original = holes(tmp_path / "a")

    def refuse(*arguments: Any) -> int:
        assert fault is not None
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr(copy, "_clone", lambda source, target: False)
    if fault is not None:
        monkeypatch.setattr(os, "copy_file_range", refuse)
    source = copy.open_source(str(original))
    assert (source.size_bytes, source.stored_bytes) == (20 * MIB, 2 * MIB + 4096)
    with (tmp_path / "b").open("w+b") as target:
        copy.copy(source, target.fileno())
    source.close()
    assert (tmp_path / "b").read_bytes() == original.read_bytes()
    assert (tmp_path / "b").stat().st_blocks * 512 <= 3 * MIB


def test_no_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Room:
        f_bavail, f_frsize = 1, 4096

    monkeypatch.setattr(copy, "_clone", lambda source, target: False)
    monkeypatch.setattr(os, "fstatvfs", lambda fd: Room)
    source = copy.open_source(str(holes(tmp_path / "a")))
    with (
        (tmp_path / "b").open("w+b") as target,
        pytest.raises(HostError, match=r"there is no room: the image takes 2 MiB, and 4 KiB are free"),
    ):
        copy.copy(source, target.fileno())
    source.close()
    assert (tmp_path / "b").stat().st_blocks == 0


def test_qemu_img_says_why_it_cannot(tmp_path: Path) -> None:
    head = b"QFI\xfb\0\0\0\2" + bytes(16) + MIB.to_bytes(8, "big")
    (tmp_path / "a").write_bytes(head + bytes(1000))
    source = copy.open_source(str(tmp_path / "a"))
    with (tmp_path / "b").open("w+b") as target, pytest.raises(HostError, match="cannot be converted: qemu-img: "):
        copy.copy(source, target.fileno())
    source.close()


def test_an_image_that_somebody_writes_to_is_not_copied(tmp_path: Path) -> None:
    from vmservice.host.storage import Image

    path = holes(tmp_path / "a")
    writer = Image(str(path), "disk", writable=True)
    with pytest.raises(Exception, match="--image is in use"):
        copy.open_source(str(path))
    writer.close()


def test_the_key_is_the_best_of_the_callers(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert keys.find_key(None) == (KEY, f"{home}/.ssh/id_ed25519.pub")
    (home / ".ssh/id_ed25519.pub").rename(home / ".ssh/id_rsa.pub")
    assert keys.find_key(None) == (KEY, f"{home}/.ssh/id_rsa.pub")
    (home / ".ssh/id_rsa.pub").unlink()
    assert keys.find_key(None) == ("", "")
    (tmp_path / "two").write_text(f"# mine\n{KEY}\n\n{KEY}2\n")
    assert keys.find_key(str(tmp_path / "two"))[0] == f"{KEY}\n{KEY}2"


def test_under_sudo_it_is_the_persons(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        pw_dir = str(tmp_path / "person")

    (tmp_path / "person/.ssh").mkdir(parents=True)
    (tmp_path / "person/.ssh/id_ecdsa.pub").write_text(KEY)
    monkeypatch.setenv("SUDO_USER", "person")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("pwd.getpwnam", lambda name: Entry if name == "person" else None)
    assert keys.find_key(None)[1] == f"{tmp_path}/person/.ssh/id_ecdsa.pub"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("-----BEGIN OPENSSH PRIVATE KEY-----\n", r"is the private one, which nobody else is to have; expected .*/key\.pub"),
        ("root:$6$secret\n", "is no public key of OpenSSH"),
        (KEY.replace("ssh-ed25519 ", "ssh-rsa "), "is no public key of OpenSSH"),
        (f"{KEY}\n{KEY}\x1b[31m\n", "is no public key of OpenSSH"),
        ("# nothing\n", "is no public key of OpenSSH"),
    ],
)
def test_what_is_no_key(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "key").write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        keys.find_key(str(tmp_path / "key"))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("passt", Network("passt")),
        ("none", Network("none")),
        ("tap", Network("tap")),
        ("tap=vt-web", Network("tap", "vt-web")),
        ("bridge=br0", Network("bridge", "br0")),
    ],
)
def test_networks(text: str, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "is_there", lambda program: True)
    assert read_network(text, user=False) == network


def test_a_network_that_cannot_be_is_refused_before_the_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "is_there", lambda program: False)
    with pytest.raises(HostFacilityMissing, match="passt is not installed; Debian has it in the package passt"):
        read_network("passt", user=True)


@pytest.mark.parametrize("text", ["", "bridge", "tap=", "passt=x", "tap=a-name-that-is-too-long", "bridge=a b"])
def test_what_is_no_network(text: str) -> None:
    with pytest.raises(UsageError, match="is none of passt, tap, tap=NAME, bridge=NAME and none"):
        read_network(text, user=False)


def test_the_network_that_needs_least_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "is_there", lambda program: True)
    assert read_network(None, user=True) == read_network(None, user=False) == Network("passt")
    monkeypatch.setattr(ways, "is_there", lambda program: False)
    assert (read_network(None, user=True), read_network(None, user=False)) == (Network("none"), Network("tap"))


def guest(systemd: int, *, cloud_init: bool = False, initrd: str = "/i") -> Guest:
    return Guest(
        pretty_name="Debian",
        os_id="debian",
        source="/boot: Linux",
        files=None,  # type: ignore[arg-type]
        kernel="/k",
        initrd=initrd,
        cmdline="console=ttyS0 ro",
        root=None,
        systemd=systemd,
        has_cloud_init=cloud_init,
        has_sshd=True,
    )


@pytest.fixture
def modern_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vsock").touch()
    monkeypatch.setattr(ways, "_VHOST_VSOCK", str(tmp_path / "vsock"))
    monkeypatch.setattr(ways, "is_there", lambda program: True)


def test_a_new_systemd_is_reached_by_vsock_and_says_that_it_is_ready(modern_host: None, tmp_path: Path) -> None:
    found = ways_to(guest(257), Network("passt"), has_key=True, folder=str(tmp_path), user=False)
    assert found == Ways(Network("passt"), True, True, 0, True, False, "root")


def test_an_older_one_by_a_port_of_the_host_that_no_other_vm_has(modern_host: None, tmp_path: Path) -> None:
    for number in range(2222, 2225):
        (tmp_path / f"{number}.toml").write_text(f'forward = ["127.0.0.1:{number}:22/tcp"]\n')
    found = ways_to(guest(252), Network("passt"), has_key=True, folder=str(tmp_path), user=False)
    assert (found.has_vsock, found.ready_by_guest, found.has_credentials, found.login) == (False, False, True, "root")
    assert found.forward >= 2225


def test_a_guest_that_knows_no_credentials_is_told_by_cloud_init(modern_host: None, tmp_path: Path) -> None:
    found = ways_to(guest(247, cloud_init=True), Network("passt"), has_key=True, folder=str(tmp_path), user=False)
    assert (found.has_credentials, found.has_cloud_init, found.login) == (False, True, "debian")


def test_a_host_without_vsocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "_VHOST_VSOCK", str(tmp_path / "nowhere"))
    found = ways_to(guest(257), Network("passt"), has_key=True, folder=str(tmp_path), user=False)
    assert (found.has_vsock, found.forward > 0) == (False, True)
    assert ways_to(guest(257), Network("tap"), has_key=True, folder=str(tmp_path), user=False).forward == 0


def test_a_user_has_vsocks_only_where_they_may_open_the_device(
    modern_host: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("vsock"))
    for user, has_vsock in ((True, False), (False, True)):
        found = ways_to(guest(257), Network("passt"), has_key=True, folder=str(tmp_path), user=user)
        assert (found.has_vsock, found.forward == 0) == (has_vsock, has_vsock)


MODES = [Network("passt"), Network("tap"), Network("tap", "vt-web"), Network("bridge", "br0"), Network("none")]


@pytest.mark.parametrize("network", MODES)
@pytest.mark.parametrize("systemd", [0, 252, 257])
@pytest.mark.parametrize("user", [False, True])
def test_each_configuration_is_one(tmp_path: Path, network: Network, systemd: int, user: bool) -> None:
    from vmservice.config.load import load_config

    is_new = systemd >= 256
    port = 0 if is_new or network.mode != "passt" else 2222
    found = Ways(network, is_new, is_new, port, has_credentials=systemd >= 252, has_cloud_init=user, login="root")
    place = Place("web", user, str(tmp_path / "web.toml"), str(tmp_path / "web"), None)
    (tmp_path / "web.toml").write_text(configuration(place, guest(systemd), found, Shape(2, "1G"), image="/a b", keys=KEY))
    config = load_config("web", str(tmp_path / "web.toml"))
    kinds = [one.kind for one in config.devices]
    assert ("network" in kinds) == (network.mode != "none")
    assert ("vsock" in kinds) == config.service.ready_by_guest == is_new
    assert len(config.credentials) == (systemd >= 252 or user)
    assert ("cloud-init" in kinds) == user
    assert config.kernel is not None and config.kernel.initramfs == str(tmp_path / "web/initrd.img")


@pytest.mark.parametrize("text", ["plain", 'a "b"', "back\\slash", "tab\t", "del\x7f", "Grüße \U0001f600", "a\nb"])
def test_strings_of_toml(text: str) -> None:
    import tomllib

    assert tomllib.loads(f"a = {toml_string(text)}") == {"a": text}
