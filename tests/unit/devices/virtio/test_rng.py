"""The entropy device: bytes of the source, as many as asked for, at a rate."""

from __future__ import annotations

import pytest
from support.timers import FakeTimers
from support.virtqueue import Driver

from vmservice.devices.virtio.rng import MAX_REQUEST_BYTES, QUEUE_SIZE, Rng, RngState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from support.virtqueue import MakeDriver


class Source:
    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, size: int) -> bytes:
        self.asked.append(size)
        return bytes(range(1, 1 + min(size, 255))).ljust(size, b"\xee")


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def timers() -> FakeTimers:
    return FakeTimers()


@pytest.fixture
def driver(source: Source, timers: FakeTimers, make_driver: MakeDriver) -> Driver:
    return make_driver(Rng(source, timers.call_later, bytes_per_sec=1000, clock=timers.now))


def test_what_it_is(driver: Driver) -> None:
    assert (Rng.device_type, Rng.features, Rng.queue_max_sizes) == (4, 0, (64,))
    assert driver.transport.read_config(0, 8) == bytes(8)


def test_a_request_gets_the_bytes_of_the_source(driver: Driver, source: Source) -> None:
    (queue,) = driver.start()
    queue.add(writable=[3, 5])
    driver.kick()
    assert queue.take_used() == [(0, 8, bytes(range(1, 9)))]
    assert source.asked == [8]
    assert driver.interrupt.take() == [0]


def test_one_interrupt_for_all_that_is_there(driver: Driver) -> None:
    (queue,) = driver.start()
    for _ in range(QUEUE_SIZE):
        queue.add(writable=[1])
    driver.kick()
    assert len(queue.take_used()) == QUEUE_SIZE
    assert driver.interrupt.take() == [0]


def test_more_than_the_rate_waits(driver: Driver, timers: FakeTimers, source: Source) -> None:
    (queue,) = driver.start()
    for _ in range(4):
        queue.add(writable=[400])
    driver.kick()
    assert [written for _, written, _ in queue.take_used()] == [400, 400, 200]
    assert timers.pending == 1
    driver.kick()
    assert (queue.take_used(), timers.pending) == ([], 1)
    timers.advance(0.25)
    assert [written for _, written, _ in queue.take_used()] == [100]
    assert sum(source.asked) == 1100
    assert driver.interrupt.take() == [0, 0]
    assert timers.pending == 0


def test_what_is_not_used_is_not_saved_up(driver: Driver, timers: FakeTimers) -> None:
    (queue,) = driver.start()
    timers.advance(1_000_000)
    queue.add(writable=[5000])
    driver.kick()
    assert [written for _, written, _ in queue.take_used()] == [1000]


def test_one_request_is_bounded(source: Source, timers: FakeTimers, make_driver: MakeDriver) -> None:
    driver = make_driver(Rng(source, timers.call_later, bytes_per_sec=1 << 30))
    (queue,) = driver.start()
    queue.describe(0, 0x100000, 4 << 20, 2)
    queue.make_available(0)
    driver.kick()
    assert source.asked == [MAX_REQUEST_BYTES]


def test_a_reset_drops_what_waits(driver: Driver, timers: FakeTimers) -> None:
    (queue,) = driver.start()
    queue.add(writable=[1000])
    queue.add(writable=[10])
    driver.kick()
    assert timers.pending == 1
    driver.transport.write_status(0)
    assert timers.pending == 0
    assert len(queue.take_used()) == 1


def test_a_request_with_something_to_read_is_refused(driver: Driver, source: Source) -> None:
    (queue,) = driver.start()
    queue.add([b"seed"], [8])
    driver.kick()
    assert driver.is_broken
    assert "a request for entropy" in driver.warnings[0]
    assert source.asked == []


def test_a_lie_that_the_timer_comes_upon(driver: Driver, timers: FakeTimers) -> None:
    (queue,) = driver.start()
    queue.add(writable=[1000])
    queue.add(writable=[10])
    driver.kick()
    queue.set_available_index(5000)
    timers.advance(0.1)
    assert driver.is_broken
    assert driver.interrupt.configs == 1
    assert timers.pending == 0
    (queue,) = driver.start()
    queue.add(writable=[1])
    driver.kick()
    assert len(queue.take_used()) == 1


def test_one_that_goes_on_from_a_state_has_no_more_to_give_than_it_had(
    driver: Driver, source: Source, timers: FakeTimers, make_driver: MakeDriver
) -> None:
    (queue,) = driver.start()
    queue.add(writable=[600])
    driver.kick()
    assert isinstance(driver.device, Rng)
    state = RngState.from_values(driver.device.state.values())
    timers.advance(3600)
    other = make_driver(Rng(source, timers.call_later, state, bytes_per_sec=1000, clock=timers.now))
    (queue,) = other.start()
    queue.add(writable=[600])
    other.kick()
    assert [written for _, written, _ in queue.take_used()] == [400]
