"""The file behind guest memory is watched: truncations are told, what the guest writes is not, and nothing is left behind."""

from __future__ import annotations

import mmap
import os
import threading
from pathlib import Path

import pytest

from vmservice.errors import HostError
from vmservice.host.file_watch import FileWatch

TIMEOUT_SEC = 60.0


def test_a_truncation_is_told_and_a_write_to_the_mapping_is_not(tmp_path: Path) -> None:
    path, changed = tmp_path / "memory", threading.Semaphore(0)
    path.write_bytes(bytes(2 * mmap.PAGESIZE))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        watch = FileWatch(file.fileno(), changed.release)
        mapping[0] = 1
        mapping.flush()
        assert not changed.acquire(timeout=0.1)
        os.truncate(path, mmap.PAGESIZE)
        assert changed.acquire(timeout=TIMEOUT_SEC)
        watch.close()
        os.truncate(path, 0)
        assert not changed.acquire(timeout=0.1)
        watch.close()


def test_it_leaves_no_thread_and_no_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.touch()
    before = len(os.listdir("/proc/self/fd"))
    with path.open() as file:
        for _ in range(20):
            FileWatch(file.fileno(), lambda: None).close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_cannot_be_watched_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"^cannot watch the file of the guest's memory: Bad file|No such file"):
        FileWatch(10_000, lambda: None)
