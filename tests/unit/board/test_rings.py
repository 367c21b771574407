"""Virtqueues with threads of their own: a dummy device that waits for its host, worked by the driver-side virtqueue."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest
from support.guest_ram import MIB, guest_ram
from support.virtqueue import DRIVER_READY, Driver, DriverQueue

from vmservice.board.rings import ThreadRings
from vmservice.devices.state import DeviceState
from vmservice.devices.virtio import transport
from vmservice.devices.virtio.queue import Chain, Queue
from vmservice.errors import GuestError, HostError
from vmservice.memory.guest_memory import GuestMemory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.devices.virtio.device import DriverPort

TIMEOUT_SEC = 60.0
# What nobody waits for who is not held up.
LONG_SEC = 30.0


class Sluggish:
    """Two virtqueues, whose requests are answered with themselves, in capitals; where `gate` is closed they wait for it."""

    device_type = 42
    features = 0
    queue_max_sizes = (8, 8)

    def __init__(self) -> None:
        self.state = DeviceState()
        self.gate = threading.Event()
        self.gate.set()
        self.at_the_gate = threading.Event()
        self.threads: set[int] = set()
        self.bugs: list[Exception] = []
        self.resets = 0
        self.rings = ThreadRings("sluggish", 2, self.serve, self.bugs.append)

    def serve(self, index: int, queue: Queue) -> bool:
        self.threads.add(threading.get_ident())
        return queue.drain(self.answer)

    def answer(self, chain: Chain) -> int:
        request = chain.read(100)
        if request == b"bug":
            raise RuntimeError("ours")
        if not self.gate.is_set():
            self.at_the_gate.set()
            assert self.gate.wait(TIMEOUT_SEC)
        return chain.write(request.upper())

    def read_config(self, offset: int, size: int) -> bytes:
        return bytes(size)

    def write_config(self, offset: int, data: bytes) -> None: ...

    def activate(self, queues: list[Queue], interrupt: DriverPort, features: int) -> None: ...

    def reset(self) -> None:
        self.resets += 1

    def notify(self, index: int) -> None:
        raise AssertionError("the ring owner is notified instead")


class Bench:
    def __init__(self, memory: GuestMemory) -> None:
        self.device = Sluggish()
        self.driver = Driver(self.device, memory, rings=self.device.rings)

    def kick(self, index: int) -> None:
        with self.driver.transport.lock:
            self.driver.kick(index)

    def start(self) -> list[DriverQueue]:
        with self.driver.transport.lock:
            return self.driver.start()

    def ask(self, index: int, request: bytes) -> None:
        self.driver.queues[index].add([request], [100])
        self.kick(index)

    def answers(self, index: int, count: int = 1) -> list[bytes]:
        queue, taken = self.driver.queues[index], []
        for _ in wait():
            taken += [data for _, _, data in queue.take_used()]
            if len(taken) >= count:
                return taken
        raise AssertionError(f"{taken} are all answers")

    def interrupted(self, index: int) -> None:
        """Wait for an interrupt of the virtqueue."""
        for _ in wait():
            self.driver.run_posted()
            if index in self.driver.interrupt.queues:
                self.driver.interrupt.take()
                return
        raise AssertionError("no interrupt came")


def wait() -> Iterator[None]:
    deadline = time.monotonic() + TIMEOUT_SEC
    while time.monotonic() < deadline:
        yield
        time.sleep(0.001)


@pytest.fixture
def bench() -> Iterator[Bench]:
    memory = guest_ram((0, 4 * MIB))
    bench = Bench(memory)
    yield bench
    bench.device.gate.set()
    bench.driver.transport.close()
    bench.device.rings.close()
    memory.close()


def test_each_virtqueue_has_a_thread_that_answers(bench: Bench) -> None:
    bench.start()
    for index in (0, 1):
        bench.ask(index, b"hello")
        bench.interrupted(index)  # first: one who looks before it comes has said not to need it
        assert bench.answers(index) == [b"HELLO"]
    assert len(bench.device.threads) == 2
    assert threading.get_ident() not in bench.device.threads
    assert bench.driver.posted == []


def test_what_was_there_before_the_device_was_ready_needs_no_notification(bench: Bench) -> None:
    (first, _) = bench.driver.start(stop_before_ok=True)
    first.add([b"early"], [10])
    with bench.driver.transport.lock:
        bench.driver.transport.write_status(DRIVER_READY)
    assert bench.answers(0) == [b"EARLY"]


def test_one_that_waits_holds_nobody_up(bench: Bench) -> None:
    bench.start()
    bench.device.gate.clear()
    bench.ask(0, b"slow")
    assert bench.device.at_the_gate.wait(TIMEOUT_SEC)
    assert bench.driver.transport.lock.acquire(timeout=TIMEOUT_SEC)
    bench.driver.transport.lock.release()
    bench.device.gate.set()
    bench.ask(1, b"quick")
    assert bench.answers(1) == [b"QUICK"]
    assert bench.answers(0) == [b"SLOW"]


def test_a_stop_waits_for_what_is_under_way_and_says_where_it_ends(bench: Bench) -> None:
    bench.start()
    bench.device.gate.clear()
    bench.ask(0, b"one")
    assert bench.device.at_the_gate.wait(TIMEOUT_SEC)
    threading.Timer(0.05, bench.device.gate.set).start()
    bench.driver.transport.stop()
    assert bench.driver.queues[0].used_index() == 1
    assert bench.driver.transport.state.queues[0].next_available == 1
    bench.device.threads.clear()
    bench.ask(0, b"two")  # while it is stopped
    assert bench.driver.queues[0].used_index() == 1
    bench.driver.transport.start()
    bench.interrupted(0)
    assert bench.answers(0, 2) == [b"ONE", b"TWO"]


def test_a_stop_that_is_not_done_in_time_changes_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "STOP_TIMEOUT_SEC", 0.05)
    bench.start()
    bench.device.gate.clear()
    bench.ask(1, b"stuck")
    assert bench.device.at_the_gate.wait(TIMEOUT_SEC)
    assert not bench.driver.transport.stop()
    bench.device.gate.set()
    assert bench.answers(1) == [b"STUCK"]
    for index in (0, 1):
        bench.ask(index, b"again")
        assert bench.answers(index) == [b"AGAIN"]
    monkeypatch.undo()


def test_a_reset_is_done_when_the_last_request_is(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver may use the memory for something else once the status reads 0 (virtio 1.2 §4.1.4.3.2)."""
    monkeypatch.setattr(transport, "STOP_TIMEOUT_SEC", 2 * LONG_SEC)
    bench.start()
    bench.device.gate.clear()
    bench.ask(0, b"late")
    assert bench.device.at_the_gate.wait(TIMEOUT_SEC)
    with bench.driver.transport.lock:
        start = time.monotonic()
        bench.driver.transport.write_status(0)
        assert time.monotonic() - start < LONG_SEC, "the lock is not held for as long as a host takes"
        assert bench.driver.transport.status == DRIVER_READY
    assert bench.device.resets == 1, "of the driver's first write"
    bench.device.gate.set()
    for _ in wait():
        with bench.driver.transport.lock:
            if bench.driver.transport.status == 0:
                break
    assert bench.driver.queues[0].used_index() == 1
    assert bench.device.resets == 2
    bench.start()
    bench.ask(0, b"again")
    assert bench.answers(0) == [b"AGAIN"]


