"""virtio over PCI as a driver meets it: the capabilities, each register of BAR 0, vectors, ISR, and the window."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence

import pytest
from support.guest_ram import guest_ram

from vmservice.devices.state import DeviceState
from vmservice.devices.virtio.ids import EVENT_IDX, VERSION_1
from vmservice.devices.virtio.pci_transport import PciState, PciTransport
from vmservice.devices.virtio.queue import Queue
from vmservice.errors import GuestError
from vmservice.memory.guest_memory import GuestMemory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.devices.virtio.device import DriverPort
    from vmservice.devices.virtio.rings import Ring

NO_VECTOR = 0xFFFF
COMMON, ISR, DEVICE, NOTIFY, TABLE, PENDING = 0, 0x1000, 0x2000, 0x3000, 0x4000, 0x6000
FEATURE = 1 << 5


class Fake:
    """A device with three virtqueues and eight bytes of configuration, which writes down what it is told."""

    device_type = 3
    features = FEATURE
    queue_max_sizes: tuple[int, ...] = (64, 128, 256)

    def __init__(self) -> None:
        self.state = DeviceState()
        self.config_space = bytearray(b"abcdefgh")
        self.told: list[tuple[object, ...]] = []
        self.driver: DriverPort | None = None
        self.queues: list[Queue] = []
        self.liar = False

    def read_config(self, offset: int, size: int) -> bytes:
        return bytes(self.config_space[offset : offset + size]).ljust(size, b"\0")

    def write_config(self, offset: int, data: bytes) -> None:
        self.told.append(("config", offset, bytes(data)))

    def activate(self, queues: list[Queue], interrupt: DriverPort, features: int) -> None:
        self.driver, self.queues = interrupt, queues
        self.told.append(("activate", [queue.state.ready for queue in queues], features))

    def reset(self) -> None:
        self.driver, self.queues = None, []
        self.told.append(("reset",))

    def notify(self, index: int) -> None:
        if self.liar:
            raise GuestError("the ring lies")
        self.told.append(("notify", index))


class Owner:
    """Somebody else who serves the virtqueues; it knows the event index, and no indirect descriptors."""

    transport_features = VERSION_1 | EVENT_IDX
    kicks = ()

    def __init__(self) -> None:
        self.rings: dict[int, Ring] = {}
        self.starts = 0

    def start(self, rings: Sequence[Ring], features: int, lost: Callable[[GuestError], None]) -> None:
        self.rings = {ring.index: ring for ring in rings}
        self.starts += 1

    def notify(self, index: int) -> None: ...

    def stop(self, timeout_sec: float) -> bool:
        self.rings = {}
        return True

    def go_on(self) -> None: ...


class Driver:
    """The guest's side, register by register at the offsets of virtio 1.2 §4.1.4.3."""

    def __init__(self, memory: GuestMemory, *, is_64bit: bool = True) -> None:
        self.device = Fake()
        self.memory = memory
        self.signals: list[int] = []
        self.routes: list[tuple[int, int, int, bool]] = []
        self.warnings: list[str] = []
        self.is_64bit = is_64bit
        self.posted: list[Callable[[], None]] = []
        self.eventfds: dict[int, int] = {}
        self.owner: Owner | None = None
        self.function = self.make(None)
        self.function.start()
        self.function.write_config(4, b"\x06\x00")

    def make(self, state: PciState | None) -> PciTransport:
        return PciTransport(
            self.device,
            self.memory,
            signal=self.signals.append,
            on_route_changed=lambda *route: self.routes.append(route),
            warn=self.warnings.append,
            post=self.posted.append,
            is_64bit=self.is_64bit,
            rings=self.owner,
            eventfd=self.eventfds.__getitem__ if self.owner is not None else None,
            state=state,
        )

    def read(self, offset: int, size: int) -> int:
        data = self.function.bar.region.read(offset, size)
        assert len(data) == size
        return int.from_bytes(data, "little")

    def write(self, offset: int, value: int, size: int) -> None:
        self.function.bar.region.write(offset, value.to_bytes(size, "little"))

    def take(self) -> list[tuple[object, ...]]:
        told, self.device.told = self.device.told, []
        return told

    def enable_msix(self) -> None:
        self.function.write_config(self.function.msix.capability + 2, b"\x00\x80")
        for vector in range(4):
            self.function.bar.region.write(TABLE + 16 * vector, struct.pack("<QII", 0xFEE00000, 0x30 + vector, 0))

    def set_up_queue(self, index: int, base: int) -> None:
        self.write(0x16, index, 2)
        self.write(0x18, 16, 2)
        for offset, address in ((0x20, base), (0x28, base + 0x200), (0x30, base + 0x400)):
            self.write(offset, address & 0xFFFFFFFF, 4)
            self.write(offset + 4, address >> 32, 4)
        self.write(0x1A, index + 1, 2)
        self.write(0x1C, 1, 2)

    def start(self) -> None:
        """As Linux does it (virtio 1.2 §3.1.1): all virtqueues, vector 0 for the configuration, n + 1 for virtqueue n."""
        self.enable_msix()
        self.write(0x14, 0, 1)
        self.write(0x14, 1, 1)
        self.write(0x14, 3, 1)
        for select, value in ((0, FEATURE), (1, VERSION_1 >> 32)):
            self.write(0x08, select, 4)
            self.write(0x0C, value, 4)
        self.write(0x14, 0xB, 1)
        assert self.read(0x14, 1) == 0xB
        self.write(0x10, 0, 2)
        for index in range(3):
            self.set_up_queue(index, 0x10000 + 0x1000 * index)
        self.write(0x14, 0xF, 1)
        assert self.read(0x14, 1) == 0xF
        self.take()


