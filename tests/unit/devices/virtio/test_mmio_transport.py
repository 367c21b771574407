"""The window of registers: each at its place, as a driver of virtio 1.2 §4.2.3 uses them, and accesses of any other kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from support.virtqueue import QUEUES_GPA, DriverQueue

from vmservice.devices.irq import IrqLine
from vmservice.devices.virtio.console import Console, Port
from vmservice.devices.virtio.ids import EVENT_IDX, INDIRECT_DESC, VERSION_1
from vmservice.devices.virtio.mmio_transport import WINDOW_BYTES, MmioTransport
from vmservice.devices.virtio.rng import Rng
from vmservice.memory.guest_memory import GuestMemory

ALL = VERSION_1 | INDIRECT_DESC | EVENT_IDX


class Window:
    """A device behind its registers. `levels` are the changes of the line, `written` is what the console's port 0 printed."""

    def __init__(self, ram: GuestMemory, device: Rng | Console | None = None) -> None:
        self.ram = ram
        self.levels: list[bool] = []
        self.warnings: list[str] = []
        self.written: list[bytes] = []
        self.posted: list[Callable[[], None]] = []
        self.line = IrqLine(self.levels.append)
        self.device = device or Console([Port(self.written.append)])
        self.mmio = MmioTransport(self.device, ram, self.line, warn=self.warnings.append, post=self.posted.append)
        self.mmio.start()

    def get(self, register: int) -> int:
        return int.from_bytes(self.mmio.read(register, 4), "little")

    def put(self, register: int, value: int) -> None:
        self.mmio.write(register, value.to_bytes(4, "little"))

    def start(self, size: int = 8, features: int = ALL) -> list[DriverQueue]:
        for status in (0, 1, 3):
            self.put(0x70, status)
        for half in range(2):
            self.put(0x24, half)
            self.put(0x20, features >> 32 * half & 0xFFFFFFFF)
        self.put(0x70, 0x0B)
        assert self.get(0x70) == 0x0B
        queues = []
        for index in range(len(self.device.queue_max_sizes)):
            self.ram.write(QUEUES_GPA + 0x20000 * index, bytes(0x4000))
            queue = DriverQueue(self.ram, QUEUES_GPA + 0x20000 * index, size, features)
            self.put(0x30, index)
            self.put(0x38, size)
            for register, address in zip((0x80, 0x90, 0xA0), queue.addresses, strict=True):
                self.put(register, address)
                self.put(register + 4, 0)
            self.put(0x44, 1)
            assert self.get(0x44) == 1
            queues.append(queue)
        self.put(0x70, 0x0F)
        assert self.get(0x70) == 0x0F
        return queues


@pytest.fixture
def window(ram: GuestMemory) -> Iterator[Window]:
    window = Window(ram)
    yield window
    window.mmio.close()


def test_who_it_is(window: Window) -> None:
    assert window.mmio.read(0, 4) == b"virt"
    assert [window.get(register) for register in (0x04, 0x08)] == [2, 3]
    assert window.mmio.read(0x0C, 4) == b"VMSV"


def test_features_come_in_two_windows(window: Window) -> None:
    window.put(0x14, 0)
    assert window.get(0x10) == 0x3000_0001
    window.put(0x14, 1)
    assert window.get(0x10) == 1
    window.put(0x14, 2)
    assert window.get(0x10) == 0


def test_queue_registers(window: Window) -> None:
    window.put(0x30, 1)
    assert window.get(0x34) == 64
    window.put(0x30, 2)
    assert window.get(0x34) == 0
    assert window.get(0x44) == 0


def test_an_address_has_two_halves(window: Window) -> None:
    window.put(0x30, 1)
    for ring, low in enumerate((0x80, 0x90, 0xA0)):
        window.put(low, 0x1000 * (ring + 1))
        window.put(low + 4, ring + 1)
    assert window.mmio.state.transport.queues[1].addresses == [0x1_0000_1000, 0x2_0000_2000, 0x3_0000_3000]


def test_there_is_no_shared_memory(window: Window) -> None:
    window.put(0xAC, 0)
    assert [window.get(register) for register in (0xB0, 0xB4, 0xB8, 0xBC)] == [0xFFFFFFFF] * 4


def test_a_request_and_its_interrupt(window: Window) -> None:
    (_, transmit) = window.start()
    transmit.add([b"hello"])
    window.put(0x50, 1)
    assert window.written == [b"hello"]
    assert len(transmit.take_used()) == 1
    assert window.levels == [True]
    assert window.get(0x60) == 1
    window.put(0x64, 1)
    assert window.get(0x60) == 0
    assert window.levels == [True, False]


