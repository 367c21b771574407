"""Files that a guest has as memory: locked, with all their room, and mapped shared or private."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vmservice.errors import ConfigError, HostError, HostFacilityMissing
from vmservice.host import block_file
from vmservice.host.pmem_file import PmemFile

MIB = 1 << 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "data.img"
    path.write_bytes(b"data")
    os.truncate(path, 4 * MIB)
    return path


@pytest.fixture
def writable(file: Path) -> Iterator[PmemFile]:
    pmem = PmemFile(str(file), "pmem data", writable=True)
    yield pmem
    pmem.close()


def test_what_is_written_is_the_files(writable: PmemFile, file: Path) -> None:
    with writable.map() as mapping:
        assert len(mapping) == 4 * MIB
        assert mapping[:5] == b"data\0"
        mapping[MIB : MIB + 3] = b"new"
        writable.flush()
        assert file.read_bytes()[MIB : MIB + 3] == b"new"
        assert writable.shared_fd == writable.fd


def test_what_is_written_to_a_read_only_one_is_nobodys(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.chmod(file, 0o400)
    before = file.stat().st_blocks
    monkeypatch.setattr(os, "fdatasync", lambda fd: pytest.fail("there is nothing to keep"))
    pmem = PmemFile(str(file), "pmem data", writable=False)
    with pmem.map() as mapping, pmem.map() as other:
        mapping[:4] = b"gone"
        assert other[:4] == b"data"
        pmem.flush()
    assert file.read_bytes() == b"data".ljust(4 * MIB, b"\0")
    assert file.stat().st_blocks == before
    assert pmem.shared_fd == -1
    pmem.close()


def test_it_gets_all_its_room(writable: PmemFile, file: Path) -> None:
    assert file.stat().st_blocks * 512 >= 4 * MIB
    assert file.read_bytes() == b"data".ljust(4 * MIB, b"\0")


def fallocate_fails(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(block_file.BlockFile, "_fallocate", fail)


def test_a_file_system_without_the_room_is_said_before_the_guest_runs(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fallocate_fails(monkeypatch, errno.ENOSPC)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(HostError, match=r"^pmem data: cannot take the room that .*/data\.img needs: No space left on device"):
        PmemFile(str(file), "pmem data", writable=True)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_system_that_can_promise_nothing_is_taken(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fallocate_fails(monkeypatch, errno.EOPNOTSUPP)
    PmemFile(str(file), "pmem data", writable=True).close()


def test_nobody_else_writes_to_it(writable: PmemFile, file: Path) -> None:
    for other in (True, False):
        with pytest.raises(HostFacilityMissing, match=r"^pmem other is in use"):
            PmemFile(str(file), "pmem other", writable=other)


def test_many_may_read_it(file: Path) -> None:
    first, second = (PmemFile(str(file), "pmem data", writable=False) for _ in range(2))
    with first.map() as one, second.map() as other:
        assert one[:4] == other[:4] == b"data"
    first.close()
    second.close()


def test_a_size_that_is_none(file: Path) -> None:
    for size, larger in ((0, 2 * MIB), (2 * MIB - 1, 2 * MIB), (2 * MIB + 4096, 4 * MIB)):
        os.truncate(file, size)
        said = rf"^pmem data: .*/data\.img has {size} bytes; expected a multiple of 2 MiB, such as {larger}$"
        with pytest.raises(ConfigError, match=said):
            PmemFile(str(file), "pmem data", writable=True)


def test_the_size_is_that_of_the_moment(writable: PmemFile, file: Path) -> None:
    os.truncate(file, 2 * MIB)
    assert writable.is_cut_short()
    with writable.map() as mapping:
        assert len(mapping) == 2 * MIB
    assert not writable.is_cut_short()
    os.truncate(file, 6 * MIB)
    assert not writable.is_cut_short()
    os.truncate(file, 1)
    assert writable.is_cut_short()
    with pytest.raises(ConfigError, match="has 1 bytes; expected"):
        writable.map()


def test_a_file_that_shrinks_at_the_wrong_moment(writable: PmemFile, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.truncate(file, 2 * MIB)
    monkeypatch.setattr(writable, "look_again", lambda: 4 * MIB)
    with pytest.raises(HostError, match=r"^pmem data: .*/data\.img has become smaller while it was mapped$"):
        writable.map()


def test_after_a_flush_that_failed_none_succeeds(writable: PmemFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host has dropped pages that it could not write, and says so once only."""

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(OSError, match="no"):
        writable.flush()
    monkeypatch.undo()
    with pytest.raises(OSError, match="Input/output error"):
        writable.flush()