@pytest.fixture
def driver() -> Iterator[Driver]:
    memory = guest_ram()
    driver = Driver(memory)
    yield driver
    driver.function.virtio.close()
    memory.close()


def capabilities(function: PciTransport) -> list[bytes]:
    found, offset = [], function.read_config(0x34, 1)[0]
    while offset:
        head = function.read_config(offset, 16)
        size = 12 if head[0] == 0x11 else head[2]
        found.append(function.read_config(offset, size))
        offset = head[1]
    return found


def test_identity(driver: Driver) -> None:
    config = driver.function.read_config(0, 0x40)
    assert config[0:4] == bytes.fromhex("f41a4310")
    assert config[8:12] == bytes.fromhex("01008007")  # revision 1, communication controller
    assert config[0x2C:0x30] == bytes.fromhex("f41a4310")
    assert config[0x3D] == 0  # no INTx
    assert config[0x06] & 0x10


def test_capabilities(driver: Driver) -> None:
    """(type, BAR, offset, length) of each, and what follows."""
    msix, *vendor = capabilities(driver.function)
    assert msix[0] == 0x11
    assert msix[2:] == struct.pack("<HII", 3, TABLE, PENDING)
    places = [(cap[0], cap[3], cap[4], *struct.unpack_from("<II", cap, 8), cap[16:]) for cap in vendor]
    assert places == [
        (9, 1, 0, COMMON, 56, b""),
        (9, 2, 0, NOTIFY, 12, b"\x04\0\0\0"),
        (9, 3, 0, ISR, 1, b""),
        (9, 4, 0, DEVICE, 0x1000, b""),
        (9, 5, 0, 0, 0, bytes(4)),
    ]


@pytest.mark.parametrize("is_64bit", [False, True])
def test_the_bar_holds_every_part(is_64bit: bool) -> None:
    memory = guest_ram()
    function = Driver(memory, is_64bit=is_64bit).function
    function.write_config(0x10, b"\xff" * 8)
    low, high = struct.unpack("<II", function.read_config(0x10, 8))
    assert (low, high) == ((0xFFFF8004, 0xFFFFFFFF) if is_64bit else (0xFFFF8000, 0))
    assert PENDING + 64 <= 0x8000
    memory.close()


def test_features_are_read_through_a_window(driver: Driver) -> None:
    offered = {}
    for select in (0, 1, 2, 0xFFFFFFFF):
        driver.write(0x00, select, 4)
        assert driver.read(0x00, 4) == select
        offered[select] = driver.read(0x04, 4)
    assert offered == {0: FEATURE | 1 << 28 | 1 << 29, 1: 1, 2: 0, 0xFFFFFFFF: 0}
    driver.write(0x04, 0xFFFFFFFF, 4)
    driver.write(0x00, 0, 4)
    assert driver.read(0x04, 4) == offered[0]


def test_driver_features_read_back(driver: Driver) -> None:
    driver.write(0x08, 1, 4)
    driver.write(0x0C, 1, 4)
    assert (driver.read(0x08, 4), driver.read(0x0C, 4)) == (1, 1)
    driver.write(0x08, 0, 4)
    assert driver.read(0x0C, 4) == 0


