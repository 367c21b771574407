"""A disk of which nothing is kept: beside a model, from several threads, and with nothing left behind."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmservice.errors import HostError, HostFacilityMissing
from vmservice.host import overlay
from vmservice.host.overlay import CLUSTER_BYTES, Overlay
from vmservice.host.storage import Image

SIZE = 5 * CLUSTER_BYTES + 512


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


@pytest.fixture
def disk(file: Path) -> Iterator[Overlay]:
    disk = Overlay(str(file), "disk root")
    yield disk
    disk.close()


def whole(disk: Image) -> bytes:
    view = memoryview(bytearray(disk.size_bytes))
    disk.read([view[:1000], view[1000:]], 0, disk.size_bytes)
    return bytes(view)


def test_it_reads_as_the_image_and_then_as_written(disk: Overlay, file: Path) -> None:
    before = file.read_bytes()
    assert whole(disk) == before
    model, rng = bytearray(before), random.Random(2)
    for _ in range(300):
        start = 512 * rng.randrange(SIZE // 512)
        length = min(512 * rng.choice((1, 8, 127, 128, 129, 300)), SIZE - start)
        if rng.random() < 0.2:
            disk.write_zeroes(start, length, rng.random() < 0.5)
            model[start : start + length] = bytes(length)
        else:
            data = rng.randbytes(length)
            cut = rng.randrange(length)
            disk.write([memoryview(data)[:cut], memoryview(data)[cut:]], start, length)
            model[start : start + length] = data
        start = 512 * rng.randrange(SIZE // 512)
        length = min(512 * rng.choice((1, 8, 300)), SIZE - start)
        view = memoryview(bytearray(length))
        disk.read([view], start, length)
        assert view == model[start : start + length]
        if disk.peek([view], start, length):
            assert view == model[start : start + length]
    assert whole(disk) == bytes(model)
    assert file.read_bytes() == before
    disk.flush()
    assert not disk.is_dirty


def test_nothing_is_left_behind_and_the_next_one_begins_anew(file: Path) -> None:
    before = file.read_bytes()
    for _ in range(2):
        disk = Overlay(str(file), "disk root")
        assert whole(disk) == before
        disk.write([memoryview(bytes(SIZE))], 0, SIZE)
        assert whole(disk) == bytes(SIZE)
        assert os.listdir(file.parent) == ["disk.raw"]
        assert os.fstat(disk.fds()["overlay"]).st_nlink == 0
        disk.close()
    assert file.read_bytes() == before


def test_one_byte_costs_one_cluster(disk: Overlay) -> None:
    disk.write([memoryview(bytes(512))], CLUSTER_BYTES + 512, 512)
    assert os.fstat(disk.fds()["overlay"]).st_blocks * 512 <= 2 * CLUSTER_BYTES
    disk.discard(0, SIZE)
    assert os.fstat(disk.fds()["overlay"]).st_blocks == 0


def test_threads_that_write_into_one_cluster(disk: Overlay, file: Path) -> None:
    """None of them copies the image's bytes over another one's."""
    model = bytearray(file.read_bytes())

    def write(thread: int) -> None:
        data = bytes((thread + 1,)) * 512
        for sector in range(thread, SIZE // 512, 4):
            disk.write([memoryview(data)], 512 * sector, 512)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for sector in range(SIZE // 512):
        model[512 * sector : 512 * sector + 512] = bytes((sector % 4 + 1,)) * 512
    assert whole(disk) == bytes(model)


def test_a_write_that_fails_leaves_what_was_there(disk: Overlay, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk._kept, "write", full)
    with pytest.raises(OSError, match="No space left"):
        disk.write([memoryview(bytes(SIZE))], 0, SIZE)
    monkeypatch.undo()
    assert whole(disk) == file.read_bytes()


def test_it_grows_with_its_image(disk: Overlay, file: Path) -> None:
    with open(file, "ab") as image:
        image.write(b"m" * (3 * CLUSTER_BYTES))
    assert disk.look_again() == SIZE + 3 * CLUSTER_BYTES
    disk.write([memoryview(bytes(512))], SIZE + 2 * CLUSTER_BYTES, 512)
    assert whole(disk)[SIZE:] == b"m" * (2 * CLUSTER_BYTES) + bytes(512) + b"m" * (CLUSTER_BYTES - 512)


def test_several_may_read_the_image_but_nobody_write_it(disk: Overlay, file: Path) -> None:
    second = Overlay(str(file), "disk root")
    with pytest.raises(HostFacilityMissing, match="in use"):
        Image(str(file), "disk root", writable=True)
    second.close()


def test_the_file_is_in_the_state_directory_or_where_one_can_be_made(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    tried: list[str] = []

    def note(directory: str, *_: object) -> int:
        tried.append(directory)
        raise OSError(95, "no")

    monkeypatch.setenv("STATE_DIRECTORY", f"{state}:{tmp_path}")
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", note)
        with pytest.raises(HostError, match="disk root: no file can be made for what the guest writes to"):
            overlay._make_file(str(file), "disk root")
    assert tried == [str(state), str(tmp_path), "/var/tmp"]
