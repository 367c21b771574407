"""What both transports share: the order of initialisation, what a driver may set when, and what becomes of one that lies."""

from __future__ import annotations

import pytest
from support.virtqueue import QUEUES_GPA, Driver, DriverQueue, offered

from vmservice.devices.limited_warnings import INTERVAL_SEC
from vmservice.devices.state import DeviceState
from vmservice.devices.virtio.device import cut_config
from vmservice.devices.virtio.ids import EVENT_IDX, INDIRECT_DESC, VERSION_1
from vmservice.devices.virtio.queue import USED, Queue
from vmservice.devices.virtio.transport import (
    ACKNOWLEDGE,
    DRIVER,
    DRIVER_OK,
    FAILED,
    FEATURES_OK,
    NEEDS_RESET,
    VirtioTransport,
)
from vmservice.devices.virtio.transport_state import TransportState
from vmservice.errors import GuestError
from vmservice.memory.guest_memory import GuestMemory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from support.virtqueue import MakeDriver

    from vmservice.devices.virtio.device import DriverPort

OWN_FEATURE = 1 << 3
HIGH_FEATURE = 1 << 40


class Echo:
    """A device that gives each chain back as it is, and notes what it is told."""

    device_type = 99
    features = OWN_FEATURE | HIGH_FEATURE
    queue_max_sizes = (8, 256)

    def __init__(self) -> None:
        self.state = DeviceState()
        self.config = bytearray(b"configuration")
        self.queues: list[Queue] = []
        self.port: DriverPort | None = None
        self.told: list[str] = []

    def read_config(self, offset: int, size: int) -> bytes:
        return cut_config(bytes(self.config), offset, size)

    def write_config(self, offset: int, data: bytes) -> None:
        self.config[offset : offset + len(data)] = data

    def activate(self, queues: list[Queue], interrupt: DriverPort, features: int) -> None:
        self.told.append(f"activate {features:#x}")
        self.queues, self.port = queues, interrupt

    def reset(self) -> None:
        self.told.append("reset")
        self.queues, self.port = [], None

    def notify(self, index: int) -> None:
        self.told.append(f"notify {index}")
        if self.port is not None and self.queues[index].drain(lambda chain: 0):
            self.port.interrupt_queue(index)

    def take_told(self) -> list[str]:
        told, self.told = self.told, []
        return told


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def driver(echo: Echo, make_driver: MakeDriver) -> Driver:
    return make_driver(echo)


# Features


def test_the_transport_adds_its_own_features(driver: Driver) -> None:
    assert offered(driver.transport) == OWN_FEATURE | HIGH_FEATURE | VERSION_1 | INDIRECT_DESC | EVENT_IDX


def test_there_are_two_windows_of_features(driver: Driver) -> None:
    transport = driver.transport
    for select in (2, 3, 0xFFFFFFFF):
        transport.select_device_features(select)
        transport.select_driver_features(select)
        transport.write_driver_features(0xFFFFFFFF)
        assert transport.device_features() == transport.driver_features() == 0
    assert transport.state.driver_features == 0


def test_a_driver_may_take_fewer_features(driver: Driver, echo: Echo) -> None:
    driver.start(OWN_FEATURE)
    assert f"activate {OWN_FEATURE | VERSION_1:#x}" in echo.told


@pytest.mark.parametrize("features", [VERSION_1 | 1, VERSION_1 | 1 << 63, OWN_FEATURE, 0])
def test_features_that_cannot_be_are_refused(driver: Driver, features: int) -> None:
    """One that was not offered, or a driver of the time before virtio 1.0: FEATURES_OK stays clear (§3.1.1)."""
    transport = driver.transport
    transport.write_status(ACKNOWLEDGE | DRIVER)
    for half in range(2):
        transport.select_driver_features(half)
        transport.write_driver_features(features >> 32 * half & 0xFFFFFFFF)
    transport.write_status(ACKNOWLEDGE | DRIVER | FEATURES_OK)
    assert transport.status == ACKNOWLEDGE | DRIVER
    transport.write_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
    assert transport.status == ACKNOWLEDGE | DRIVER


def test_features_are_fixed_once_they_are_agreed_on(driver: Driver) -> None:
    driver.start(OWN_FEATURE, stop_before_ok=True)
    driver.transport.select_driver_features(0)
    driver.transport.write_driver_features(0)
    assert driver.transport.driver_features() == OWN_FEATURE