def test_queue_registers_are_the_selected_queues(driver: Driver) -> None:
    assert driver.read(0x12, 2) == 3
    for index, size in enumerate((64, 128, 256)):
        driver.write(0x16, index, 2)
        assert (driver.read(0x18, 2), driver.read(0x1C, 2), driver.read(0x1E, 2)) == (size, 0, index)
        for offset in (0x20, 0x28, 0x30):
            driver.write(offset, 0x1000 * index + offset, 4)
            driver.write(offset + 4, index, 4)
    driver.write(0x16, 1, 2)
    assert [driver.read(offset, 8) for offset in (0x20, 0x28, 0x30)] == [0x1_0000_1020, 0x1_0000_1028, 0x1_0000_1030]


def test_a_queue_that_is_not_there_reads_as_none(driver: Driver) -> None:
    driver.write(0x16, 3, 2)
    driver.write(0x1A, 1, 2)
    driver.write(0x1C, 1, 2)
    assert driver.read(0x18, 2) == driver.read(0x1C, 2) == driver.read(0x20, 8) == driver.read(0x1E, 2) == 0
    assert driver.read(0x1A, 2) == NO_VECTOR
    assert driver.read(0x16, 2) == 3


def test_an_address_may_be_written_in_one_piece(driver: Driver) -> None:
    driver.write(0x20, 0x1_2345_6780, 8)
    assert (driver.read(0x20, 4), driver.read(0x24, 4)) == (0x23456780, 1)


def test_part_of_a_field_is_not_written(driver: Driver) -> None:
    driver.write(0x20, 0x11223344, 4)
    for offset, size in ((0x20, 1), (0x21, 1), (0x20, 2), (0x22, 4), (0x1E, 2)):
        driver.write(offset, (1 << 8 * size) - 1, size)
    assert driver.read(0x20, 8) == 0x11223344


def test_every_width_of_a_read_sees_the_same_bytes(driver: Driver) -> None:
    driver.start()
    whole = driver.function.bar.region.read(0, 0x40)
    assert len(whole) == 0x40
    assert whole[0x38:] == bytes(8)
    for size in (1, 2, 4, 8):
        for offset in range(0x40):
            assert driver.function.bar.region.read(offset, size) == whole[offset : offset + size].ljust(size, b"\0")


def test_only_1_enables_a_queue_and_nothing_but_a_reset_disables_it(driver: Driver) -> None:
    driver.start()
    driver.write(0x1C, 0, 2)
    assert driver.read(0x1C, 2) == 1
    driver.write(0x14, 0, 1)
    assert driver.read(0x1C, 2) == 0
    driver.write(0x1C, 2, 2)
    assert driver.read(0x1C, 2) == 0


def test_the_driver_starts_the_device(driver: Driver) -> None:
    driver.enable_msix()
    driver.start()
    driver.write(NOTIFY + 4, 1, 2)
    driver.write(NOTIFY + 8, 2, 4)
    driver.write(NOTIFY, 0, 2)
    assert driver.take() == [("notify", 1), ("notify", 2), ("notify", 0)]
    driver.write(NOTIFY + 12, 3, 2)
    driver.write(NOTIFY + 2, 0, 2)
    driver.write(NOTIFY + 0xFFC, 0, 2)
    assert driver.take() == []
    assert driver.read(NOTIFY, 4) == 0


def test_interrupts_go_by_their_vectors(driver: Driver) -> None:
    driver.start()
    assert driver.device.driver is not None
    driver.device.driver.interrupt_queue(1)
    driver.device.driver.interrupt_config()
    driver.device.driver.interrupt_queue(0)
    assert driver.signals == [2, 0, 1]
    assert driver.function.msix.message(2) == (0xFEE00000, 0x32)


def test_isr_tells_both_kinds_and_reading_clears_it(driver: Driver) -> None:
    driver.start()
    assert driver.device.driver is not None
    driver.device.driver.interrupt_config()
    assert driver.read(ISR + 1, 1) == 0
    assert driver.read(ISR, 1) == 2
    assert driver.read(ISR, 1) == 0
    driver.device.driver.interrupt_queue(0)
    driver.device.driver.interrupt_config()
    assert driver.read(ISR, 4) == 3
    driver.write(ISR, 3, 1)
    assert driver.read(ISR, 1) == 0


