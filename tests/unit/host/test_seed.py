"""The disk for cloud-init, read as other programs read it."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from vmservice.host.seed import host_name_of, meta_data, seed_image

SECTOR = 2048
FILES = {"user-data": b"#cloud-config\n" + b"x" * 5000, "meta-data": b"instance-id: 1\n", "network-config": b""}


def listed(image: bytes) -> dict[str, bytes]:
    """The files by name, as ECMA-119 has them and Linux shows them."""
    descriptor = image[16 * SECTOR : 17 * SECTOR]
    assert descriptor[:8] == b"\x01CD001\x01\0"
    sector, size = struct.unpack_from("<I4xI", descriptor, 156 + 2)
    folder, place, found = image[sector * SECTOR : sector * SECTOR + size], 0, {}
    while folder[place]:
        length = folder[place]
        start, big_start, bytes_there, big_bytes = (
            struct.unpack_from("<I", folder, place + 2)
            + struct.unpack_from(">I", folder, place + 6)
            + struct.unpack_from("<I", folder, place + 10)
            + struct.unpack_from(">I", folder, place + 14)
        )
        assert (start, bytes_there) == (big_start, big_bytes)
        name = folder[place + 33 : place + 33 + folder[place + 32]]
        if name not in (b"\0", b"\1"):
            assert name.endswith(b".;1")
            found[name[:-3].decode().lower()] = image[start * SECTOR : start * SECTOR + bytes_there]
        place += length
    return found


def test_the_files_are_there() -> None:
    image = seed_image(FILES)
    assert listed(image) == FILES
    assert len(image) % SECTOR == 0
    # The number of sectors, in both orders.
    assert struct.unpack_from("<I", image, 16 * SECTOR + 80)[0] == struct.unpack_from(">I", image, 16 * SECTOR + 84)[0]
    assert struct.unpack_from("<I", image, 16 * SECTOR + 80)[0] == len(image) // SECTOR
    assert len(image) < 64 << 10


def test_libblkid_knows_it_by_the_label_that_cloud_init_looks_for(tmp_path: Path) -> None:
    (tmp_path / "seed").write_bytes(seed_image(FILES))
    said = subprocess.run(
        ["/usr/sbin/blkid", "-p", "-o", "export", tmp_path / "seed"], check=True, capture_output=True, text=True
    ).stdout
    assert {"LABEL=CIDATA", "TYPE=iso9660"} <= set(said.splitlines())


def test_what_cloud_init_is_told() -> None:
    assert meta_data("0815", "web", "ssh-ed25519 AAAA it's me\n\n# old\nssh-rsa BBBB\x1b\n").decode() == (
        "instance-id: '0815'\nlocal-hostname: 'web'\npublic-keys:\n- 'ssh-ed25519 AAAA it''s me'\n- 'ssh-rsa BBBB'\n"
    )
    assert b"public-keys" not in meta_data("0815", "web", "")


@pytest.mark.parametrize(("vm", "host"), [("web", "web"), ("web_1", "web-1"), ("db.example", "db.example"), ("a-", "a")])
def test_host_names(vm: str, host: str) -> None:
    assert host_name_of(vm) == host