# Status


def test_status_bits_come_in_their_order(driver: Driver, echo: Echo) -> None:
    transport = driver.transport
    transport.write_status(DRIVER_OK)
    assert transport.status == 0
    transport.write_status(FEATURES_OK)
    assert transport.status == 0
    transport.write_status(ACKNOWLEDGE)
    assert transport.status == ACKNOWLEDGE
    assert echo.told == []


def test_status_bits_are_not_taken_back(driver: Driver) -> None:
    driver.start()
    driver.transport.write_status(ACKNOWLEDGE)
    assert driver.transport.status == 0x0F


def test_a_driver_does_not_set_needs_reset(driver: Driver) -> None:
    driver.transport.write_status(NEEDS_RESET)
    assert driver.transport.status == 0


def test_the_device_is_active_from_driver_ok_on(driver: Driver, echo: Echo) -> None:
    (first, _) = driver.start(stop_before_ok=True)
    first.add([b"early"])
    driver.kick(0)
    assert not [what for what in echo.told if what.startswith(("activate", "notify"))]
    driver.transport.write_status(0x0F)
    assert first.take_used() == [(0, 0, b"")], "what came before DRIVER_OK is looked at then, its notification was dropped"
    assert driver.interrupt.take() == [0]


def test_a_second_driver_ok_changes_nothing(driver: Driver, echo: Echo) -> None:
    driver.start()
    echo.take_told()
    driver.transport.write_status(0x0F)
    assert echo.take_told() == []


def test_a_driver_that_gives_up_gets_no_more(driver: Driver, echo: Echo) -> None:
    (first, _) = driver.start()
    driver.transport.write_status(0x0F | FAILED)
    assert driver.transport.status == 0x0F | FAILED
    echo.take_told()
    first.add([b"x"])
    driver.kick(0)
    assert first.take_used() == []
    assert echo.take_told() == []
    driver.start()
    assert driver.transport.status == 0x0F


def test_a_reset_forgets_all(driver: Driver, echo: Echo) -> None:
    driver.start()
    driver.transport.write_status(0)
    assert driver.transport.state == TransportState(echo.queue_max_sizes, echo.read_config(0, 256))
    assert echo.told[-1] == "reset"


# Virtqueues


def test_each_virtqueue_has_its_own_registers(driver: Driver) -> None:
    transport = driver.transport
    for index, size, address in ((0, 4, 0x1111_0000_2222_0000), (1, 64, 0x3333_0000_4444_0000)):
        transport.select_queue(index)
        transport.set_queue_size(size)
        transport.set_queue_address(USED, 32, address >> 32)
        transport.set_queue_address(USED, 0, address & 0xFFFFFFFF)
    transport.select_queue(0)
    assert (transport.queue_max_size(), transport.queue_size()) == (8, 4)
    assert transport.queue_address(USED) == 0x1111_0000_2222_0000
    transport.select_queue(1)
    assert (transport.queue_max_size(), transport.queue_size()) == (256, 64)
    assert transport.queue_address(USED) == 0x3333_0000_4444_0000


@pytest.mark.parametrize("index", [2, 0xFFFF, 0xFFFFFFFF])
def test_a_virtqueue_that_is_not_there_reads_as_zeros(driver: Driver, index: int) -> None:
    transport = driver.transport
    transport.select_queue(index)
    transport.set_queue_size(8)
    transport.set_queue_address(USED, 0, 0x1000)
    transport.set_queue_ready(True)
    assert transport.queue_max_size() == transport.queue_size() == transport.queue_address(USED) == 0
    assert not transport.queue_ready()


def test_a_virtqueue_is_at_its_largest_until_the_driver_says_less(driver: Driver) -> None:
    driver.transport.select_queue(1)
    assert driver.transport.queue_size() == 256


@pytest.mark.parametrize("size", [0, 3, 16, 0x100, 0x10000, 0x10008, 0xFFFFFFFF])
def test_a_size_that_cannot_be_breaks_the_device(driver: Driver, size: int) -> None:
    driver.start(stop_before_ok=True, sizes=(0, 0))
    transport = driver.transport
    transport.select_queue(0)
    transport.set_queue_size(size)
    transport.set_queue_ready(True)
    assert not transport.queue_ready()
    assert driver.is_broken
    assert driver.interrupt.configs == 0  # not before DRIVER_OK (§2.1.2)
    assert "entries cannot be; up to 8 are possible" in driver.warnings[0]
    driver.start()
    assert transport.status == 0x0F


