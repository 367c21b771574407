"""Requests past the page cache, by Linux AIO: done in place, whatever the host does with them."""

from __future__ import annotations

import errno
import mmap
import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmservice.host import aio, direct_lane
from vmservice.host.direct_lane import DirectLane
from vmservice.host.storage import Image
from vmservice.host.worker_pool import Pool

MIB = 1 << 20
DEPTH = 64
TIMEOUT_SEC = 60.0


class Bench:
    def __init__(self, file: Path) -> None:
        self.image = Image(str(file), "disk root", writable=True, is_direct=True)
        self.warnings: list[str] = []
        self.pool = Pool("test", 4, lambda error: pytest.fail(str(error)))
        self.wake = os.eventfd(0, os.EFD_NONBLOCK)
        self.lane = DirectLane(self.image, self.pool, self.wake, DEPTH, self.warnings.append)
        self.memory = memoryview(mmap.mmap(-1, 8 * MIB))

    def done(self, count: int) -> dict[object, int]:
        """Wait for that many, by the eventfd alone."""
        self.lane.push()
        found: dict[object, int] = {}
        while len(found) < count:
            ready, _, _ = select.select([self.wake], [], [], TIMEOUT_SEC)
            assert ready, f"{len(found)} of {count} are done"
            os.eventfd_read(self.wake)
            found.update(self.lane.take_done())
        assert self.lane.in_flight == 0
        return found

    def close(self) -> None:
        self.lane.close()
        assert self.pool.end(TIMEOUT_SEC)
        os.close(self.wake)
        self.image.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(number // 4096 % 256 for number in range(2 * MIB)))
    return path


@pytest.fixture
def bench(file: Path) -> Iterator[Bench]:
    bench = Bench(file)
    yield bench
    bench.close()


def test_many_at_once(bench: Bench, file: Path) -> None:
    for number in range(DEPTH):
        view = bench.memory[8192 * number : 8192 * number + 4096]
        if number % 2:
            view[:] = bytes((0xA0,)) * 4096
            assert bench.lane.write(number, [view], 4096 * number, 4096, number % 4 == 1) is None
        else:
            assert bench.lane.read(number, [view], 4096 * number, 4096) is None
    assert bench.lane.in_flight == DEPTH
    assert bench.done(DEPTH) == dict.fromkeys(range(DEPTH), 0)
    written = file.read_bytes()
    for number in range(DEPTH):
        expected = bytes((0xA0 if number % 2 else number,)) * 4096
        assert bench.memory[8192 * number : 8192 * number + 4096] == expected
        assert written[4096 * number : 4096 * number + 4096] == expected
    assert bench.image.is_dirty
    assert bench.warnings == []


def test_many_buffers_in_many_requests(bench: Bench) -> None:
    """More than are submitted together."""
    for number in range(8):
        views = [bench.memory[1024 * (250 * number + part) :][:512] for part in range(250)]
        bench.lane.read(number, views, 512 * 250 * number, 512 * 250)
    assert bench.done(8) == dict.fromkeys(range(8), 0)
    for number in range(8):
        for part in (0, 1, 249):
            at = 1024 * (250 * number + part)
            assert bench.memory[at] == 512 * (250 * number + part) // 4096 % 256


def test_what_aio_does_not_take(bench: Bench, file: Path) -> None:
    """Odd addresses, too much at once, more buffers than a call has."""
    bench.lane.read("odd", [bench.memory[1:513]], 8192, 512)
    many = [bench.memory[MIB + 512 * number :][:512] for number in range(1025)]
    bench.lane.read("many", many, 0, 512 * 1025)
    assert bench.done(2) == {"odd": 0, "many": 0}
    assert bench.memory[1:513] == bytes((2,)) * 512
    assert bench.memory[MIB + 512 * 1024] == 512 * 1024 // 4096


def test_the_end_of_an_image_that_was_cut(bench: Bench, file: Path) -> None:
    os.truncate(file, MIB)
    bench.lane.read("across", [bench.memory[:8192]], MIB - 4096, 8192)
    bench.lane.read("behind", [bench.memory[8192:16384]], MIB + 4096, 8192)
    bench.lane.read("before", [bench.memory[16384:20480]], 0, 4096)
    assert bench.done(3) == {"across": errno.EIO, "behind": errno.EIO, "before": 0}


def test_an_error_is_the_requests_own(bench: Bench) -> None:
    bench.lane.read("good", [bench.memory[:4096]], 0, 4096)
    bench.lane.read("bad", [bench.memory[:4096]], -4096, 4096)
    assert bench.done(2) == {"good": 0, "bad": errno.EINVAL}


def test_a_host_that_takes_none_has_threads_do_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.lane.read(0, [bench.memory[:4096]], 4096, 4096)
    bench.done(1)
    monkeypatch.setattr(aio, "_IO_SUBMIT", 1000)  # ENOSYS
    for number in range(DEPTH):
        bench.lane.read(number, [bench.memory[4096 * number :][:4096]], 4096 * number, 4096)
    assert bench.done(DEPTH) == dict.fromkeys(range(DEPTH), 0)
    assert [bench.memory[4096 * number] for number in range(DEPTH)] == list(range(DEPTH))


def test_a_host_without_aio_is_said_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(direct_lane, "Aio", refuse)
    for number in range(2):
        bench.lane.read(number, [bench.memory[:4096]], 4096, 4096)
        assert bench.done(1) == {number: 0}
    assert bench.warnings == ["disk root has no asynchronous I/O, and is slower by that: Resource temporarily unavailable"]


def test_contexts_are_given_back(bench: Bench) -> None:
    def used() -> int:
        return int(Path("/proc/sys/fs/aio-nr").read_text())

    before = used()
    bench.lane.read(0, [bench.memory[:4096]], 0, 4096)
    bench.done(1)
    assert used() > before
    bench.lane.close()
    assert used() == before
