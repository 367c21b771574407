"""A disk whose image fails, for real: by a file system that answers with the error."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.disks import FLUSH, IN, IOERR, OK, OUT, Disk, header, section
from support.failing_file import FailingFile

MIB = 1 << 20
ERRNOS = (errno.EIO, errno.ENOSPC, errno.EROFS)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[FailingFile]:
    file = FailingFile(tmp_path / "mounted", MIB)
    yield file
    file.close()


@pytest.fixture(params=["writeback", "direct"])
def disk(request: pytest.FixtureRequest, file: FailingFile) -> Iterator[Disk]:
    disk = Disk(section(file.path, is_direct=request.param == "direct"))
    disk.start()
    yield disk
    disk.close()


@pytest.mark.parametrize("number", ERRNOS, ids=errno.errorcode.get)
def test_a_request_that_fails_is_the_guests_to_know(file: FailingFile, disk: Disk, number: int) -> None:
    """What was answered before is there, and what is asked for afterwards is done."""
    assert disk.write(0, b"before".ljust(4096, b".")) == OK
    assert disk.ask([header(FLUSH)], [1]) == OK
    file.fail("write", number)
    file.fail("read", number)
    for _ in range(3):
        assert disk.write(8, b"lost".ljust(4096, b".")) == IOERR
        assert disk.read(0, 4096)[-1:] == IOERR
    assert len(disk.slot.warnings) == 1, "one a minute"
    assert disk.slot.warnings[0].startswith(f"disk root: {file.path} cannot be written, which the guest is told: ")
    disk.plug.pause()
    disk.plug.resume()
    file.fail("write", 0)
    file.fail("read", 0)
    assert disk.write(16, b"after".ljust(4096, b".")) == OK
    assert disk.read(0, 4096) == b"before".ljust(4096, b".") + OK
    assert file.content[:6] == b"before"
    assert file.content[4096:4100] == bytes(4)
    assert file.content[8192:8197] == b"after"


def test_a_flush_that_failed(file: FailingFile, disk: Disk) -> None:
    """Of what is in its page cache the kernel has given up what it could not write, and no later flush makes that good: a guest
    that was told otherwise would lose it. Past the page cache there is nothing of that kind."""
    assert disk.write(0, b"w" * 4096) == OK
    file.fail("flush", errno.EIO)
    assert disk.ask([header(FLUSH)], [1]) == IOERR
    file.fail("flush", 0)
    assert disk.ask([header(FLUSH)], [1]) == (OK if disk.section.is_direct else IOERR)
    assert disk.read(0, 4096) == b"w" * 4096 + OK


def test_a_disk_that_goes_away_with_32_requests_in_flight(file: FailingFile, disk: Disk) -> None:
    """All of them are answered, it can be paused and closed, and what was flushed is where it was."""
    assert disk.write(0, b"kept".ljust(4096, b".")) == OK
    assert disk.ask([header(FLUSH)], [1]) == OK
    for number in range(32):
        kind = OUT if number % 2 else IN
        disk.queues[0].add(
            [header(kind, 8 * (number + 1)), *([b"x" * 512] if kind == OUT else [])], [1] if kind == OUT else [512, 1]
        )
    disk.kick()
    file.go_away()
    answers = disk.answers(32)
    assert {data[-1:] for _, _, data in answers} <= {OK, IOERR}
    assert disk.read(0, 4096)[-1:] == IOERR
    assert disk.write(0, b"y" * 4096) == IOERR
    assert len(disk.slot.warnings) == 1
    disk.plug.pause()
    disk.plug.resume()
    assert disk.read(0, 4096)[-1:] == IOERR
    assert file.content[:4] == b"kept"


def test_an_image_that_cannot_be_closed_is_closed(file: FailingFile) -> None:
    """A close may tell of a file system that is gone, which is nobody's affair at a VM's end."""
    disk = Disk(section(file.path))
    disk.start()
    assert disk.write(0, bytes(512)) == OK
    file.go_away()
    disk.close()
