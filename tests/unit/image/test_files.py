"""Files taken out of ext4 and FAT, without a mount."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.disk_images import MIB, ext4, fat

from vmservice.errors import ConfigError, HostError
from vmservice.image.ext4 import Ext4
from vmservice.image.fat import Fat
from vmservice.image.tools import Account, Image

LONG = "a-name-that-is-longer-than-thirteen-letters.conf"
DATA = bytes(range(256)) * 999
Open = Callable[[bytes], Image]


@pytest.fixture
def open_image(tmp_path: Path) -> Iterator[Open]:
    fds: list[int] = []

    def open_image(content: bytes) -> Image:
        path = tmp_path / f"image{len(fds)}"
        path.write_bytes(bytes(MIB) + content)
        fds.append(os.open(path, os.O_RDONLY))
        return Image(fds[-1], str(path), path.stat().st_size)

    yield open_image
    for fd in fds:
        os.close(fd)


def copied(files: Ext4 | Fat, path: str) -> bytes:
    fd = os.memfd_create("copy")
    try:
        files.copy(path, fd)
        return os.pread(fd, 1 << 24, 0)
    finally:
        os.close(fd)


@pytest.fixture
def linked(tmp_path: Path, open_image: Open) -> Ext4:
    files: dict[str, bytes | str] = {
        "/boot/kernel": DATA,
        "/boot/empty": b"",
        "/link": "-> boot/kernel",
        "/boot/absolute": "-> /boot/../boot/kernel",
        "/chain": "-> /link",
        "/round": "-> round",
        "/dangling": "-> nowhere",
        "/folder": "-> boot",
        "/etc/text": "Grüße\n",
        '/etc/a"quote': b"x",
    }
    return Ext4(open_image(ext4(tmp_path, files)), MIB)


@pytest.mark.parametrize("path", ["/boot/kernel", "/link", "/boot/absolute", "/chain", "/folder/kernel"])
def test_a_file_and_links_to_it(linked: Ext4, path: str) -> None:
    assert linked.size(path) == len(DATA)
    assert copied(linked, path) == DATA


@pytest.mark.parametrize("path", ["/nowhere", "/round", "/dangling", "/boot", "/folder", '/etc/a"quote', "/a\nb"])
def test_what_is_no_file(linked: Ext4, path: str) -> None:
    assert linked.size(path) is None
    assert linked.text(path) is None
    with pytest.raises(ConfigError, match="has no file"):
        copied(linked, path)


def test_text_and_folders(linked: Ext4) -> None:
    assert linked.text("/etc/text") == "Grüße\n"
    assert linked.text("/boot/empty") == ""
    assert linked.names("/boot") == ["absolute", "empty", "kernel"]
    assert linked.names("/nowhere") == linked.names("/etc/text") == linked.names('/"') == []


def test_what_was_looked_at_ahead_is_not_asked_for_again(linked: Ext4, monkeypatch: pytest.MonkeyPatch) -> None:
    linked.look_ahead(["/boot/kernel", "/nowhere", "/link", "/round"], ["/boot", "/nowhere"])
    monkeypatch.setattr("vmservice.image.tools.run", None)
    assert (linked.size("/boot/kernel"), linked.size("/nowhere"), linked.size("/link")) == (len(DATA), None, len(DATA))
    assert linked.size("/round") is None
    assert linked.names("/boot") == ["absolute", "empty", "kernel"]
    assert linked.names("/nowhere") == []


def test_what_is_no_ext4_is_said_in_debugfs_words(open_image: Open) -> None:
    with pytest.raises(HostError, match=r"cannot be read by debugfs: .*Bad magic number"):
        Ext4(open_image(bytes(MIB)), MIB).names("/")


def test_debugfs_runs_as_the_account_of_the_vm(tmp_path: Path, open_image: Open) -> None:
    """An image may be made to deceive it, and root is who creates VMs."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another account")
    image = open_image(ext4(tmp_path, {"/file": DATA}))
    os.fchmod(image.fd, 0o600)
    nobody = Account("nobody", 65534, 65534)
    with pytest.raises(HostError, match="Permission denied"):
        Ext4(Image(image.fd, image.path, image.size_bytes, nobody), MIB).names("/")
    os.fchown(image.fd, nobody.uid, nobody.gid)
    assert copied(Ext4(Image(image.fd, image.path, image.size_bytes, nobody), MIB), "/file") == DATA


FAT_FILES = {"/README": b"short", f"/loader/{LONG}": DATA, "/loader/empty": b"", "/loader/Grüße.txt": b"x" * 512}


@pytest.mark.parametrize("bits", [12, 16, 32])
def test_fat(open_image: Open, bits: int) -> None:
    files = Fat(open_image(fat(bits, FAT_FILES)), MIB)
    assert files.names("/") == ["README", "loader"]
    assert files.names("/loader") == sorted((LONG, "empty", "Grüße.txt"))
    assert copied(files, f"/loader/{LONG}") == copied(files, f"/LOADER/{LONG.upper()}") == DATA
    assert (files.size("/README"), files.text("/README"), files.text("/loader/empty")) == (5, "short", "")
    assert (files.size("/loader"), files.size("/README/x"), files.text("/nowhere")) == (None, None, None)
    assert files.names("/README") == []
    with pytest.raises(ConfigError, match="has no file /nowhere"):
        copied(files, "/nowhere")


def test_fat_in_a_ring_or_cut_short_is_damaged(open_image: Open) -> None:
    image = bytearray(fat(16, {"/file": DATA}))
    # The second link of the chain leads back to its beginning.
    image[512 + 2 * 4 : 512 + 2 * 4 + 2] = (2).to_bytes(2, "little")
    assert len(copied(Fat(open_image(bytes(image)), MIB), "/file")) == len(DATA)
    image[512 + 2 * 4 : 512 + 2 * 4 + 2] = bytes(2)
    with pytest.raises(ConfigError, match="a FAT file system in it is damaged"):
        copied(Fat(open_image(bytes(image)), MIB), "/file")
    with pytest.raises(ConfigError, match="damaged"):
        Fat(open_image(bytes(512)), MIB)
