"""Each device of the board with everything around it, for tests that do to all of them what no driver would do.

A rig is made from nothing, or from the state of another; what the device says to the outside is written down.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from support.timers import FakeTimers

from vmservice.devices.cpu_hotplug import CpuHotplug, CpuHotplugState
from vmservice.devices.ged import GenericEvents, GenericEventsState
from vmservice.devices.i8042 import I8042, I8042State
from vmservice.devices.ioapic import IoApic, IoApicState
from vmservice.devices.irq import IrqLine
from vmservice.devices.power import PowerRegister
from vmservice.devices.pvpanic import PvPanic, PvPanicState
from vmservice.devices.rtc import Rtc, RtcState
from vmservice.devices.serial import Serial, SerialState
from vmservice.devices.state import DeviceState
from vmservice.devices.watchdog import Watchdog, WatchdogState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.devices.bus import Device

    Poke = Callable[[random.Random], object]

NOW = 1_764_000_000.25


class NoState(DeviceState):
    """Of a device that has none."""


class Rig:
    """`said` is what the device did to its surroundings, in order. `poke` does something from the host's side."""

    device: Device
    # Offset and width of the registers: not every access of a test shall miss them.
    registers: tuple[tuple[int, int], ...] = ((0, 1),)

    def __init__(self) -> None:
        self.said: list[object] = []
        self.timers = FakeTimers()
        self.line = IrqLine(lambda level: self.say("line", level))

    def say(self, *what: object) -> None:
        self.said.append(what)

    def poke(self, rng: random.Random) -> None:
        """No host side."""

    def collect(self) -> DeviceState:
        """The state as it is when the machine is paused."""
        return self.device.state  # type: ignore[attr-defined, no-any-return]

    def start(self) -> None:
        """The machine runs, or runs on."""


class SerialRig(Rig):
    registers = tuple((port, 1) for port in range(8))

    def __init__(self, state: SerialState | None = None) -> None:
        super().__init__()
        self.device: Serial = Serial(
            self.line,
            lambda data: self.say("sent", data),
            state,
            on_room=lambda: self.say("room"),
            on_polled=lambda: self.say("polled"),
        )

    def poke(self, rng: random.Random) -> None:
        taken = self.device.receive(rng.randbytes(rng.randrange(40)))
        assert 0 <= taken <= 16
        self.device.write_burst(rng.randbytes(rng.randrange(40)))
        assert len(self.device.state.received) <= 16


class IoApicRig(Rig):
    registers = ((0x00, 4), (0x10, 4))

    def __init__(self, state: IoApicState | None = None) -> None:
        super().__init__()
        self.device: IoApic = IoApic(self.send, state, lambda: self.say("routes", self.device.routes()))

    def send(self, address: int, data: int) -> int:
        assert address & ~0xFF004 == 0xFEE00000
        assert data & ~0xC7FF == 0
        self.say("message", address, data)
        return data % 3  # now and then there is no local APIC that accepts it

    def start(self) -> None:
        self.device.start()

    def poke(self, rng: random.Random) -> None:
        self.device.set_line(rng.randrange(24), rng.random() < 0.5)
        self.device.end_of_interrupt(rng.randrange(256))
        assert len(self.device.routes()) == 24


class EventsRig(Rig):
    def __init__(self, state: GenericEventsState | None = None) -> None:
        super().__init__()
        self.device: GenericEvents = GenericEvents(self.line, state)

    def poke(self, rng: random.Random) -> None:
        self.device.raise_event(rng.randrange(1, 16))


class WatchdogRig(Rig):
    registers = ((0, 1), (1, 1), (2, 1), (4, 2), (6, 2))

    def __init__(self, state: WatchdogState | None = None) -> None:
        super().__init__()
        self.device: Watchdog = Watchdog(self.timers.call_later, lambda: self.say("expired"), state, now=self.timers.now)

    def start(self) -> None:
        self.device.start()

    def collect(self) -> DeviceState:
        self.device.stop()
        return self.device.state

    def poke(self, rng: random.Random) -> None:
        if rng.random() < 0.2:  # half a second, from now
            for offset, data in ((0, b"\x00"), (4, b"\x05\x00"), (0, b"\x01")):
                self.device.write(offset, data)
        rng.choice((self.timers.advance, self.timers.advance, self.timers.freeze))(rng.choice((0.01, 0.1, 5.0, 60.0)))
        if rng.random() < 0.1:
            self.device.stop()
            self.device.start()
        assert 0 <= self.device.state.remaining_sec <= 6553.5
        assert self.timers.pending <= 1


class PvPanicRig(Rig):
    def __init__(self, state: PvPanicState | None = None) -> None:
        super().__init__()
        self.device: PvPanic = PvPanic(
            on_panic=lambda: self.say("panic"),
            on_crash_loaded=lambda: self.say("crash loaded"),
            on_shutdown=lambda: self.say("shutdown"),
            state=state,
        )

    def poke(self, rng: random.Random) -> None:
        self.device.rearm()


class I8042Rig(Rig):
    registers = ((0, 1), (3, 1))

    def __init__(self, state: I8042State | None = None) -> None:
        super().__init__()
        self.device: I8042 = I8042(lambda: self.say("reset"), state)


class PowerRig(Rig):
    def __init__(self, state: NoState | None = None) -> None:
        super().__init__()
        self.device: PowerRegister = PowerRegister(lambda: self.say("sleep"), lambda: self.say("reset"))

    def collect(self) -> DeviceState:
        return NoState()


class RtcRig(Rig):
    registers = ((0, 1), (1, 1), (0, 2))

    def __init__(self, state: RtcState | None = None) -> None:
        super().__init__()
        self.device: Rtc = Rtc(lambda: NOW, 1 << 31, 1 << 33, state)


class CpuHotplugRig(Rig):
    registers = ((0, 4), (4, 1))

    def __init__(self, state: CpuHotplugState | None = None) -> None:
        super().__init__()
        self.device: CpuHotplug = CpuHotplug(
            state or CpuHotplugState(2, 8), lambda vcpu: self.say("taken", vcpu), lambda vcpu: self.say("ejected", vcpu)
        )

    def poke(self, rng: random.Random) -> None:
        for vcpu in self.device.absent()[:1]:
            self.device.insert(vcpu)
        for vcpu in self.device.taken()[1:2]:
            if rng.random() < 0.5:
                self.device.request_removal(vcpu)
        if rng.random() < 0.1:
            self.device.withdraw()
        # What the guest's ACPI code does with a vCPU.
        self.device.write(0, rng.randrange(8).to_bytes(4, "little"))
        self.device.write(4, bytes((rng.choice((2, 4, 8)),)))


# By name: the length of the device's range, its rig, and its state.
CASES: dict[str, tuple[int, Callable[..., Rig], type[DeviceState]]] = {
    "serial": (8, SerialRig, SerialState),
    "i8042": (4, I8042Rig, I8042State),
    "rtc": (2, RtcRig, RtcState),
    "ioapic": (0x1000, IoApicRig, IoApicState),
    "power": (1, PowerRig, NoState),
    "events": (1, EventsRig, GenericEventsState),
    "watchdog": (8, WatchdogRig, WatchdogState),
    "pvpanic": (1, PvPanicRig, PvPanicState),
    "cpu hotplug": (12, CpuHotplugRig, CpuHotplugState),
}
