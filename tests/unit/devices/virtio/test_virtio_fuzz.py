"""Whatever a driver writes to registers and rings, nothing raises, and the device comes back with a reset: 20,000 of each."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.guest_ram import MIB, guest_ram
from support.virtio_cases import CASES, VirtioRig
from support.virtqueue import QUEUE_STRIDE, QUEUES_GPA, WRITE, Driver

from vmservice.devices.irq import IrqLine
from vmservice.devices.virtio import queue, served
from vmservice.devices.virtio.mmio_transport import MmioState, MmioTransport
from vmservice.memory.guest_memory import GuestMemory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.devices.state import DeviceState
    from vmservice.devices.virtio.transport_state import TransportState

EXAMPLES = 20
ACCESSES_EACH = 1000
ROUNDS_AFTER = 2000
RAM_BYTES = 2 * MIB


# Registers with the values that get a driver on, in their order: not every access shall end at the first check.
RINGS = [(0x80, 0x1000), (0x90, 0x2000), (0xA0, 0x3000)]
QUEUES = [step for index in range(6) for step in [(0x30, index), (0x38, 8), *RINGS, (0x44, 1)]]


def start_steps(features: int) -> list[tuple[int, int]]:
    agree = [(0x70, 0), (0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x24, 0), (0x20, features), (0x70, 0x0B)]
    return [*agree, *QUEUES, (0x70, 0x0F)]


NOTIFY = [(0x50, index) for index in range(7)]


class Window:
    """A device behind its registers, in memory of its own. `levels` are the changes of its line."""

    def __init__(self, name: str, image: bytes = b"", device: DeviceState | None = None, mmio: MmioState | None = None) -> None:
        self.memory = guest_ram((0, RAM_BYTES))
        self.memory.write(0, image)
        self.rig = CASES[name](self.memory, device)
        self.levels: list[bool] = []
        self.posted: list[Callable[[], None]] = []
        self.line = IrqLine(self.levels.append)
        self.mmio = MmioTransport(
            self.rig.device, self.memory, self.line, warn=lambda text: None, post=self.posted.append, state=mmio
        )
        self.start_steps = start_steps(self.rig.device.features)

    def put(self, register: int, value: int) -> None:
        self.mmio.write(register, value.to_bytes(4, "little"))

    def step(self, rng: random.Random) -> bytes:
        """Anything that a guest or the host may do; what the guest read, if it read."""
        what, start = rng.random(), self.start_steps
        if what < 0.04:
            # One step too few now and then. The rings lie on each other, and are first empty, then soon not.
            left_out = rng.randrange(3 * len(start))
            self.memory.write(0x1000, bytes(0x4000))
            for number, (register, value) in enumerate(start):
                if number != left_out:
                    self.put(register, value)
        elif what < 0.3:
            self.put(*rng.choice(NOTIFY if rng.random() < 0.8 else start))
        elif what < 0.35:
            self.memory.write(rng.randrange(0x1000, 0x3010), rng.randbytes(rng.choice((1, 2, 8))))
        elif what < 0.5:
            self.put(0x50, offer(self.rig, self.mmio.state.transport, self.memory, rng))
        elif what < 0.75:
            offset, size = rng.choice((rng.randrange(0x120), rng.randrange(0x1008))), rng.choice((1, 2, 3, 4, 8))
            data = self.mmio.read(offset, size)
            assert len(data) == size
            return data
        elif what < 0.9:
            offset = rng.choice((4 * rng.randrange(0x48), rng.randrange(0x1008)))
            self.mmio.write(offset, rng.randbytes(rng.choice((1, 2, 4, 8))))
        else:
            self.rig.poke(rng)
        if self.posted and rng.random() < 0.5:
            assert len(self.posted) == 1
            self.posted.pop()()
        return b""

    def close(self) -> None:
        self.mmio.close()
        self.memory.close()


@pytest.fixture(autouse=True, scope="module")
def _slices_end_by_bytes_alone() -> Iterator[None]:
    """Where a slice ends by time depends on what else the host does, and two devices that get the same would differ."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queue, "SLICE_SEC", 3600.0)
        patch.setattr(served, "SLICE_SEC", 3600.0)
        yield


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(EXAMPLES))  # not Hypothesis': how much happens is asserted of each
def test_random_accesses_to_the_window_raise_nothing(name: str, seed: int) -> None:
    rng, window = random.Random(seed), Window(name)
    window.mmio.start()
    active, answered = 0, Answered()
    for _ in range(ACCESSES_EACH):
        window.step(rng)
        active += window.mmio.state.transport.status == 0x0F
        answered.look(window.mmio.state.transport)
    assert active > 50
    assert answered.chains > window.rig.answers_more_than
    assert window.rig.said
    window.close()