def test_without_a_vector_only_isr_tells(driver: Driver) -> None:
    driver.start()
    assert driver.device.driver is not None
    driver.write(0x10, NO_VECTOR, 2)
    driver.write(0x16, 0, 2)
    driver.write(0x1A, NO_VECTOR, 2)
    driver.device.driver.interrupt_config()
    driver.device.driver.interrupt_queue(0)
    assert driver.signals == []
    assert driver.read(ISR, 1) == 3


@pytest.mark.parametrize(("vector", "back"), [(0, 0), (3, 3), (4, NO_VECTOR), (0xFFFE, NO_VECTOR), (NO_VECTOR, NO_VECTOR)])
def test_a_vector_reads_back_or_as_none(driver: Driver, vector: int, back: int) -> None:
    assert (driver.read(0x10, 2), driver.read(0x1A, 2)) == (NO_VECTOR, NO_VECTOR)
    driver.write(0x10, vector, 2)
    driver.write(0x16, 2, 2)
    driver.write(0x1A, vector, 2)
    assert (driver.read(0x10, 2), driver.read(0x1A, 2)) == (back, back)


def test_a_masked_vector_waits_in_the_pending_bits(driver: Driver) -> None:
    driver.start()
    assert driver.device.driver is not None
    driver.write(TABLE + 16 * 2 + 12, 1, 4)
    driver.device.driver.interrupt_queue(1)
    assert driver.signals == []
    assert driver.read(PENDING, 8) == 0b100
    driver.write(TABLE + 16 * 2 + 12, 0, 4)
    assert driver.signals == [2]
    assert driver.read(PENDING, 8) == 0
    assert driver.routes[-1] == (2, 0xFEE00000, 0x32, False)


def test_reset_takes_vectors_isr_and_what_was_pending(driver: Driver) -> None:
    driver.start()
    assert driver.device.driver is not None
    driver.write(TABLE + 12, 1, 4)
    driver.device.driver.interrupt_config()
    driver.write(0x14, 0, 1)
    assert driver.read(0x14, 1) == 0
    assert driver.read(0x10, 2) == NO_VECTOR
    assert driver.read(ISR, 1) == 0
    for index in range(3):
        driver.write(0x16, index, 2)
        assert driver.read(0x1A, 2) == NO_VECTOR
    assert driver.read(PENDING, 8) == 0
    driver.write(TABLE + 12, 0, 4)
    assert driver.signals == []
    assert driver.function.msix.enabled  # the table and its enable are PCI's, not the device's


def test_a_lying_ring_needs_a_reset_and_gets_well_by_it(driver: Driver) -> None:
    driver.start()
    driver.device.liar = True
    driver.write(NOTIFY, 0, 2)
    assert driver.read(0x14, 1) == 0x4F
    assert driver.signals == [0]  # the configuration's vector
    assert driver.read(ISR, 1) == 2
    assert len(driver.warnings) == 1
    driver.device.liar = False
    driver.start()
    driver.write(NOTIFY, 0, 2)
    assert driver.take() == [("notify", 0)]


def test_the_device_configuration_and_its_generation(driver: Driver) -> None:
    assert driver.function.bar.region.read(DEVICE, 8) == b"abcdefgh"
    assert driver.read(DEVICE + 7, 2) == ord("h")
    generation = driver.read(0x15, 1)
    driver.device.config_space[0] = 0x7A
    assert driver.read(0x15, 1) == (generation + 1) & 0xFF
    assert driver.read(0x15, 1) == (generation + 1) & 0xFF
    driver.take()
    driver.write(DEVICE + 4, 0x1234, 2)
    assert driver.take() == [("config", 4, b"\x34\x12")]


# The window, by which firmware reaches the BAR without mapping it (virtio 1.2 §4.1.4.9)


def window(driver: Driver, offset: int, length: int, bar: int = 0) -> int:
    """Point the window; the offset of its data."""
    capability = 0x4C + 16 + 20 + 16 + 16
    assert driver.function.read_config(capability, 4) == b"\x09\x00\x14\x05"
    driver.function.write_config(capability + 4, bytes((bar,)))
    driver.function.write_config(capability + 8, struct.pack("<I", offset))
    driver.function.write_config(capability + 12, struct.pack("<I", length))
    return capability + 16


