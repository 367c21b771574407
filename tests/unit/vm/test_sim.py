"""The simulated machine: alive while it runs, still while it is paused, and gone without a trace."""

from __future__ import annotations

import queue
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vmservice.errors import InvalidArgument
from vmservice.vm.events import EventKind, EventQueue, GuestEvent
from vmservice.vm.sim import SimMachine

TIMEOUT_SEC = 60.0


class Guest:
    def __init__(self, heartbeat_sec: float, poweroff_sec: float, resize_sec: float) -> None:
        self.lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.events = EventQueue()
        self.machine = SimMachine(
            self.events,
            self.lines.put,
            vcpus=2,
            max_vcpus=4,
            heartbeat_sec=heartbeat_sec,
            poweroff_sec=poweroff_sec,
            resize_sec=resize_sec,
        )

    def line(self) -> bytes:
        return self.lines.get(timeout=TIMEOUT_SEC)


@contextmanager
def guest(heartbeat_sec: float = 1000.0, poweroff_sec: float = 1000.0, resize_sec: float = 0.0) -> Iterator[Guest]:
    it = Guest(heartbeat_sec, poweroff_sec, resize_sec)
    try:
        yield it
    finally:
        it.machine.close()
        it.events.close()


def test_heartbeats() -> None:
    with guest(heartbeat_sec=0.001) as it:
        it.machine.start()
        assert it.line() == b"simulated guest: 2 vCPUs, no KVM\r\n"
        for number in range(1, 6):
            assert it.line() == f"simulated guest: heartbeat {number}\r\n".encode()


def test_a_paused_guest_is_still_as_soon_as_pause_returns() -> None:
    with guest(heartbeat_sec=0.0005) as it:
        it.machine.start()
        for _ in range(20):
            it.line()
            it.machine.pause()
            while not it.lines.empty():
                it.line()
            with pytest.raises(queue.Empty):
                it.lines.get(timeout=0.003)
            it.machine.resume()


def test_the_power_button() -> None:
    with guest(poweroff_sec=0.001) as it:
        it.machine.start()
        it.line()
        it.machine.press_power_button()
        it.machine.press_power_button()
        assert it.line() == b"simulated guest: power button pressed, going down\r\n"
        assert select.select([it.events.fd], [], [], TIMEOUT_SEC)[0]
        (event,) = it.events.drain()
        assert (event.kind, event.source) == (EventKind.POWEROFF, it.machine)
        assert it.line() == b"simulated guest: power off\r\n"
        assert it.machine.console_input(b"x") == 0


def test_guest_time_stands_still_while_paused() -> None:
    with guest(poweroff_sec=0.4) as it:
        it.machine.start()
        it.machine.press_power_button()
        pressed = time.monotonic()
        it.machine.pause()
        ran_sec = time.monotonic() - pressed
        assert not select.select([it.events.fd], [], [], 0.5)[0]
        resumed = time.monotonic()
        it.machine.resume()
        assert select.select([it.events.fd], [], [], TIMEOUT_SEC)[0]
        assert time.monotonic() - resumed > 0.4 - ran_sec - 0.01


def test_vcpus() -> None:
    with guest() as it:
        it.machine.start()
        it.line()
        it.machine.set_vcpus(4)
        assert it.machine.vcpus == 4
        assert it.line() == b"simulated guest: 4 vCPUs\r\n"
        for count in (0, 5):
            with pytest.raises(InvalidArgument, match="takes 1 to 4"):
                it.machine.set_vcpus(count)
        assert it.machine.vcpus == 4


def test_a_resize_that_takes_its_time() -> None:
    with guest(resize_sec=0.01) as it:
        it.machine.start()
        it.line()
        it.machine.set_vcpus(4)
        assert it.machine.vcpus == 2
        events: list[GuestEvent] = []
        for count in (3, 4):
            assert it.line() == f"simulated guest: {count} vCPUs\r\n".encode()
            while len(events) < count - 2:
                assert select.select([it.events.fd], [], [], TIMEOUT_SEC)[0]
                events += it.events.drain()
        assert [(event.kind, event.source) for event in events] == [(EventKind.VCPUS, it.machine)] * 2
        it.machine.set_vcpus(1)
        it.machine.pause()
        at_rest = it.machine.vcpus
        assert not select.select([it.events.fd], [], [], 0.05)[0] or at_rest < 4
        assert it.machine.vcpus == at_rest
        it.machine.resume()
        it.machine.cancel_set_vcpus()
        it.events.drain()
        assert not select.select([it.events.fd], [], [], 0.05)[0]


def test_typing_is_echoed() -> None:
    with guest() as it:
        it.machine.start()
        it.line()
        assert it.machine.console_input(b"hello") == 5
        assert it.line() == b"hello"
        it.machine.pause()
        assert it.machine.console_input(b"hello") == 0


def test_close_from_every_condition_and_twice() -> None:
    for prepare in ([], ["start"], ["start", "pause"], ["start", "pause", "resume"], ["start", "press_power_button"]):
        with guest(heartbeat_sec=0.001) as it:
            for call in prepare:
                getattr(it.machine, call)()
            it.machine.close()
            while not it.lines.empty():
                it.line()
            it.machine.close()
            assert it.lines.empty()


def test_fifty_boots_leave_nothing() -> None:
    """The fixture counts threads and descriptors."""
    for _ in range(50):
        with guest() as it:
            it.machine.start()
            it.machine.close()
            assert not it.machine._ended.locked(), "close returns when the thread has done all it does"
