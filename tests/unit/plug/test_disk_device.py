"""A disk on a block device of the host: a loop device, which is one for all that matters here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.disks import DISCARD, FLUSH, IOERR, OK, WRITE_ZEROES, Disk, header, run, section, segment

from vmservice.errors import ConfigError
from vmservice.host.storage import Image, check_image

MIB = 1 << 20


@pytest.mark.parametrize("is_direct", [False, True])
def test_each_request_and_its_size(device: Path, backing: Path, is_direct: bool) -> None:
    disk = Disk(section(device, is_direct=is_direct))
    try:
        disk.start()
        assert disk.backend.size_bytes == 8 * MIB
        assert disk.write(8, b"z" * 4096) == OK
        assert disk.read(8, 4096) == b"z" * 4096 + OK
        assert disk.ask([header(FLUSH)], [1]) == OK
        assert backing.read_bytes()[4096:8192] == b"z" * 4096
        assert disk.ask([header(DISCARD), segment(8, 8)], [1]) == OK
        assert disk.write(16, b"z" * 4096) == OK
        assert disk.ask([header(WRITE_ZEROES), segment(16, 8)], [1]) == OK
        assert disk.read(16, 4096) == bytes(4096) + OK
        os.truncate(backing, 16 * MIB)
        run("losetup", "--set-capacity", str(device))
        disk.plug.reconfigure(disk.section)
        assert int.from_bytes(disk.driver.transport.read_config(0, 8), "little") == 16 * MIB // 512
        assert disk.slot.warnings == []
    finally:
        disk.close()


def test_sectors_are_the_devices_own(backing: Path, device: Path) -> None:
    run("losetup", "--detach", str(device))
    run("losetup", "--sector-size", "4096", str(device), str(backing))
    image = Image(str(device), "disk root", writable=True)
    assert image.shape.block_bytes == 4096
    image.close()


def test_one_that_the_host_uses_is_refused(device: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mounted"
    folder.mkdir()
    run("mkfs.ext4", "-q", "-F", str(device))
    run("mount", str(device), str(folder))
    try:
        with pytest.raises(ConfigError, match=rf"{device} is mounted, or used by another device of this host"):
            Image(str(device), "disk root", writable=True)
        Image(str(device), "disk root", writable=False).close()
    finally:
        run("umount", str(folder))
    image = Image(str(device), "disk root", writable=True)
    check_image(str(device), "disk root", writable=True)  # of the VM that has claimed it
    image.close()


@pytest.mark.parametrize("is_direct", [False, True], ids=["writeback", "direct"])
def test_a_file_system_that_the_host_makes_read_only_under_it(device: Path, tmp_path: Path, is_direct: bool) -> None:
    """As ext4 does at an error of its own. The guest is told of each write, reads on, and what was flushed is kept."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    run("mkfs.ext4", "-q", "-F", str(device))
    run("mount", str(device), str(folder))
    try:
        image = folder / "disk.raw"
        image.write_bytes(bytes(MIB))
        disk = Disk(section(image, is_direct=is_direct))
        try:
            disk.start()
            assert disk.write(0, b"kept".ljust(4096, b".")) == OK
            assert disk.ask([header(FLUSH)], [1]) == OK
            run("mount", "-o", "remount,abort", str(folder))
            assert [disk.write(8, b"lost" * 1024) for _ in range(3)] == [IOERR] * 3
            assert disk.read(0, 4096) == b"kept".ljust(4096, b".") + OK
            assert len(disk.slot.warnings) == 1, "one a minute"
            assert "Read-only file system" in disk.slot.warnings[0]
            disk.plug.pause()
            disk.plug.resume()
        finally:
            disk.close()
        run("umount", str(folder))
        run("mount", str(device), str(folder))
        assert image.read_bytes() == b"kept".ljust(4096, b".") + bytes(MIB - 4096)
    finally:
        run("umount", str(folder))
