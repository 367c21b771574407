"""virtio-balloon: pages that come back to the host, the target, free page reports and statistics."""

from __future__ import annotations

import struct

import pytest
from support.virtqueue import WRITE, Driver

from vmservice.devices.virtio.balloon import F_DEFLATE_ON_OOM, F_REPORTING, F_STATS, MAX_PAGES_IN_REQUEST, Balloon
from vmservice.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from support.virtqueue import MakeDriver

    from vmservice.memory.guest_memory import GuestMemory

INFLATE, DEFLATE, STATS = 0, 1, 2
MIB = 1 << 20


class Host:
    """The balloon of a guest of 8 MiB, and the memory that came back."""

    def __init__(self, ram: GuestMemory) -> None:
        self.discarded: list[tuple[int, int]] = []
        self.balloon = Balloon(ram, lambda gpa, size: self.discarded.append((gpa, size)))


@pytest.fixture
def host(ram: GuestMemory) -> Host:
    return Host(ram)


@pytest.fixture
def driver(host: Host, make_driver: MakeDriver) -> Driver:
    return make_driver(host.balloon)


def pages(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def test_what_it_is(host: Host) -> None:
    balloon = host.balloon
    assert (balloon.device_type, balloon.features) == (5, F_STATS | F_DEFLATE_ON_OOM | F_REPORTING)
    assert (F_STATS, F_DEFLATE_ON_OOM, F_REPORTING) == (2, 4, 32)
    assert min(balloon.queue_max_sizes) >= 32  # Linux' PAGE_REPORTING_CAPACITY


def test_the_target_is_told(host: Host, driver: Driver) -> None:
    host.balloon.set_target_bytes(2 * MIB)
    assert driver.interrupt.configs == 0
    driver.start()
    assert driver.transport.read_config(0, 8) == struct.pack("<II", 512, 0)
    host.balloon.set_target_bytes(1 * MIB + 4095)
    assert driver.interrupt.configs == 1
    assert host.balloon.statistics()["target_bytes"] == 1 * MIB
    host.balloon.set_target_bytes(1 * MIB)
    assert driver.interrupt.configs == 1
    assert driver.transport.read_config(0, 4) == struct.pack("<I", 256)


@pytest.mark.parametrize("size", [-1, 8 * MIB + 1])
def test_a_target_that_cannot_be(host: Host, size: int) -> None:
    with pytest.raises(InvalidArgument, match=f"a balloon of {size} bytes: it can have 0 to 8388608"):
        host.balloon.set_target_bytes(size)
    assert host.balloon.state.target_pages == 0


def test_what_is_in_the_balloon_is_the_drivers_word(host: Host, driver: Driver) -> None:
    driver.start()
    driver.transport.write_config(4, struct.pack("<I", 300))
    assert host.balloon.statistics()["actual_bytes"] == 300 * 4096
    for offset, byte in enumerate(struct.pack("<I", 0x01020304)):
        driver.transport.write_config(4 + offset, bytes([byte]))
    assert host.balloon.state.actual_pages == 0x01020304
    driver.transport.write_config(0, b"\xff" * 4)
    assert host.balloon.state.target_pages == 0
    driver.transport.write_config(2, b"\xff" * 4)
    assert host.balloon.state.actual_pages == 0x0102FFFF
    driver.transport.write_config(6, b"\0" * 8)
    assert host.balloon.state.actual_pages == 0xFFFF
    driver.transport.write_config(100, b"\xff")
    driver.transport.write_status(0)
    assert host.balloon.state.actual_pages == 0


def test_inflated_pages_come_back_to_the_host_in_ranges(host: Host, driver: Driver) -> None:
    driver.start()
    driver.queues[INFLATE].add([pages(1024, 1026, 1025), pages(2000, 1025)])
    driver.queues[INFLATE].add([pages(3)])
    driver.kick(INFLATE)
    assert host.discarded == [(4 * MIB, 3 * 4096), (2000 * 4096, 4096), (3 * 4096, 4096)]
    assert [(head, written) for head, written, _ in driver.queues[INFLATE].take_used()] == [(0, 0), (2, 0)]
    assert driver.interrupt.take() == [INFLATE]


def test_deflated_pages_are_acknowledged(host: Host, driver: Driver) -> None:
    driver.start()
    driver.queues[DEFLATE].add([pages(1024)])
    driver.kick(DEFLATE)
    assert host.discarded == []
    assert len(driver.queues[DEFLATE].take_used()) == 1
    assert driver.interrupt.take() == [DEFLATE]


@pytest.mark.parametrize("queue", [INFLATE, DEFLATE])
@pytest.mark.parametrize("page", [2048, 0xFEC00, 0xFFFFFFFF])
def test_a_page_outside_memory_breaks_the_device(host: Host, driver: Driver, queue: int, page: int) -> None:
    driver.start()
    driver.queues[queue].add([pages(1, page)])
    driver.kick(queue)
    assert driver.is_broken
    assert f"the page at guest address {page * 4096:#x}, for the balloon, is not in guest memory" in driver.warnings[0]
    assert host.discarded == []
    driver.start()
    driver.queues[queue].add([pages(1)])
    driver.kick(queue)
    assert len(driver.queues[queue].take_used()) == 1


@pytest.mark.parametrize("size", [1, 3, 4 * MAX_PAGES_IN_REQUEST + 4])
def test_a_request_of_another_size_breaks_the_device(host: Host, driver: Driver, size: int) -> None:
    driver.start()
    driver.queues[INFLATE].add([bytes(size)])
    driver.kick(INFLATE)
    assert driver.is_broken
    assert f"a balloon request of {size} bytes" in driver.warnings[0]
    assert host.discarded == []


def test_the_largest_request(host: Host, driver: Driver) -> None:
    driver.start()
    driver.queues[INFLATE].add([pages(*range(MAX_PAGES_IN_REQUEST))])
    driver.kick(INFLATE)
    assert host.discarded == [(0, 4096 * MAX_PAGES_IN_REQUEST)]


def test_a_request_that_can_be_written_breaks_the_device(host: Host, driver: Driver) -> None:
    driver.start()
    driver.queues[INFLATE].add([pages(1)], [4])
    driver.kick(INFLATE)
    assert driver.is_broken
    assert host.discarded == []


# Free page reporting


@pytest.mark.parametrize("queue", [3, 4])
def test_reported_pages_come_back_to_the_host(host: Host, driver: Driver, queue: int) -> None:
    """Linux counts the virtqueues that there are and uses the fourth, the specification calls it the fifth."""
    driver.start()
    vq = driver.queues[queue]
    vq.describe(0, 2 * MIB, MIB, WRITE | 1, 1)
    vq.describe(1, 4 * MIB, 8192, WRITE)
    vq.make_available(0)
    driver.kick(queue)
    assert host.discarded == [(2 * MIB, MIB), (4 * MIB, 8192)]
    assert vq.used_index() == 1
    assert driver.interrupt.take() == [queue]


def test_without_statistics_reporting_moves_up(host: Host, driver: Driver) -> None:
    driver.start(F_REPORTING)
    driver.queues[2].describe(0, MIB, MIB, WRITE)
    driver.queues[2].make_available(0)
    driver.kick(2)
    assert host.discarded == [(MIB, MIB)]
    assert said(host) == {}


def test_only_whole_pages_come_back(host: Host, driver: Driver) -> None:
    driver.start()
    vq = driver.queues[3]
    for index, (gpa, size) in enumerate(((MIB + 1, 8192), (MIB + 4095, 2), (MIB, 100))):
        vq.describe(index, gpa, size, WRITE)
        vq.make_available(index)
    driver.kick(3)
    assert host.discarded == [(MIB + 4096, 4096)]


def test_a_report_that_is_to_be_read_breaks_the_device(host: Host, driver: Driver) -> None:
    driver.start()
    driver.queues[3].add([bytes(4096)])
    driver.kick(3)
    assert driver.is_broken
    assert host.discarded == []


def test_reports_that_were_not_agreed_on_are_not_looked_at(host: Host, driver: Driver) -> None:
    driver.start(F_STATS)
    driver.queues[3].add(writable=[4096])
    driver.kick(3)
    driver.kick(4)
    assert host.discarded == []
    assert driver.queues[3].used_index() == 0


# Statistics


def statistics(**values: int) -> bytes:
    tags = {"swap_in": 0, "free": 4, "total": 5, "unknown": 77}
    return b"".join(struct.pack("<HQ", tags[name], value) for name, value in values.items())


def said(host: Host) -> dict[str, int]:
    """What the guest said, without what the host knows itself."""
    return {name: value for name, value in host.balloon.statistics().items() if name not in ("target_bytes", "actual_bytes")}


def test_statistics_by_request(host: Host, driver: Driver) -> None:
    assert not host.balloon.request_statistics()
    driver.start()
    vq = driver.queues[STATS]
    vq.add([statistics(free=5, unknown=1, total=1 << 40)])
    driver.kick(STATS)
    assert vq.take_used() == []  # kept to ask with
    assert said(host) == {"free_bytes": 5, "total_bytes": 1 << 40}
    assert host.balloon.request_statistics()
    assert not host.balloon.request_statistics()
    assert len(vq.take_used()) == 1
    assert driver.interrupt.take() == [STATS]
    vq.add([statistics(swap_in=7)])
    driver.kick(STATS)
    assert said(host) == {"swap_in_bytes": 7}
    driver.transport.write_status(0)
    assert not host.balloon.request_statistics()
    assert said(host) == {}


def test_statistics_without_end_are_cut(host: Host, driver: Driver) -> None:
    driver.start()
    last, beyond = statistics(free=1), statistics(total=1)
    driver.memory.write(MIB + 10 * 63, last + beyond)
    driver.queues[STATS].describe(0, MIB, MIB)
    driver.queues[STATS].make_available(0)
    driver.kick(STATS)
    assert said(host) == {"swap_in_bytes": 0, "free_bytes": 1}
    assert not driver.is_broken


def test_a_second_buffer_of_statistics_breaks_the_device(host: Host, driver: Driver) -> None:
    driver.start()
    for _ in range(2):
        driver.queues[STATS].add([statistics(free=1)])
        driver.kick(STATS)
    assert driver.is_broken


def test_a_balloon_made_from_the_state_of_another_goes_on(host: Host, driver: Driver, ram: GuestMemory) -> None:
    host.balloon.set_target_bytes(MIB)
    driver.start()
    driver.queues[STATS].add([statistics(free=1)])
    driver.kick(STATS)
    other = Balloon(ram, lambda gpa, size: host.discarded.append((gpa, size)), host.balloon.state)
    transport = Driver(other, ram, state=driver.transport.state).transport
    assert other.state.target_pages == MIB // 4096
    assert other.request_statistics()
    driver.queues[3].add(writable=[8192])
    transport.notify(3)
    assert len(host.discarded) == 1
    transport.close()
