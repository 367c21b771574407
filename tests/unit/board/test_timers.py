"""Timers: who calls when, from which thread, and that nothing is due when nothing was asked for."""

from __future__ import annotations

import select
import threading
from collections.abc import Iterator

import pytest

from vmservice.board.timers import Timers


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timers(clock: Clock) -> Iterator[Timers]:
    timers = Timers(clock)
    yield timers
    timers.close()


def is_woken(timers: Timers) -> bool:
    return bool(select.select([timers.fd], [], [], 0)[0])


def test_nothing_is_due_when_nothing_was_asked_for(timers: Timers) -> None:
    assert timers.run_due() is None
    assert not is_woken(timers)


def test_calls_are_made_when_due_and_in_their_order(timers: Timers, clock: Clock) -> None:
    made: list[str] = []
    timers.call_at(103.0, lambda: made.append("third"))
    timers.call_later(1.0, lambda: made.append("first"))
    timers.call_at(102.0, lambda: made.append("second"))
    assert timers.run_due() == 101.0 and made == []
    clock.now = 102.5
    assert timers.run_due() == 103.0
    assert made == ["first", "second"]
    clock.now = 103.0
    assert timers.run_due() is None
    assert made == ["first", "second", "third"]


def test_a_cancelled_call_is_not_made_and_not_waited_for(timers: Timers, clock: Clock) -> None:
    made: list[str] = []
    first = timers.call_later(1.0, lambda: made.append("first"))
    second = timers.call_later(2.0, lambda: made.append("second"))
    first.cancel()
    assert not first.is_pending and second.is_pending
    assert timers.run_due() == 102.0
    clock.now = 105.0
    assert timers.run_due() is None
    assert made == ["second"] and not second.is_pending


def test_only_an_earlier_call_wakes_the_loop(timers: Timers) -> None:
    timers.call_later(5.0, lambda: None)
    assert is_woken(timers)
    assert timers.run_due() == 105.0
    assert not is_woken(timers)
    timers.call_later(6.0, lambda: None)
    assert not is_woken(timers), "the loop comes back before that anyway"
    timers.call_later(4.0, lambda: None)
    assert is_woken(timers)
    assert timers.run_due() == 104.0


def test_a_call_may_ask_for_the_next_one(timers: Timers, clock: Clock) -> None:
    made: list[float] = []

    def again() -> None:
        made.append(clock.now)
        timers.call_later(1.0, again)

    timers.call_later(1.0, again)
    for _ in range(3):
        clock.now += 1.0
        assert timers.run_due() == clock.now + 1.0
    assert made == [101.0, 102.0, 103.0]


def test_a_call_may_cancel_another_that_is_due_with_it(timers: Timers, clock: Clock) -> None:
    made: list[str] = []
    later = timers.call_at(102.0, lambda: made.append("cancelled"))
    timers.call_at(101.0, later.cancel)
    clock.now = 103.0
    assert timers.run_due() is None
    assert made == []


def test_another_thread_may_ask(timers: Timers, clock: Clock) -> None:
    made: list[int] = []
    assert timers.run_due() is None
    threads = [
        threading.Thread(target=lambda: [timers.call_later(number, lambda: made.append(1)) for number in range(100)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert is_woken(timers)
    clock.now += 1000.0
    assert timers.run_due() is None
    assert len(made) == 400