def test_the_line_is_high_until_all_is_acknowledged(window: Window) -> None:
    """What comes between the driver's look at the status and its acknowledgement raises the line anew, or keeps it high."""
    (_, transmit) = window.start()
    transmit.add([b"x"])
    window.put(0x50, 1)
    assert isinstance(window.device, Console)
    window.device.resize(80, 25)
    assert window.get(0x60) == 3
    window.put(0x64, 1)
    assert window.line.level
    window.put(0x64, 2)
    assert not window.line.level


def test_a_reset_takes_the_interrupt_back(window: Window) -> None:
    (_, transmit) = window.start()
    transmit.add([b"x"])
    window.put(0x50, 1)
    window.put(0x70, 0)
    assert not window.line.level
    assert window.get(0x60) == window.get(0x70) == 0
    window.put(0x30, 0)
    assert window.get(0x44) == 0


def test_the_size_of_a_terminal_and_its_generation(window: Window) -> None:
    window.start()
    assert isinstance(window.device, Console)
    generation = window.get(0xFC)
    window.device.resize(132, 43)
    assert window.get(0xFC) == generation + 1
    assert window.get(0x60) == 2
    assert window.mmio.read(0x100, 4) == b"\x84\0\x2b\0"
    assert window.mmio.read(0x102, 2) == b"\x2b\0"


def test_disabling_a_virtqueue_reads_back(window: Window) -> None:
    """Linux' vm_del_vq() warns otherwise."""
    window.start()
    window.put(0x30, 1)
    window.put(0x44, 0)
    assert window.get(0x44) == 0


def test_a_driver_that_lies_and_its_reset(window: Window) -> None:
    (_, transmit) = window.start()
    transmit.make_available(200)
    window.put(0x50, 1)
    assert window.get(0x70) == 0x4F
    assert window.get(0x60) == 2
    assert window.line.level
    (_, transmit) = window.start()
    assert not window.line.level
    transmit.add([b"again"])
    window.put(0x50, 1)
    assert window.written == [b"again"]


@pytest.mark.parametrize("size", [1, 2, 8])
def test_registers_take_whole_words_only(window: Window, size: int) -> None:
    window.put(0x70, 1)
    for offset in range(0, 0x100, 2):
        assert window.mmio.read(offset, size) == bytes(size)
        window.mmio.write(offset, bytes(size))
        window.mmio.write(offset, b"\xff" * size)
    assert window.get(0x70) == 1


def test_unaligned_words_are_nothing(window: Window) -> None:
    window.put(0x70, 1)
    assert window.mmio.read(0x71, 4) == window.mmio.read(0x02, 4) == window.mmio.read(0xB1, 4) == bytes(4)
    window.mmio.write(0x71, b"\xff" * 4)
    assert window.get(0x70) == 1


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_the_configuration_takes_every_width_at_every_offset(window: Window, size: int) -> None:
    assert isinstance(window.device, Console)
    window.device.resize(0x1234, 0x5678)
    whole = b"\x34\x12\x78\x56\x01\0\0\0".ljust(WINDOW_BYTES, b"\0")
    for offset in range(24):
        assert window.mmio.read(0x100 + offset, size) == whole[offset : offset + size]
        window.mmio.write(0x100 + offset, b"\xff" * size)
    assert window.mmio.read(WINDOW_BYTES - size, size) == bytes(size)
    assert window.mmio.read(0x100, 8) == whole[:8]


def test_a_window_made_from_the_state_of_another_goes_on(window: Window, ram: GuestMemory) -> None:
    (_, transmit) = window.start()
    transmit.add([b"one"])
    window.put(0x50, 1)
    assert isinstance(window.device, Console)
    levels: list[bool] = []
    written: list[bytes] = []
    device = Console([Port(written.append)], window.device.state)
    line = IrqLine(levels.append)
    other = MmioTransport(device, ram, line, warn=window.warnings.append, post=window.posted.append, state=window.mmio.state)
    assert line.level
    assert levels == []  # the state of the IOAPIC has it
    other.start()
    assert other.state == window.mmio.state
    transmit.add([b"two"])
    other.write(0x50, b"\x01\0\0\0")
    assert written == [b"two"]
    assert len(transmit.take_used()) == 2
    other.close()