def test_a_reset_under_way_is_finished_by_a_pause(bench: Bench) -> None:
    bench.start()
    bench.device.gate.clear()
    bench.ask(0, b"late")
    assert bench.device.at_the_gate.wait(TIMEOUT_SEC)
    with bench.driver.transport.lock:
        bench.driver.transport.write_status(0)
    threading.Timer(0.05, bench.device.gate.set).start()
    assert bench.driver.transport.stop()
    assert bench.driver.transport.state.status == 0
    bench.driver.transport.start()
    bench.start()
    bench.ask(0, b"again")
    assert bench.answers(0) == [b"AGAIN"]


def test_a_broken_device_is_not_served_after_a_pause(bench: Bench) -> None:
    bench.start()
    bench.device.gate.clear()
    bench.ask(0, b"late")
    assert bench.device.at_the_gate.wait(TIMEOUT_SEC)
    with bench.driver.transport.lock:
        bench.driver.transport.needs_reset(GuestError("a lie"))
    bench.device.gate.set()
    assert bench.driver.transport.stop()
    bench.driver.transport.start()
    bench.ask(1, b"x")
    assert bench.driver.transport.stop()
    assert bench.driver.queues[1].used_index() == 0
    assert bench.driver.is_broken


def test_guest_memory_is_not_given_back_under_a_request(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "STOP_TIMEOUT_SEC", 0.05)
    bench.start()
    bench.device.gate.clear()
    bench.ask(0, b"late")
    assert bench.device.at_the_gate.wait(TIMEOUT_SEC)
    with pytest.raises(HostError, match=r"takes more than 0\.05 seconds"):
        bench.driver.transport.close()
    monkeypatch.undo()


