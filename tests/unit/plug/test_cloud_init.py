"""The disk of [cloud-init], as a guest's driver reads it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.disks import GET_ID, IN, IOERR, OK, OUT, DiskSlot, header, waiting
from unit.host.test_seed import listed

from vmservice.config.sections.cloud_init import CloudInitDevice
from vmservice.errors import ConfigError
from vmservice.plug import cloud_init
from vmservice.plug.disk import DiskPlug

HOST: Any = SimpleNamespace(vm_name="web_1")


def contents(device: CloudInitDevice) -> dict[str, bytes]:
    image = cloud_init.open(device, HOST)
    data = bytearray(image.size_bytes)
    image.read([memoryview(data)], 0, len(data))
    image.close()
    return listed(bytes(data))


def test_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "user-data").write_text("#cloud-config\npackages: [hello]\n")
    files = contents(CloudInitDevice(f"{tmp_path}/user-data", "ssh-ed25519 AAAA", None))
    assert files["user-data"] == b"#cloud-config\npackages: [hello]\n"
    lines = files["meta-data"].decode().splitlines()
    assert lines[1:] == ["local-hostname: 'web-1'", "public-keys:", "- 'ssh-ed25519 AAAA'"]
    assert contents(CloudInitDevice(None, "", None))["meta-data"].decode().splitlines()[0] == lines[0], "the same at each start"
    assert contents(CloudInitDevice(None, "", None))["user-data"] == b"#cloud-config\n{}\n"


def test_keys_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("ssh-ed25519 BBBB\n")
    assert b"- 'ssh-ed25519 BBBB'" in contents(CloudInitDevice(None, "", f"{tmp_path}/keys"))["meta-data"]


def test_what_is_gone_since_the_check(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'cloud-init\.user_data is ".*", which does not exist'):
        cloud_init.open(CloudInitDevice(f"{tmp_path}/nowhere", "", None), HOST)


def test_a_guest_reads_it_and_cannot_write(tmp_path: Path) -> None:
    device = CloudInitDevice(None, "", None)
    image = cloud_init.open(device, HOST)
    slot = DiskSlot()
    plug = cloud_init.build(device, image, slot)  # type: ignore[arg-type]
    assert isinstance(plug, DiskPlug) and slot.driver is not None
    plug.start()
    with slot.lock:
        (queue,) = slot.driver.start(None, sizes=())

    def ask(readable: list[bytes], writable: list[int]) -> bytes:
        queue.add(readable, writable)
        with slot.lock:
            assert slot.driver is not None
            slot.driver.kick(0)
        for _ in waiting():
            for _, _, data in queue.take_used():
                return data
        raise AssertionError("no answer came")

    try:
        assert ask([header(IN, 64)], [512, 1])[1:6] == b"CD001"
        assert ask([header(GET_ID)], [20, 1]) == b"cloud-init" + bytes(10) + OK
        assert ask([header(OUT, 64), b"w" * 512], [1]) == IOERR
        assert cloud_init.details(device, image) == {"cloud-init": {"user_data": ""}}
        assert slot.warnings == []
    finally:
        plug.close()
        slot.memory.close()
        image.close()
