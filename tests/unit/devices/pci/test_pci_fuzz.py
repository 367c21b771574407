"""Whatever a guest does by port, by ECAM and to where BARs are: right widths, no exception, no BAR on top of anything else."""

from __future__ import annotations

import json
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from support.guest_ram import guest_ram
from support.timers import FakeTimers

from vmservice.devices.bus import Bus
from vmservice.devices.pci.bus import PciBus, PciBusState
from vmservice.devices.pci.config_space import ConfigSpaceState
from vmservice.devices.pci.host_bridge import host_bridge
from vmservice.devices.virtio.pci_transport import BAR_SIZE, PciState, PciTransport
from vmservice.devices.virtio.rng import Rng
from vmservice.memory.guest_memory import GuestMemory

Values = dict[str, object]

EXAMPLES = 20
ACCESSES_EACH = 1000

ECAM = 0xE8000000
IOAPIC = 0xFEC00000
RAM_SIZE = 0xC0000000
RESERVED = [(0, RAM_SIZE, "RAM"), (0xFEE00000, 0x100000, "the local APIC")]
HOME = 0xC0000000
TARGETS = [HOME, HOME + BAR_SIZE, HOME + 2 * BAR_SIZE, 0, RAM_SIZE - BAR_SIZE, IOAPIC, 0xFEE00000, ECAM, ECAM + BAR_SIZE]
TARGETS += [1 << 32, 1 << 40, (1 << 64) - BAR_SIZE]


class Marker:
    """Stands for the IOAPIC: it must go on answering."""

    def read(self, offset: int, size: int) -> bytes:
        return b"\x5a" * size

    def write(self, offset: int, data: bytes) -> None: ...


class Machine:
    """A host bridge and three virtio devices, all buses, and where each BAR is by its own account."""

    def __init__(self, memory: GuestMemory, rng: random.Random, values: list[Values] | None = None) -> None:
        self.rng = rng
        self.memory = memory
        self.pio, self.mmio = Bus(), Bus()
        self.bases: dict[int, int] = {}
        self.signals = 0
        self.answers: list[object] = []
        self.warnings = 0
        states = [PciState.from_values(item) for item in values[2:]] if values is not None else [None] * 3
        bus = PciBusState.from_values(values[0]) if values is not None else None
        self.pci = PciBus(self.mmio, reserved=RESERVED, warn=self.warn, monotonic=lambda: 0.0, state=bus)
        self.pio.insert(0xCF8, 8, self.pci.config_ports, self.pci.lock)
        self.mmio.insert(ECAM, 256 << 20, self.pci.ecam, self.pci.lock)
        self.mmio.insert(IOAPIC, 0x1000, Marker(), self.pci.lock)
        self.bridge = host_bridge(ConfigSpaceState.from_values(values[1]) if values is not None else None)
        self.pci.insert(self.bridge)
        self.functions: list[PciTransport] = []
        for number, state in enumerate(states):
            function = PciTransport(
                Rng(bytes, FakeTimers().call_later),
                memory,
                signal=self.signal,
                on_route_changed=self.route,
                warn=self.warn,
                post=lambda callback: None,
                is_64bit=number != 1,
                state=state,
            )
            function.bar.on_mapped = lambda base, number=number: self.mapped(number, base)  # type: ignore[misc]
            function.place_bar(function.bar, HOME + number * BAR_SIZE)
            self.pci.insert(function)
            self.functions.append(function)

    def start(self) -> None:
        """BARs answer, and devices serve their drivers."""
        self.pci.start()
        for function in self.functions:
            function.start()

    def collect(self) -> list[Values]:
        """All states, as they are when the machine is paused."""
        for function in self.functions:
            function.virtio.stop()
        states = [self.pci.state, self.bridge.config.state, *(function.state for function in self.functions)]
        return [state.values() for state in states]

    def close(self) -> None:
        for function in self.functions:
            function.close()
        self.memory.close()

    def warn(self, text: str) -> None:
        self.warnings += 1

    def signal(self, vector: int) -> None:
        assert vector in (0, 1)
        self.answers.append(vector)
        self.signals += 1

    def route(self, vector: int, address: int, data: int, masked: bool) -> None:
        assert vector in (0, 1)
        assert 0 <= address < 1 << 64
        assert 0 <= data < 1 << 32

    def mapped(self, number: int, base: int | None) -> None:
        assert (base is None) == (number in self.bases)
        if base is None:
            del self.bases[number]
        else:
            self.bases[number] = base

    def access(self) -> None:
        rng = self.rng
        size = rng.choice((1, 1, 2, 4, 4, 8, 3))
        match rng.randrange(10):
            case 0:
                self.poke(self.pio, 0xCF8 + rng.randrange(8), min(size, 4))
            case 1:  # a sensible address, so that 0xcfc leads somewhere
                address = 1 << 31 | rng.randrange(5) << 11 | rng.randrange(64) << 2
                self.pio.write(0xCF8, address.to_bytes(4, "little"))
            case 2:
                self.poke(self.mmio, ECAM + (rng.randrange(5) << 15) + rng.randrange(0x110), size)
            case 3:
                self.poke(self.mmio, ECAM + rng.randrange(256 << 20), size)
            case 4:  # move a BAR, as a driver would or by half
                offset = ECAM + (rng.randrange(1, 4) << 15) + 0x10
                base = rng.choice(TARGETS)
                self.mmio.write(offset, (base & 0xFFFFFFFF).to_bytes(4, "little"))
                if rng.random() < 0.7:
                    self.mmio.write(offset + 4, (base >> 32).to_bytes(4, "little"))
            case 5:  # memory space mostly on
                self.mmio.write(ECAM + (rng.randrange(1, 4) << 15) + 4, rng.choice((b"\x06\x00", b"\x06\x00", b"\x00\x00")))
            case 6:  # the host's side
                function = rng.choice(self.functions)
                function.virtio.interrupt_queue(0)
                function.virtio.interrupt_config()
            case 7:
                for base in list(self.bases.values()):
                    self.bring_up(base)
            case _:
                for base in list(self.bases.values()):
                    self.poke(
                        self.mmio, base + rng.choice((0, 0x1000, 0x2000, 0x3000, 0x4000, 0x6000)) + rng.randrange(0x40), size
                    )

    def bring_up(self, base: int) -> None:
        """What a driver does, with now and then a step left out."""
        control = ECAM + (self.rng.randrange(1, 4) << 15) + 0x42
        steps = [(control, b"\x00\x80"), (base + 0x4000, bytes(16)), (base + 0x4010, bytes(16)), (base + 0x14, b"\x00")]
        steps += [(base + 0x14, b"\x01"), (base + 0x14, b"\x03"), (base + 0x08, b"\x01\0\0\0"), (base + 0x0C, b"\x01\0\0\0")]
        steps += [(base + 0x14, b"\x0b"), (base + 0x10, b"\0\0"), (base + 0x16, b"\0\0"), (base + 0x1A, b"\x01\0")]
        steps += [(base + 0x20, b"\0\x10\0\0"), (base + 0x28, b"\0\x20\0\0"), (base + 0x30, b"\0\x30\0\0")]
        steps += [(base + 0x1C, b"\x01\0"), (base + 0x14, b"\x0f"), (base + 0x3000, b"\0\0")]
        for address, data in steps:
            if self.rng.random() < 0.97:
                self.mmio.write(address, data)

    def poke(self, bus: Bus, address: int, size: int) -> None:
        if self.rng.random() < 0.4:
            data = bus.read(address, size)
            assert len(data) == size
            self.answers.append(data)
        else:
            bus.write(
                address, self.rng.choice((self.rng.randbytes(size), bytes(size), b"\xff" * size, b"\x01" + bytes(size - 1)))
            )

    def check(self) -> None:
        """Each BAR answers where it says, alone, or nowhere."""
        taken = [(base, base + size) for base, size, _ in RESERVED] + [(ECAM, ECAM + (256 << 20)), (IOAPIC, IOAPIC + 0x1000)]
        for number, base in self.bases.items():
            function = self.functions[number]
            assert base == function.decoded(function.bars[0])
            assert all(end <= base or base + BAR_SIZE <= start for start, end in taken)
            taken.append((base, base + BAR_SIZE))
        for number, function in enumerate(self.functions):
            base_wanted = function.decoded(function.bars[0])
            if base_wanted is None:
                assert number not in self.bases
            elif number not in self.bases:
                assert any(start < base_wanted + BAR_SIZE and base_wanted < end for start, end in taken)
        assert self.mmio.read(IOAPIC, 1) == b"\x5a"
        assert self.mmio.read(ECAM, 4) == b"\x86\x80\x57\x0d"
        assert self.warnings <= 1 + len(self.functions)  # the clock stands still