@pytest.mark.parametrize("length", [1, 2, 4])
def test_the_window_reads_and_writes_the_bar(driver: Driver, length: int) -> None:
    data = window(driver, DEVICE, length)
    assert driver.function.read_config(data, length) == b"abcd"[:length]
    driver.take()
    driver.function.write_config(data, b"WXYZ"[:length])
    assert driver.take() == [("config", 0, b"WXYZ"[:length])]


def test_the_window_makes_a_whole_driver(driver: Driver) -> None:
    data = window(driver, 0x14, 1)
    driver.function.write_config(data, b"\x01")
    assert driver.function.read_config(data, 1) == b"\x01"
    assert driver.read(0x14, 1) == 1


@pytest.mark.parametrize(
    ("offset", "length", "bar"),
    [(0, 0, 0), (0, 3, 0), (0, 8, 0), (1, 2, 0), (0x8000, 4, 0), (0xFFFFFFFC, 4, 0), (0, 4, 1), (0, 4, 0xFF)],
)
def test_a_senseless_window_reaches_nothing(driver: Driver, offset: int, length: int, bar: int) -> None:
    before = driver.function.bar.region.read(0, 0x38)
    data = window(driver, offset, length, bar)
    driver.function.write_config(data, b"\x55" * 4)
    assert driver.function.read_config(data, 4) == b"\x55" * 4
    assert driver.function.bar.region.read(0, 0x38) == before


def test_a_look_at_the_rest_of_the_configuration_space_does_not_touch_the_bar(driver: Driver) -> None:
    """`lspci -x` reads 64 bytes; a window on the ISR status must not lose an interrupt by it."""
    driver.start()
    data = window(driver, ISR, 1)
    assert driver.device.driver is not None
    driver.device.driver.interrupt_queue(0)
    driver.function.read_config(0, 0x40)
    driver.function.read_config(data - 4, 4)
    assert driver.function.read_config(data, 1) == b"\x01"
    assert driver.function.read_config(data, 1) == b"\x00"


def test_a_function_built_from_a_state_goes_on(driver: Driver) -> None:
    driver.start()
    assert driver.device.driver is not None
    driver.function.place_bar(driver.function.bar, 0xC000_0000)
    driver.function.write_config(4, b"\x06\x04")
    driver.write(TABLE + 12, 1, 4)
    driver.device.driver.interrupt_config()
    old, config = driver.function, driver.function.read_config(0, 256)
    driver.routes.clear()
    driver.function = driver.make(old.state)
    assert driver.routes == []
    driver.function.start()
    assert driver.function.read_config(0, 256) == config
    assert driver.function.decoded(driver.function.bar) == 0xC000_0000
    assert driver.routes == [(vector, 0xFEE00000, 0x30 + vector, vector == 0) for vector in range(4)]
    assert driver.function.state == old.state
    assert driver.read(0x14, 1) == 0xF
    assert driver.device.driver is not None
    driver.device.driver.interrupt_queue(2)
    driver.write(TABLE + 12, 0, 4)
    assert driver.signals == [3, 0]
    old.virtio.close()


def test_more_virtqueues_than_the_table_has_room_for_are_refused(driver: Driver) -> None:
    driver.device.queue_max_sizes = (2,) * 512
    with pytest.raises(ValueError, match="512 virtqueues: 511 have room"):
        driver.make(None)


# Fault i: a function whose bus mastering is off went on writing guest memory. Linux clears the bit before it starts another
# kernel by kexec, whose memory is whatever it likes.

MASTER, MEMORY_ONLY = b"\x06\x00", b"\x02\x00"


def test_without_bus_mastering_no_virtqueue_is_touched(driver: Driver) -> None:
    driver.start()
    driver.function.write_config(4, MEMORY_ONLY)
    assert [queue.held for queue in driver.device.queues] == [True] * 3
    driver.write(NOTIFY, 0, 2)
    driver.write(NOTIFY + 4, 0, 2)
    assert driver.take() == []
    assert all(queue.pop() is None for queue in driver.device.queues)
    driver.function.write_config(4, MASTER)
    assert driver.take() == [("notify", 0), ("notify", 1), ("notify", 2)]
    assert [queue.held for queue in driver.device.queues] == [False] * 3
    driver.write(NOTIFY + 4, 0, 2)
    assert driver.take() == [("notify", 1)]


