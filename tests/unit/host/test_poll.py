"""Whoever lowers RLIMIT_NOFILE below the descriptors that a thread waits for takes nothing from it: it goes on, a moment later.

poll(2) refuses more entries than the limit with EINVAL; one thread that ends by it ended the VM.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import threading
import time
from typing import TYPE_CHECKING

import pytest

from vmservice.host.consoles.mover import Mover
from vmservice.host.file_watch import FileWatch
from vmservice.host.poll import wait

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vmservice.host.consoles.mover import Waits

TIMEOUT_SEC = 60.0


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Waiting:
    """A console that waits for its descriptor."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC)
        self.moves = threading.Semaphore(0)

    def move(self) -> Waits:
        self.moves.release()
        return [(self.fd, select.POLLIN)], None


def test_what_is_refused_is_an_empty_answer_a_moment_later() -> None:
    entries = select.poll()
    entries.register(0, 0)
    entries.register(1, 0)
    with no_descriptors():
        with pytest.raises(OSError, match="Invalid argument"):
            entries.poll(0)
        began = time.monotonic()
        assert wait(entries, None) == []
        assert time.monotonic() - began > 0.05
        assert wait(entries, 0) == []


def test_the_mover_goes_on() -> None:
    bugs: list[Exception] = []
    mover = Mover()
    mover.on_bug(bugs.append)
    console = Waiting()
    with no_descriptors():
        mover.add(console)
        for _ in range(3):
            assert console.moves.acquire(timeout=TIMEOUT_SEC)
    mover.wake(console, at_once=True)
    assert console.moves.acquire(timeout=TIMEOUT_SEC)
    assert mover.remove(console)
    mover.close()
    os.close(console.fd)
    assert not bugs


def test_the_watch_of_guest_memory_goes_on(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "memory", os.O_RDWR | os.O_CREAT)
    os.truncate(fd, 4096)
    told = threading.Semaphore(0)
    with no_descriptors_after_start(fd, told) as watch:
        os.truncate(fd, 0)
        assert told.acquire(timeout=TIMEOUT_SEC)
    os.truncate(fd, 4096)
    assert told.acquire(timeout=TIMEOUT_SEC)
    watch.close()
    os.close(fd)


@contextlib.contextmanager
def no_descriptors_after_start(fd: int, told: threading.Semaphore) -> Iterator[FileWatch]:
    """A watch that has to wait anew under the limit: a poll that waits already keeps what it has."""
    watch = FileWatch(fd, told.release)
    with no_descriptors():
        os.utime(fd)  # IN_ATTRIB: ends the first wait
        assert told.acquire(timeout=TIMEOUT_SEC)
        yield watch