@settings(derandomize=True, max_examples=EXAMPLES, deadline=None, database=None)
@given(seed=st.integers(0, 2**32))
def test_random_accesses_do_no_harm(seed: int) -> None:
    memory = guest_ram()
    machine = Machine(memory, random.Random(seed))
    machine.start()
    for _ in range(ACCESSES_EACH):
        machine.access()
        machine.check()
    machine.close()


@settings(derandomize=True, max_examples=EXAMPLES, deadline=None, database=None)
@given(seed=st.integers(0, 2**32))
def test_a_bus_built_from_its_states_goes_on_like_the_first(seed: int) -> None:
    first = Machine(guest_ram(), random.Random(seed))
    first.start()
    for _ in range(first.rng.randrange(100, ACCESSES_EACH)):
        first.access()
    values: list[Values] = json.loads(json.dumps(first.collect()))
    memory = guest_ram()
    memory.write(0, first.memory.read(0, memory.size_bytes))
    second = Machine(memory, random.Random(), values)
    assert (second.bases, second.answers) == ({}, [])
    machines = [first, second]
    for machine in machines:
        machine.start()
        machine.answers.clear()
    assert first.bases == second.bases
    assert json.loads(json.dumps(second.collect())) == json.loads(json.dumps(first.collect()))
    for machine in machines:
        machine.start()
        machine.answers.clear()
        machine.rng = random.Random(seed + 1)
        for _ in range(2 * ACCESSES_EACH):
            machine.access()
        machine.check()
    assert len(set(first.answers)) > 30
    assert first.answers == second.answers
    assert first.collect() == second.collect()
    for machine in machines:
        machine.close()


def test_the_fuzz_reaches_what_it_is_about() -> None:
    """BARs that answer in several places, blocked ones, devices at work: else the test above shows nothing."""
    memory = guest_ram()
    machine = Machine(memory, random.Random(1))
    machine.start()
    places: set[int] = set()
    statuses: set[int] = set()
    for _ in range(3000):
        machine.access()
        places |= set(machine.bases.values())
        statuses |= {function.virtio.status for function in machine.functions}
    assert len(places) >= 6
    assert machine.warnings > 0
    assert machine.signals > 10
    assert statuses >= {0x00, 0x0B, 0x0F}
    machine.close()