def test_a_turn_that_comes_while_bus_mastering_is_off_does_nothing(driver: Driver) -> None:
    driver.start()
    driver.device.queues[1].ask_for_turn()
    (turn,) = driver.posted
    driver.posted.clear()
    driver.function.write_config(4, MEMORY_ONLY)
    turn()
    assert driver.take() == []
    driver.function.write_config(4, MASTER)
    assert ("notify", 1) in driver.take()


def test_a_device_that_is_started_without_bus_mastering_waits_for_it(driver: Driver) -> None:
    driver.function.write_config(4, MEMORY_ONLY)
    driver.start()
    assert [queue.held for queue in driver.device.queues] == [True] * 3
    driver.write(NOTIFY, 0, 2)
    assert driver.take() == []
    driver.function.write_config(4, MASTER)
    assert driver.take() == [("notify", 0), ("notify", 1), ("notify", 2)]


def test_messages_wait_for_bus_mastering(driver: Driver) -> None:
    """A message is a write to memory. The routes are told as masked, so that nothing comes from outside either."""
    driver.start()
    driver.routes.clear()
    driver.function.write_config(4, MEMORY_ONLY)
    assert driver.routes == [(vector, 0xFEE00000, 0x30 + vector, True) for vector in range(4)]
    assert driver.device.driver is not None
    driver.device.driver.interrupt_config()
    assert driver.signals == []
    assert driver.read(PENDING, 4) == 1
    driver.routes.clear()
    driver.function.write_config(4, MASTER)
    assert driver.signals == [0]
    assert driver.read(PENDING, 4) == 0
    assert driver.routes == [(vector, 0xFEE00000, 0x30 + vector, False) for vector in range(4)]


def test_a_function_rebuilt_without_bus_mastering_is_as_quiet(driver: Driver) -> None:
    driver.start()
    driver.function.write_config(4, MEMORY_ONLY)
    assert driver.device.driver is not None
    driver.device.driver.interrupt_config()
    driver.take()
    old = driver.function
    driver.function = driver.make(old.state)
    driver.function.start()
    assert [told[0] for told in driver.take()] == ["activate"]
    assert driver.signals == []
    driver.function.write_config(4, MASTER)
    assert driver.signals == [0]
    assert driver.take() == [("notify", 0), ("notify", 1), ("notify", 2)]
    old.close()


def test_a_stopped_function_waits_for_its_start(driver: Driver) -> None:
    driver.start()
    driver.function.virtio.stop()
    driver.write(NOTIFY, 0, 2)
    driver.function.write_config(4, MEMORY_ONLY)
    driver.function.write_config(4, MASTER)
    assert driver.take() == []
    driver.function.start()
    assert driver.take() == [("notify", 0), ("notify", 1), ("notify", 2)]


# Virtqueues that somebody else serves


@pytest.fixture
def served(driver: Driver) -> Iterator[Driver]:
    """A function whose vectors have eventfds, and with an owner for its virtqueues."""
    driver.eventfds = {vector: os.eventfd(0, os.EFD_NONBLOCK) for vector in (*range(4), NO_VECTOR)}
    driver.function.close()
    driver.owner = Owner()
    driver.function = driver.make(None)
    driver.function.start()
    driver.function.write_config(4, MASTER)
    yield driver
    for fd in driver.eventfds.values():
        os.close(fd)


def test_what_the_owner_does_not_know_is_not_offered(served: Driver) -> None:
    served.write(0, 0, 4)
    assert served.read(4, 4) == FEATURE | EVENT_IDX
    served.write(0, 1, 4)
    assert served.read(4, 4) == VERSION_1 >> 32


def test_the_owner_interrupts_by_the_eventfd_of_the_vector(served: Driver) -> None:
    served.start()
    assert served.owner is not None
    assert [ring.eventfd for ring in served.owner.rings.values()] == [served.eventfds[vector] for vector in (1, 2, 3)]
    served.owner.rings[1].signal()
    assert os.eventfd_read(served.eventfds[2]) == 1
    assert served.signals == [], "no call on the way"


def test_another_vector_is_another_eventfd(served: Driver) -> None:
    served.start()
    assert served.owner is not None
    served.write(0x16, 0, 2)
    served.write(0x1A, NO_VECTOR, 2)
    assert served.owner.starts == 2
    assert served.owner.rings[0].eventfd == served.eventfds[NO_VECTOR]
    assert served.owner.rings[1].eventfd == served.eventfds[2]
