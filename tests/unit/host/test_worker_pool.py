"""A small pool of threads: started when needed, a few at most, ended and started anew, and living on after a bug."""

from __future__ import annotations

import _thread
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmservice.host.worker_pool import Pool

TIMEOUT_SEC = 60.0


@pytest.fixture
def bugs() -> list[Exception]:
    return []


@pytest.fixture
def pool(bugs: list[Exception]) -> Iterator[Pool]:
    pool = Pool("a name that is too long", 2, bugs.append)
    yield pool
    assert pool.end(TIMEOUT_SEC)


def test_no_more_threads_than_it_may_have(pool: Pool) -> None:
    assert pool.end(0), "there is none yet"
    gate, at_work, seen = threading.Event(), threading.Semaphore(0), set()

    def work() -> None:
        seen.add(threading.get_ident())
        at_work.release()
        assert gate.wait(TIMEOUT_SEC)

    for _ in range(5):
        pool.put(work)
    for _ in range(2):
        assert at_work.acquire(timeout=TIMEOUT_SEC)
    assert len(seen) == 2
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    assert names.count("a name that is \n") == 2
    gate.set()
    assert pool.end(TIMEOUT_SEC), "what was put before is done"
    for _ in range(3):
        assert at_work.acquire(timeout=TIMEOUT_SEC)
    assert len(seen) == 2


def test_it_starts_anew_after_its_end(pool: Pool) -> None:
    for _ in range(2):
        done = threading.Event()
        pool.put(done.set)
        assert done.wait(TIMEOUT_SEC)
        assert pool.end(TIMEOUT_SEC)


def test_an_end_that_takes_too_long_is_said(pool: Pool) -> None:
    gate = threading.Event()
    pool.put(lambda: assert_true(gate.wait(TIMEOUT_SEC)))
    assert not pool.end(0.01)
    gate.set()


def assert_true(value: bool) -> None:
    assert value


def test_a_bug_costs_no_thread(pool: Pool, bugs: list[Exception]) -> None:
    done = threading.Event()
    for _ in range(4):
        pool.put(lambda: assert_true(False))
    pool.put(done.set)
    assert done.wait(TIMEOUT_SEC)
    assert pool.end(TIMEOUT_SEC)
    assert len(bugs) == 4


def test_without_threads_the_caller_does_it(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    done: list[int] = []
    pool.put(lambda: done.append(threading.get_ident()))
    assert done == [threading.get_ident()]
