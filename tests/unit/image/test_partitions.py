"""Partition tables: what is found, what is refused, and how they grow."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.disk_images import DATA, MIB, ROOT, SECTOR, Part, gpt

from vmservice.errors import ConfigError
from vmservice.image.partitions import Partition, grow_last, read_partitions, write_root_partition

ROOT_PART = Part(ROOT, b"root", 4 * MIB)
DATA_PART = Part(DATA, b"data", 2 * MIB)


@pytest.fixture
def opened() -> Iterator[list[int]]:
    fds: list[int] = []
    yield fds
    for fd in fds:
        os.close(fd)


def open_disk(path: Path, opened: list[int]) -> int:
    opened.append(os.open(path, os.O_RDWR))
    return opened[-1]


def found(fd: int) -> list[Partition]:
    return read_partitions(fd, os.fstat(fd).st_size)


def test_a_gpt(tmp_path: Path, opened: list[int]) -> None:
    fd = open_disk(gpt(tmp_path / "disk", [DATA_PART, ROOT_PART]), opened)
    first, second = found(fd)
    assert (first.number, first.offset, first.size_bytes, first.kind) == (1, MIB, 2 * MIB, DATA)
    assert (second.number, second.offset, second.partuuid, second.kind) == (2, 3 * MIB, str(ROOT_PART.own), ROOT)
    assert os.pread(fd, 4, second.offset) == b"root"


def mbr(path: Path) -> Path:
    """Two primary ones, and an extended one with two logical ones."""
    entry = struct.Struct("<B3xB3xII")

    def table(*entries: tuple[int, int, int]) -> bytes:
        return b"".join(entry.pack(0, *one) for one in entries).ljust(64, b"\0") + b"\x55\xaa"

    with path.open("wb") as file:
        file.truncate(32 * MIB)
        file.write(
            bytes(440) + struct.pack("<I2x", 0xC0FFEE) + table((0x83, 2048, 4096), (5, 8192, 32768), (0x83, 45056, 2048))
        )
        file.seek(8192 * SECTOR + 446)
        file.write(table((0x83, 2048, 2048), (5, 8192, 4096)))
        file.seek((8192 + 8192) * SECTOR + 446)
        file.write(table((0x83, 100, 200)))
    return path


def test_that_of_ms_dos_with_logical_partitions(tmp_path: Path, opened: list[int]) -> None:
    parts = found(open_disk(mbr(tmp_path / "disk"), opened))
    assert [(one.number, one.offset // SECTOR, one.size_bytes // SECTOR) for one in parts] == [
        (1, 2048, 4096),
        (3, 45056, 2048),
        (5, 10240, 2048),
        (6, 16484, 200),
    ]
    assert [one.partuuid for one in parts] == ["00c0ffee-01", "00c0ffee-03", "00c0ffee-05", "00c0ffee-06"]
    assert {one.kind for one in parts} == {None}


def test_an_extended_partition_that_is_a_ring_ends(tmp_path: Path, opened: list[int]) -> None:
    path = mbr(tmp_path / "disk")
    with path.open("r+b") as file:
        file.seek((8192 + 8192) * SECTOR + 446 + 16)
        file.write(struct.pack("<B3xB3xII", 0, 5, 0, 4096))
    assert 4 < len(found(open_disk(path, opened))) < 100


def test_no_table_is_no_partition(tmp_path: Path, opened: list[int]) -> None:
    (tmp_path / "disk").write_bytes(bytes(MIB))
    assert found(open_disk(tmp_path / "disk", opened)) == []


def test_what_lies_behind_the_end_is_none(tmp_path: Path, opened: list[int]) -> None:
    path = gpt(tmp_path / "disk", [DATA_PART, ROOT_PART])
    os.truncate(path, 4 * MIB)
    assert [one.number for one in found(open_disk(path, opened))] == [1]


@pytest.mark.parametrize(
    ("place", "words"),
    [(SECTOR, "there is no header"), (SECTOR + 40, "the header's checksum"), (2 * SECTOR + 5, "the table's checksum")],
)
def test_a_damaged_gpt_is_refused(tmp_path: Path, opened: list[int], place: int, words: str) -> None:
    fd = open_disk(gpt(tmp_path / "disk", [ROOT_PART]), opened)
    os.pwrite(fd, b"\xff", place)
    with pytest.raises(ConfigError, match=words):
        found(fd)


def test_a_gpt_grows_with_its_last_partition_and_its_backup(tmp_path: Path, opened: list[int]) -> None:
    fd = open_disk(gpt(tmp_path / "disk", [DATA_PART, ROOT_PART], spare=MIB), opened)
    old = os.fstat(fd).st_size
    os.ftruncate(fd, 64 * MIB)
    assert grow_last(fd, old, read_partitions(fd, old)[1])
    data, root = found(fd)
    # 33 sectors are the backup's, of which the last one is its header.
    assert root.offset + root.size_bytes == 64 * MIB - 33 * SECTOR
    assert (data.size_bytes, root.partuuid) == (2 * MIB, str(ROOT_PART.own))
    backup = os.pread(fd, 92, 64 * MIB - SECTOR)
    own, other, _, last = struct.unpack_from("<QQQQ", backup, 24)
    assert (backup[:8], own, other, last) == (b"EFI PART", 64 * 2048 - 1, 1, 64 * 2048 - 34)
    assert struct.unpack_from("<I", os.pread(fd, 512, 0), 446 + 12)[0] == 64 * 2048 - 1
    # The backup alone says the same.
    os.pwrite(fd, os.pread(fd, 32 * SECTOR, 64 * MIB - 33 * SECTOR), 2 * SECTOR)
    assert found(fd) == [data, root]


def test_a_new_table_is_one_that_is_read(tmp_path: Path, opened: list[int]) -> None:
    (tmp_path / "disk").write_bytes(bytes(8 * MIB))
    fd = open_disk(tmp_path / "disk", opened)
    made = write_root_partition(fd)
    assert found(fd) == [made]
    assert (made.number, made.offset, made.kind) == (1, MIB, ROOT)
    assert made.offset + made.size_bytes == 8 * MIB - 33 * SECTOR
    assert os.pread(fd, 8, 8 * MIB - SECTOR) == b"EFI PART"


def test_a_partition_with_another_behind_it_stays(tmp_path: Path, opened: list[int]) -> None:
    fd = open_disk(gpt(tmp_path / "disk", [ROOT_PART, DATA_PART]), opened)
    old = os.fstat(fd).st_size
    os.ftruncate(fd, 64 * MIB)
    before = found(fd)
    assert not grow_last(fd, old, before[0])
    assert found(fd) == before
    assert os.pread(fd, 8, 64 * MIB - SECTOR) == b"EFI PART"


def test_the_last_primary_partition_of_ms_dos_grows(tmp_path: Path, opened: list[int]) -> None:
    fd = open_disk(mbr(tmp_path / "disk"), opened)
    os.ftruncate(fd, 64 * MIB)
    parts = found(fd)
    assert not grow_last(fd, 32 * MIB, parts[2])
    assert grow_last(fd, 32 * MIB, parts[1])
    assert found(fd)[1].offset + found(fd)[1].size_bytes == 64 * MIB