def test_a_host_without_threads_breaks_the_device_and_nothing_else(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("vmservice.board.ring_threads._thread.start_new_thread", refuse)
    with bench.driver.transport.lock:
        bench.driver.start(stop_before_ok=True)
        bench.driver.transport.write_status(DRIVER_READY)
    assert bench.driver.is_broken
    assert "cannot start a thread for virtqueue 0" in bench.driver.warnings[0]
    monkeypatch.undo()
    bench.start()
    bench.ask(0, b"again")
    assert bench.answers(0) == [b"AGAIN"]


def test_a_reset_while_the_lock_is_held_waits_for_no_interrupt(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that has just answered wants the lock to interrupt; whoever resets has it, and waits for the thread."""
    monkeypatch.setattr(transport, "STOP_TIMEOUT_SEC", 2 * LONG_SEC)
    bench.start()
    for _ in range(20):
        bench.ask(0, b"x")
        start = time.monotonic()
        with bench.driver.transport.lock:
            bench.driver.transport.write_status(0)
        assert time.monotonic() - start < LONG_SEC
        bench.start()
    bench.driver.run_posted()
    assert bench.device.bugs == []


def test_an_interrupt_that_finds_the_lock_held_comes_later(bench: Bench) -> None:
    bench.start()
    with bench.driver.transport.lock:
        bench.driver.kick(0)
        bench.driver.queues[0].add([b"x"], [1])
        bench.driver.kick(0)
        for _ in wait():
            if bench.driver.posted:
                break
        assert bench.driver.interrupt.queues == []
    bench.interrupted(0)


def test_a_lie_stops_the_device_until_its_reset(bench: Bench) -> None:
    (first, _) = bench.start()
    first.set_available_index(0x7000)
    bench.kick(0)
    for _ in wait():
        bench.driver.run_posted()
        if bench.driver.is_broken:
            break
    assert bench.driver.is_broken
    assert "the available ring's index jumps" in bench.driver.warnings[0]
    bench.start()
    bench.ask(0, b"sound")
    assert bench.answers(0) == [b"SOUND"]


def test_a_lie_of_the_driver_before_this_one_is_not_held_against_it(bench: Bench) -> None:
    (first, _) = bench.start()
    first.set_available_index(0x7000)
    bench.kick(0)
    assert any(bench.driver.posted for _ in wait())
    bench.start()
    bench.driver.run_posted()
    assert not bench.driver.is_broken


def test_a_bug_is_told(bench: Bench) -> None:
    bench.start()
    bench.ask(0, b"bug")
    for _ in wait():
        if bench.device.bugs:
            break
    assert [str(bug) for bug in bench.device.bugs] == ["ours"]
    bench.device.bugs.clear()  # their tracebacks have views of the guest's memory


def test_a_virtqueue_that_never_runs_dry_can_be_stopped(bench: Bench) -> None:
    (first, _) = bench.start()
    asked = threading.Event()

    def again(chain: Chain) -> int:
        assert asked.wait(TIMEOUT_SEC)  # the driver's side is not for two threads at once
        first.make_available(chain.head)
        return 0

    bench.device.answer = again  # type: ignore[method-assign]
    bench.ask(0, b"on and on")
    asked.set()
    assert any(first.used_index() > 100 for _ in wait())
    assert bench.driver.transport.stop()
    before = first.used_index()
    assert bench.driver.transport.state.queues[0].next_available == before


def test_a_ring_without_bus_mastering_is_stopped(bench: Bench) -> None:
    bench.start()
    with bench.driver.transport.lock:
        bench.driver.transport.set_dma(False)
    bench.ask(0, b"held")
    os.eventfd_write(bench.device.rings.kicks[0], 1)
    assert bench.driver.queues[0].used_index() == 0
    with bench.driver.transport.lock:
        bench.driver.transport.set_dma(True)
    assert bench.answers(0) == [b"HELD"]


def test_no_descriptor_is_left_behind_where_there_are_none() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 2, before[1]))
    try:
        with pytest.raises(HostError, match=r"^no eventfd for a virtqueue of disk: Too many open files \(errno 24\)$"):
            ThreadRings("disk", 64, _never, _unexpected)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(os.listdir("/proc/self/fd")) == used


def _never(index: int, queue: Queue) -> bool:
    raise GuestError("not served")


def _unexpected(error: Exception) -> None:
    raise AssertionError(error)