def test_rings_outside_memory_break_the_device(driver: Driver) -> None:
    driver.start(stop_before_ok=True, sizes=(0, 0))
    driver.transport.select_queue(0)
    driver.transport.set_queue_size(8)
    driver.transport.set_queue_address(USED, 0, 0xFEC00000)
    driver.transport.set_queue_ready(True)
    assert driver.is_broken
    assert "the used ring, 70 bytes at guest address 0xfec00000, is not in guest memory" in driver.warnings[0]


def test_an_enabled_virtqueue_stays_where_it_is(driver: Driver) -> None:
    (first, _) = driver.start()
    transport = driver.transport
    transport.select_queue(0)
    before = repr(transport.state.queues[0])
    transport.set_queue_size(4)
    transport.set_queue_address(USED, 0, 0)
    transport.set_queue_ready(True)
    assert repr(transport.state.queues[0]) == before
    first.add([b"x"])
    driver.kick(0)
    assert len(first.take_used()) == 1


def test_a_virtqueue_that_was_not_enabled_is_not_looked_at(driver: Driver, echo: Echo) -> None:
    (first, second) = driver.start(sizes=(8, 0))
    echo.take_told()
    second.add([b"x"])
    driver.kick(1)
    driver.transport.select_queue(1)
    driver.transport.set_queue_size(8)
    driver.transport.set_queue_ready(True)  # too late: the device is active
    driver.kick(1)
    assert not driver.transport.queue_ready()
    assert echo.take_told() == []
    first.add([b"x"])
    driver.kick(0)
    assert len(first.take_used()) == 1


def test_a_disabled_virtqueue_is_left_alone_until_the_reset(driver: Driver) -> None:
    (first, _) = driver.start()
    driver.transport.select_queue(0)
    driver.transport.set_queue_ready(False)
    assert not driver.transport.queue_ready()
    first.add([b"x"])
    driver.kick(0)
    driver.transport.set_queue_ready(True)
    driver.kick(0)
    assert first.take_used() == []
    assert not driver.is_broken


@pytest.mark.parametrize("index", [2, 0xFFFF, 0xFFFFFFFF])
def test_a_notification_for_no_virtqueue_is_dropped(driver: Driver, echo: Echo, index: int) -> None:
    driver.start()
    echo.take_told()
    driver.kick(index)
    assert echo.take_told() == []


def test_one_interrupt_a_batch(driver: Driver) -> None:
    (_, second) = driver.start()
    for _ in range(10):
        second.add([b"x"])
    driver.kick(1)
    assert driver.interrupt.take() == [1]
    assert len(second.take_used()) == 10


def test_more_than_a_batch_is_gone_on_with(driver: Driver, echo: Echo) -> None:
    """A driver that adds as fast as the device takes: the lock is let go in between, and nothing stays in the ring."""
    (first, _) = driver.start()
    first.describe(0, QUEUES_GPA, 1)
    left = 20

    def again(chain: object) -> int:
        nonlocal left
        left -= 1
        if left > 0:
            first.make_available(0)
        return 0

    real_notify = echo.notify
    echo.notify = lambda index: echo.queues[index].drain(again) and None  # type: ignore[method-assign,assignment]
    first.make_available(0)
    for _ in range(5):
        driver.kick(0)  # what comes before its turn does nothing more
        assert (left, len(driver.posted)) == (12, 1)
    assert not driver.transport.lock.locked()
    driver.posted.pop()()
    assert (left, len(driver.posted)) == (4, 1)
    assert driver.run_posted() == 1
    assert left == 0
    driver.kick(0)
    assert driver.posted == []
    echo.notify = real_notify  # type: ignore[method-assign]


# Drivers that lie


def lie(queue: DriverQueue) -> None:
    queue.set_available_index(0x7000)


def test_a_lie_stops_the_device_until_its_reset(driver: Driver, echo: Echo) -> None:
    (first, second) = driver.start()
    lie(first)
    driver.kick(0)
    assert driver.transport.status == 0x0F | NEEDS_RESET
    assert driver.interrupt.configs == 1
    assert driver.interrupt.take() == []
    assert driver.warnings == [
        "the guest's driver broke the rules of virtio device Echo, which waits for its reset:"
        " the available ring's index jumps by 28672, but the virtqueue has 8 entries"
    ]
    assert echo.take_told()[-1] == "reset"

    second.add([b"x"])
    driver.kick(1)
    driver.kick(0)
    driver.transport.write_status(0x0F)
    assert driver.transport.status == 0x0F | NEEDS_RESET
    assert second.take_used() == []
    assert echo.take_told() == []

    (first, second) = driver.start()
    second.add([b"x"])
    driver.kick(1)
    assert len(second.take_used()) == 1
    assert driver.interrupt.take() == [1]


