"""What a driver sees of a disk that qemu-storage-daemon serves, and what of it is kept from the driver."""

from __future__ import annotations

import struct

import pytest

from vmservice.plug import qcow2_disk
from vmservice.plug.external import socket_path

# What qemu-storage-daemon 7.2 and 10.0 offer: beside ours SIZE_MAX, SCSI's relatives and CONFIG_WCE.
DAEMON = 0x7E46
SIZE_MAX, CONFIG_WCE = 1 << 1, 1 << 11
LIMITS = struct.pack("<I", 32768).join((bytes(36), bytes(8), bytes(8)))


@pytest.mark.parametrize(
    ("config", "readonly", "discard", "missing"),
    [
        (LIMITS, False, True, 0),
        (LIMITS, False, False, qcow2_disk.DISCARD),
        (LIMITS, True, True, qcow2_disk.DISCARD | qcow2_disk.WRITE_ZEROES),
        (bytes(60), False, True, qcow2_disk.DISCARD | qcow2_disk.WRITE_ZEROES),
    ],
    ids=["all", "no discard", "read-only", "no limits"],
)
def test_the_driver_sees_what_is_safe(config: bytes, readonly: bool, discard: bool, missing: int) -> None:
    seen = qcow2_disk.offered(DAEMON, config, readonly=readonly, discard=discard)
    assert not seen & (CONFIG_WCE | SIZE_MAX)
    assert seen & qcow2_disk.FLUSH
    assert bool(seen & qcow2_disk.RO) == readonly
    both = qcow2_disk.DISCARD | qcow2_disk.WRITE_ZEROES
    assert seen & both == both & ~missing


def test_the_number_of_virtqueues_is_that_of_the_device() -> None:
    config = qcow2_disk.adapted(bytes(range(60)), 3)
    assert config[34:36] == b"\x03\0"
    assert config[:34] + config[36:] == bytes([*range(34), *range(36, 60)])


@pytest.mark.parametrize(
    ("variables", "path"),
    [
        ({"RUNTIME_DIRECTORY": "/run/vmservice/web"}, "/run/vmservice-disk/web/root"),
        ({"RUNTIME_DIRECTORY": "/run/user/1000/vmservice/web"}, "/run/user/1000/vmservice-disk/web/root"),
    ],
)
def test_where_the_socket_is(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], path: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert socket_path("disk", "web", "root") == path
