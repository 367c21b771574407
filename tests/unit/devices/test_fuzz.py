"""Whatever a guest does to a device, it gets as many bytes as it asked for and nothing raises: 20,000 accesses each."""

from __future__ import annotations

import _thread
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmservice.devices.bus import Bus
from vmservice.devices.ged import GenericEvents
from vmservice.devices.i8042 import I8042
from vmservice.devices.ioapic import IoApic
from vmservice.devices.irq import IrqLine
from vmservice.devices.power import PowerRegister
from vmservice.devices.pvpanic import PvPanic
from vmservice.devices.rtc import Rtc
from vmservice.devices.serial import Serial
from vmservice.devices.watchdog import Watchdog

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.devices.bus import Device

EXAMPLES = 20
ACCESSES_EACH = 1000
NOW = 1_764_000_000.25

Poke = Callable[[random.Random], object]
Case = tuple[int, Callable[[], tuple["Device", Poke]]]


def line() -> IrqLine:
    return IrqLine(lambda level: None)


def serial() -> tuple[Device, Poke]:
    device = Serial(line(), lambda data: None)

    def poke(rng: random.Random) -> None:
        assert 0 <= device.receive(rng.randbytes(rng.randrange(40))) <= 16
        device.write_burst(rng.randbytes(rng.randrange(40)))
        assert len(device.state.received) <= 16

    return device, poke


def ioapic() -> tuple[Device, Poke]:
    def check(address: int, data: int) -> int:
        assert address & ~0xFF004 == 0xFEE00000
        assert data & ~0xC7FF == 0
        return 1

    device = IoApic(check)

    def poke(rng: random.Random) -> None:
        device.set_line(rng.randrange(24), rng.random() < 0.5)
        device.end_of_interrupt(rng.randrange(256))
        assert len(device.routes()) == 24

    return device, poke


def events() -> tuple[Device, Poke]:
    device = GenericEvents(line())
    return device, lambda rng: device.raise_event(rng.randrange(1, 16))


def watchdog() -> tuple[Device, Poke]:
    now = [0.0]
    device = Watchdog(lambda: now[0], lambda: None)

    def poke(rng: random.Random) -> None:
        now[0] += rng.choice((0.01, 0.1, 5.0))
        rng.choice((device.tick, device.tick, device.skip))()
        assert 0 <= device.state.remaining_sec <= 6553.5

    return device, poke


def pvpanic() -> tuple[Device, Poke]:
    device = PvPanic(on_panic=lambda: None, on_crash_loaded=lambda: None, on_shutdown=lambda: None)
    return device, lambda rng: device.rearm()


def nothing(rng: random.Random) -> None:
    """No host side."""


# The length of the device's range, and how to make one with its host side.
CASES: dict[str, Case] = {
    "serial": (8, serial),
    "i8042": (4, lambda: (I8042(lambda: None), nothing)),
    "rtc": (2, lambda: (Rtc(lambda: NOW, 1 << 31, 1 << 33), nothing)),
    "ioapic": (0x1000, ioapic),
    "power": (1, lambda: (PowerRegister(lambda: None, lambda: None), nothing)),
    "events": (1, events),
    "watchdog": (8, watchdog),
    "pvpanic": (1, pvpanic),
}


def access(device: Device | Bus, rng: random.Random, span: int) -> None:
    # Half of the accesses go to the first few registers, else a long range would hardly be met.
    offset = rng.randrange(min(span, 0x20) if rng.random() < 0.5 else span)
    size = rng.choice((1, 1, 2, 3, 4, 8))
    if rng.random() < 0.5:
        assert len(device.read(offset, size)) == size
    else:
        device.write(offset, rng.randbytes(size))


@pytest.mark.parametrize("name", CASES)
@settings(derandomize=True, max_examples=EXAMPLES, deadline=None, database=None)
@given(seed=st.integers(0, 2**32))
def test_random_accesses_raise_nothing(name: str, seed: int) -> None:
    length, make = CASES[name]
    device, poke = make()
    rng = random.Random(seed)
    for _ in range(ACCESSES_EACH):
        access(device, rng, length + 4)
        if rng.random() < 0.05:
            poke(rng)


@settings(derandomize=True, max_examples=EXAMPLES, deadline=None, database=None)
@given(seed=st.integers(0, 2**32))
def test_random_accesses_to_a_bus_of_all_devices_raise_nothing(seed: int) -> None:
    rng, bus, base, pokes, lock = random.Random(seed), Bus(), 2, [], _thread.allocate_lock()
    for length, make in CASES.values():
        device, poke = make()
        bus.insert(base, length, device, lock)
        pokes.append(poke)
        base += length + rng.randrange(3)
    for _ in range(ACCESSES_EACH):
        access(bus, rng, base + 8)
        if rng.random() < 0.05:
            rng.choice(pokes)(rng)