def test_a_lie_that_is_found_when_the_device_starts(driver: Driver) -> None:
    (first, _) = driver.start(stop_before_ok=True)
    lie(first)
    driver.transport.write_status(0x0F)
    assert driver.transport.status == 0x0F | NEEDS_RESET
    assert driver.interrupt.configs == 1


def test_a_lie_that_the_host_comes_upon(driver: Driver, echo: Echo) -> None:
    driver.start()
    assert echo.port is not None
    port = echo.port
    port.needs_reset(GuestError("found out"))
    assert driver.is_broken
    assert driver.interrupt.configs == 1
    port.interrupt_queue(0)
    port.needs_reset(GuestError("again"))
    assert driver.interrupt.queues == []
    assert driver.interrupt.configs == 1
    assert len(driver.warnings) == 1


def test_warnings_are_limited(echo: Echo, ram: GuestMemory) -> None:
    now = 1000.0
    driver = Driver(echo, ram, clock=lambda: now)
    for _ in range(5):
        (first, _) = driver.start()
        lie(first)
        driver.kick(0)
        assert driver.is_broken
    assert len(driver.warnings) == 1
    now += INTERVAL_SEC
    (first, _) = driver.start()
    lie(first)
    driver.kick(0)
    assert len(driver.warnings) == 2
    assert "waits for its reset: " in driver.warnings[1]
    assert driver.warnings[1].endswith(" (4 more like it since the last warning)")
    driver.transport.close()


# Configuration


def test_the_generation_changes_with_the_configuration(driver: Driver, echo: Echo) -> None:
    transport = driver.transport
    before = transport.config_generation()
    assert transport.config_generation() == before
    echo.config[3] ^= 1
    assert transport.config_generation() == before + 1
    assert transport.config_generation() == before + 1
    transport.write_status(0)
    assert transport.config_generation() == before + 1
    for _ in range(256):
        echo.config[0] ^= 1
        transport.config_generation()
    assert transport.config_generation() == before + 1


def test_configuration_changes_are_told_to_a_driver_that_is_there(driver: Driver, echo: Echo) -> None:
    driver.transport.interrupt_config()
    assert driver.interrupt.configs == 0
    driver.start()
    driver.transport.interrupt_config()
    assert driver.interrupt.configs == 1


def test_configuration_is_the_devices(driver: Driver, echo: Echo) -> None:
    driver.transport.write_config(2, b"XY")
    assert driver.transport.read_config(0, 6) == b"coXYig"
    assert driver.transport.read_config(10, 8) == b"ion" + bytes(5)


# State


def test_a_transport_made_from_the_state_of_another_goes_on(driver: Driver, echo: Echo, ram: GuestMemory) -> None:
    (first, _) = driver.start()
    first.add([b"x"])
    driver.kick(0)
    other_echo, told = Echo(), driver.interrupt
    other = VirtioTransport(
        other_echo, ram, told, warn=driver.warnings.append, post=driver.posted.append, state=driver.transport.state
    )
    assert other_echo.told == []
    other.start()
    assert other_echo.told[0].startswith("activate")
    first.add([b"y"])
    other.notify(0)
    assert len(first.take_used()) == 2
    assert other.state is driver.transport.state
    other.close()


def test_a_broken_device_stays_broken_in_another(driver: Driver, ram: GuestMemory) -> None:
    (first, _) = driver.start()
    lie(first)
    driver.kick(0)
    echo = Echo()
    other = VirtioTransport(
        echo, ram, driver.interrupt, warn=driver.warnings.append, post=driver.posted.append, state=driver.transport.state
    )
    other.start()
    assert echo.told == []


def test_memory_that_is_closed_in_the_meantime_is_let_go(driver: Driver, ram: GuestMemory) -> None:
    """`close` of the fixture's memory would fail were a view of it still held."""
    driver.start()
    driver.transport.close()
    driver.kick(0)
    assert not driver.is_broken