@pytest.mark.parametrize("name", CASES)
@settings(derandomize=True, max_examples=EXAMPLES, deadline=None, database=None)
@given(seed=st.integers(0, 2**32))
def test_a_window_built_from_a_state_goes_on_like_the_first(name: str, seed: int) -> None:
    rng, first = random.Random(seed), Window(name)
    first.mmio.start()
    for _ in range(rng.randrange(100, ACCESSES_EACH)):
        first.step(rng)
    first.mmio.virtio.stop()
    values = json.loads(json.dumps([first.rig.device.state.values(), first.mmio.state.values()]))
    second = Window(
        name, first.memory.read(0, RAM_BYTES), first.rig.state_class.from_values(values[0]), MmioState.from_values(values[1])
    )
    assert (second.levels, second.rig.said, second.posted) == ([], [], [])
    assert second.line.level == first.line.level
    assert second.mmio.state == first.mmio.state
    assert second.rig.device.state == first.rig.device.state
    windows = [first, second]
    for window in windows:
        window.levels.clear()
        window.rig.said.clear()
        window.posted.clear()
        window.mmio.start()
        window.rig.settle()
        while window.posted:
            window.posted.pop()()
    one, other = random.Random(seed + 1), random.Random(seed + 1)
    for _ in range(ROUNDS_AFTER):
        assert first.step(one) == second.step(other)
    assert first.rig.said == second.rig.said
    assert first.levels == second.levels
    assert first.mmio.state == second.mmio.state
    assert first.rig.device.state == second.rig.device.state
    assert first.memory.read(0, RAM_BYTES) == second.memory.read(0, RAM_BYTES)
    for window in windows:
        window.close()


def offer(rig: VirtioRig, state: TransportState, memory: GuestMemory, rng: random.Random) -> int:
    """One buffer, such as a driver might offer, in one of the virtqueues, whose index is returned: the next one in turn.

    Or the buffers of the device's own kind of request, where it has some.
    """
    index = rng.randrange(len(state.queues))
    queue = state.queues[index]
    readable, writable = rig.request(rng)
    if readable:
        memory.write(0x8000, readable)
        memory.write(0x1000, struct.pack("<QIHH", 0x8000, len(readable), 1 if writable else 0, 1))
        memory.write(0x1010, struct.pack("<QIHH", 0xA000, writable, WRITE, 0))
        memory.write(0x2004 + 2 * (queue.next_available % 8), struct.pack("<H", 0))
        memory.write(0x2002, struct.pack("<H", (queue.next_available + 1) & 0xFFFF))
        return index
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


def scribble(rig: VirtioRig, driver: Driver, rng: random.Random) -> None:
    """Something that a driver should not do, or just so might."""
    queue = rng.choice(driver.queues)
    readable, writable = rig.request(rng)
    if readable:
        queue.describe(0, queue.place(readable), len(readable), 1 if writable else 0, 1)
        queue.describe(1, queue.place(bytes(writable)), writable, WRITE)
        queue.make_available(0)
        return
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
@pytest.mark.parametrize("seed", range(EXAMPLES))
def test_random_rings_raise_nothing(name: str, seed: int) -> None:
    rng, memory = random.Random(seed), guest_ram((0, RAM_BYTES))
    rig = CASES[name](memory)
    device = rig.device
    assert QUEUES_GPA + len(device.queue_max_sizes) * QUEUE_STRIDE <= RAM_BYTES
    driver = Driver(device, memory)
    driver.start()
    broken, answered = 0, Answered()
    for _ in range(ACCESSES_EACH):
        scribble(rig, driver, rng)
        if rng.random() < 0.5:
            driver.kick(rng.randrange(len(driver.queues)))
        else:
            rig.poke(rng)
        assert len(driver.posted) <= 1
        if rng.random() < 0.5:
            driver.run_posted()
        answered.look(driver.transport.state)
        if driver.is_broken:
            broken += 1
            driver.start()
    assert broken > 10
    assert answered.chains > 5
    driver.transport.close()
    memory.close()
