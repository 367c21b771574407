"""The entropy device: bytes of the source, as many as asked for, at a rate."""

from __future__ import annotations

import pytest
from support.virtqueue import Driver

from vmservice.devices.virtio.rng import MAX_REQUEST_BYTES, QUEUE_SIZE, Rng

TYPE_CHECKING = False
if TYPE_CHECKING:
    from support.virtqueue import MakeDriver


class Source:
    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, size: int) -> bytes:
        self.asked.append(size)
        return bytes(range(1, 1 + min(size, 255))).ljust(size, b"\xee")


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def driver(source: Source, clock: Clock, make_driver: MakeDriver) -> Driver:
    return make_driver(Rng(source, bytes_per_sec=1000, clock=clock))


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


def test_more_than_the_rate_waits(driver: Driver, clock: Clock, source: Source) -> None:
    device = driver.device
    assert isinstance(device, Rng)
    (queue,) = driver.start()
    for _ in range(4):
        queue.add(writable=[400])
    driver.kick()
    assert [written for _, written, _ in queue.take_used()] == [400, 400, 200]
    device.tick()
    assert queue.take_used() == []
    clock.now += 0.25
    device.tick()
    assert [written for _, written, _ in queue.take_used()] == [250]
    assert sum(source.asked) == 1250
    assert driver.interrupt.take() == [0, 0]


def test_what_is_not_used_is_not_saved_up(driver: Driver, clock: Clock) -> None:
    (queue,) = driver.start()
    clock.now += 1_000_000
    queue.add(writable=[5000])
    driver.kick()
    assert [written for _, written, _ in queue.take_used()] == [1000]


def test_one_request_is_bounded(source: Source, make_driver: MakeDriver) -> None:
    driver = make_driver(Rng(source, bytes_per_sec=1 << 30))
    (queue,) = driver.start()
    queue.describe(0, 0x100000, 4 << 20, 2)
    queue.make_available(0)
    driver.kick()
    assert source.asked == [MAX_REQUEST_BYTES]


def test_a_reset_drops_what_waits(driver: Driver, clock: Clock) -> None:
    device = driver.device
    assert isinstance(device, Rng)
    (queue,) = driver.start()
    queue.add(writable=[1000])
    queue.add(writable=[10])
    driver.kick()
    driver.transport.write_status(0)
    clock.now += 1
    device.tick()
    assert len(queue.take_used()) == 1


def test_a_request_with_something_to_read_is_refused(driver: Driver, source: Source) -> None:
    (queue,) = driver.start()
    queue.add([b"seed"], [8])
    driver.kick()
    assert driver.is_broken
    assert "a request for entropy" in driver.warnings[0]
    assert source.asked == []


def test_a_lie_that_a_tick_comes_upon(driver: Driver) -> None:
    device = driver.device
    assert isinstance(device, Rng)
    (queue,) = driver.start()
    queue.set_available_index(5000)
    device.tick()
    assert driver.is_broken
    assert driver.interrupt.configs == 1
    device.tick()
    (queue,) = driver.start()
    queue.add(writable=[1])
    driver.kick()
    assert len(queue.take_used()) == 1
