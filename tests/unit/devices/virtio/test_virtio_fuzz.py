"""Whatever a driver writes to registers and rings, nothing raises, and the device comes back with a reset: 20,000 of each."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.guest_ram import MIB, guest_ram
from support.timers import FakeTimers
from support.virtqueue import QUEUE_STRIDE, QUEUES_GPA, WRITE, Driver

from vmservice.devices.irq import IrqLine
from vmservice.devices.virtio.balloon import Balloon
from vmservice.devices.virtio.console import Console, Port
from vmservice.devices.virtio.mmio_transport import MmioTransport
from vmservice.devices.virtio.rng import Rng
from vmservice.memory.guest_memory import GuestMemory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.devices.virtio.device import VirtioDevice
    from vmservice.devices.virtio.transport import TransportState

    Poke = Callable[[random.Random], object]
    Case = tuple[VirtioDevice, Poke]

EXAMPLES = 20
ACCESSES_EACH = 1000
RAM_BYTES = 2 * MIB


def console(memory: GuestMemory) -> Case:
    device = Console([Port(lambda data: None, name="a"), Port(lambda data: None, is_console=False)])

    def poke(rng: random.Random) -> None:
        port = rng.randrange(2)
        assert 0 <= device.receive(port, rng.randbytes(rng.randrange(40))) <= 40
        device.resize(rng.randrange(1 << 16), rng.randrange(1 << 16), port)
        device.set_open(port, rng.random() < 0.5)

    return device, poke


def entropy(memory: GuestMemory) -> Case:
    timers = FakeTimers()
    device = Rng(bytes, timers.call_later, bytes_per_sec=1000, clock=timers.now)
    return device, lambda rng: timers.advance(rng.choice((0.01, 0.1)))


def balloon(memory: GuestMemory) -> Case:
    def discard(gpa: int, size_bytes: int) -> None:
        assert memory.contains(gpa, size_bytes)
        assert size_bytes
        assert not gpa % 4096 and not size_bytes % 4096

    device = Balloon(memory, discard)

    def poke(rng: random.Random) -> None:
        device.set_target_bytes(rng.randrange(RAM_BYTES))
        device.request_statistics()

    return device, poke


CASES = {"console": console, "entropy": entropy, "balloon": balloon}

# Registers with the values that get a driver on, in their order: not every access shall end at the first check.
RINGS = [(0x80, 0x1000), (0x90, 0x2000), (0xA0, 0x3000)]
QUEUES = [step for index in range(6) for step in [(0x30, index), (0x38, 8), *RINGS, (0x44, 1)]]


def start_steps(features: int) -> list[tuple[int, int]]:
    agree = [(0x70, 0), (0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x24, 0), (0x20, features), (0x70, 0x0B)]
    return [*agree, *QUEUES, (0x70, 0x0F)]


NOTIFY = [(0x50, index) for index in range(7)]


@pytest.mark.parametrize("name", CASES)
@settings(derandomize=True, max_examples=EXAMPLES, deadline=None, database=None)
@given(seed=st.integers(0, 2**32))
def test_random_accesses_to_the_window_raise_nothing(name: str, seed: int) -> None:
    rng, memory = random.Random(seed), guest_ram((0, RAM_BYTES))
    device, poke = CASES[name](memory)
    posted: list[Callable[[], None]] = []
    mmio = MmioTransport(device, memory, IrqLine(lambda level: None), warn=lambda text: None, post=posted.append)
    mmio.start()
    active, answered, start = 0, Answered(), start_steps(device.features)
    for _ in range(ACCESSES_EACH):
        what = rng.random()
        if what < 0.04:
            # One step too few now and then. The rings lie on each other, and are first empty, then soon not.
            left_out = rng.randrange(3 * len(start))
            memory.write(0x1000, bytes(0x4000))
            for number, (register, value) in enumerate(start):
                if number != left_out:
                    mmio.write(register, value.to_bytes(4, "little"))
        elif what < 0.3:
            register, value = rng.choice(NOTIFY if rng.random() < 0.8 else start)
            mmio.write(register, value.to_bytes(4, "little"))
        elif what < 0.35:
            memory.write(rng.randrange(0x1000, 0x3010), rng.randbytes(rng.choice((1, 2, 8))))
        elif what < 0.5:
            index = offer(mmio.state.transport, memory, rng)
            mmio.write(0x50, index.to_bytes(4, "little"))
        elif what < 0.75:
            offset, size = rng.choice((rng.randrange(0x120), rng.randrange(0x1008))), rng.choice((1, 2, 3, 4, 8))
            assert len(mmio.read(offset, size)) == size
        elif what < 0.9:
            mmio.write(rng.choice((4 * rng.randrange(0x48), rng.randrange(0x1008))), rng.randbytes(rng.choice((1, 2, 4, 8))))
        else:
            poke(rng)
        if posted and rng.random() < 0.5:
            assert len(posted) == 1
            posted.pop()()
        active += mmio.state.transport.status == 0x0F
        answered.look(mmio.state.transport)
    assert active > 50
    assert answered.chains > 3
    mmio.close()
    memory.close()


def offer(state: TransportState, memory: GuestMemory, rng: random.Random) -> int:
    """One buffer, such as a driver might offer, in one of the virtqueues, whose index is returned: the next one in turn."""
    index = rng.randrange(len(state.queues))
    queue = state.queues[index]
    size = rng.choice((4, 8, 16, 64))
    data = rng.choice((struct.pack("<IHH", rng.randrange(3), rng.randrange(8), rng.randrange(2)), bytes(4 * rng.randrange(16))))
    memory.write(0x8000, data)
    memory.write(0x1000, struct.pack("<QIHH", 0x8000, size, rng.choice((0, WRITE)), 0))
    memory.write(0x2004 + 2 * (queue.next_available % 8), struct.pack("<H", 0))
    memory.write(0x2002, struct.pack("<H", (queue.next_available + 1) & 0xFFFF))
    return index


class Answered:
    """Counts the chains that a device has given back: else nothing says that it looked at any."""

    def __init__(self) -> None:
        self.chains = 0
        self._before: list[int] = []

    def look(self, state: TransportState) -> None:
        used = [queue.next_used for queue in state.queues]
        if self._before:
            self.chains += sum(max(now - before, 0) for now, before in zip(used, self._before, strict=True))
        self._before = used


def scribble(driver: Driver, rng: random.Random) -> None:
    """Something that a driver should not do, or just so might."""
    queue = rng.choice(driver.queues)
    what = rng.randrange(8)
    if what == 0:
        gpa = rng.choice((rng.randrange(RAM_BYTES), rng.randrange(1 << 64), RAM_BYTES - 1))
        size = rng.choice((1, 8, 16, 32, 4096, 0, rng.randrange(1 << 32)))
        queue.describe(rng.randrange(queue.size), gpa, size, rng.randrange(8), rng.randrange(queue.size + 2))
    elif what == 1:
        queue.make_available(rng.choice((rng.randrange(queue.size), rng.randrange(1 << 16))))
    elif what == 2:
        queue.make_available(rng.randrange(queue.size))
    elif what == 3:
        entry = (QUEUES_GPA, rng.choice((8, 0, 16)), rng.randrange(8), rng.randrange(3))
        queue.describe(0, queue.table([entry] * 3), rng.choice((48, 16, 32, 47)), 4)
        queue.make_available(0)
    elif what == 4:
        data = rng.choice((struct.pack("<IHH", rng.randrange(3), rng.randrange(8), rng.randrange(2)), rng.randbytes(4)))
        queue.describe(1, queue.place(data), len(data))
        queue.make_available(1)
    elif what in (5, 6):
        queue.describe(0, QUEUES_GPA, rng.choice((4, 8, 64)), rng.choice((0, WRITE)))
        queue.make_available(0)
    else:
        queue.memory.write(queue.descriptors + rng.randrange(0x1000), rng.randbytes(4))


@pytest.mark.parametrize("name", CASES)
@settings(derandomize=True, max_examples=EXAMPLES, deadline=None, database=None)
@given(seed=st.integers(0, 2**32))
def test_random_rings_raise_nothing(name: str, seed: int) -> None:
    rng, memory = random.Random(seed), guest_ram((0, RAM_BYTES))
    device, poke = CASES[name](memory)
    assert QUEUES_GPA + len(device.queue_max_sizes) * QUEUE_STRIDE <= RAM_BYTES
    driver = Driver(device, memory)
    driver.start()
    broken, answered = 0, Answered()
    for _ in range(ACCESSES_EACH):
        scribble(driver, rng)
        if rng.random() < 0.5:
            driver.kick(rng.randrange(len(driver.queues)))
        else:
            poke(rng)
        assert len(driver.posted) <= 1
        if rng.random() < 0.5:
            driver.run_posted()
        answered.look(driver.transport.state)
        if driver.is_broken:
            broken += 1
            driver.start()
    assert broken > 10
    assert answered.chains > 10
    driver.transport.close()
    memory.close()
