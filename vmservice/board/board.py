"""The devices that every machine has, and the wires between them: the one place where addresses, lines and devices meet."""

from __future__ import annotations

import _thread
import time

from vmservice.arch.x86_64 import layout
from vmservice.board.input import ConsoleInput
from vmservice.devices.bus import Bus
from vmservice.devices.ged import GenericEvents, GenericEventsState
from vmservice.devices.i8042 import I8042, I8042State
from vmservice.devices.ioapic import IoApic, IoApicState
from vmservice.devices.irq import IrqLine
from vmservice.devices.power import PowerRegister
from vmservice.devices.pvpanic import PvPanic, PvPanicState
from vmservice.devices.rtc import Rtc, RtcState
from vmservice.devices.serial import Serial, SerialState
from vmservice.devices.watchdog import Watchdog, WatchdogState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol, TypeVar

    from vmservice.board.resources import Resources
    from vmservice.board.timers import Timer, Timers
    from vmservice.devices.bus import Device
    from vmservice.devices.cpu_hotplug import CpuHotplug
    from vmservice.devices.state import DeviceState
    from vmservice.kvm.vcpu import KvmVcpu
    from vmservice.kvm.vm import KvmVm
    from vmservice.memory.guest_memory import GuestMemory

    S = TypeVar("S", bound=DeviceState)
    # Plain values as JSON has them, by the name of a device.
    Tree = dict[str, Any]

    class Stateful(Protocol):
        @property
        def state(self) -> DeviceState: ...

    class Guest(Protocol):
        """Who is told what the guest does to its whole machine. Called with the board's lock held."""

        def poweroff(self) -> None: ...
        def reset(self, how: str) -> None: ...
        def panic(self) -> None: ...
        def watchdog(self) -> None: ...
        def vcpus_changed(self) -> None:
            """It took a new vCPU, or gave one back."""


_MSI_LEVEL_TRIGGERED = 1 << 15  # Intel SDM vol. 3, 11.11.2: message data register, trigger mode

# How long output may wait in KVM's ring for the guest's next exit.
_COALESCED_PERIOD_SEC = 0.05


class Board:
    """Devices, the PIO and MMIO buses that they are on, and `lock`, held during each access to one that has no other.

    `ioapic` is None where the in-kernel irqchip has taken its place, `serial` where `console` is None, `cpu_hotplug` where the
    number of vCPUs is fixed. Whatever is plugged in later gets its ports, addresses and pins from `resources`.
    """

    def __init__(
        self,
        vm: KvmVm,
        memory: GuestMemory,
        resources: Resources,
        timers: Timers,
        guest: Guest,
        *,
        split_irqchip: bool,
        vcpus: int,
        max_vcpus: int,
        console: Callable[[bytes], None] | None,
        on_console_room: Callable[[str], None],
        watchdog_fired: bool,
        on_watchdog: Callable[[], None],
        warn: Callable[[str], None],
        tree: Tree | None = None,
    ) -> None:
        """`tree` is what `collect` of another board has said: this one goes on from there."""
        tree = tree or {}
        self.lock = _thread.allocate_lock()
        self.resources = resources
        self.pio = Bus()
        self.mmio = Bus()
        self.inputs: dict[str, ConsoleInput] = {}
        self.is_coalescing = False  # KVM gathers writes to COM1 in its ring
        self._vm = vm
        self._timers = timers
        self._ring: KvmVcpu | None = None  # the vCPU through which that ring is read
        self._coalesced_timer: Timer | None = None
        self._level_routes: list[tuple[int, int] | None] = []
        self._ejected: list[int] = list(tree.get("ejected", ()))
        self.ioapic: IoApic | None = None
        if split_irqchip:
            # Before all that have a line to it: a line that is high is so for both.
            self.ioapic = IoApic(vm.signal_msi, state_of(tree, "ioapic", IoApicState), self._update_routes)
            self.mmio.insert(layout.IOAPIC_BASE, layout.IOAPIC_LEN, self.ioapic, self.ioapic.lock)
        resources.pins.reserve(layout.COM1_GSI, 1, "COM1")
        resources.pins.reserve(layout.GED_GSI, 1, "the generic event device")
        self.serial = self._serial(console, on_console_room, tree) if console is not None else None
        self.events = GenericEvents(self.line(layout.GED_GSI), state_of(tree, "events", GenericEventsState))
        self.cpu_hotplug = self._cpu_hotplug(guest, vcpus, max_vcpus, tree) if max_vcpus > 1 else None
        self._pvpanic = PvPanic(
            on_panic=guest.panic,
            on_crash_loaded=lambda: warn("the guest panicked, and goes on with its crash kernel"),
            on_shutdown=guest.poweroff,
            state=state_of(tree, "pvpanic", PvPanicState),
        )

        def watchdog_expired() -> None:
            on_watchdog()
            guest.watchdog()

        watchdog_state = state_of(tree, "watchdog", WatchdogState) or WatchdogState(fired=watchdog_fired)
        self.watchdog = Watchdog(self.call_later, watchdog_expired, watchdog_state)
        self.add_ports(layout.GED_PORT, layout.GED_LEN, self.events, self.lock)
        self.add_ports(layout.PVPANIC_PORT, layout.PVPANIC_LEN, self._pvpanic, self.lock)
        self.add_ports(layout.WATCHDOG_BASE, layout.WATCHDOG_LEN, self.watchdog, self.lock)
        power = PowerRegister(guest.poweroff, lambda: guest.reset("it wrote to the reset register of ACPI"))
        self._keyboard_controller = I8042(
            lambda: guest.reset("it pulsed the reset line of the keyboard controller"), state_of(tree, "i8042", I8042State)
        )
        self._rtc = _rtc(memory, state_of(tree, "rtc", RtcState))
        self.add_ports(layout.POWER_PORT, layout.POWER_LEN, power, self.lock)
        self.add_ports(layout.I8042_BASE, layout.I8042_LEN, self._keyboard_controller, self.lock)
        self.add_ports(layout.CMOS_BASE, layout.CMOS_LEN, self._rtc, self.lock)

    def _serial(self, console: Callable[[bytes], None], on_console_room: Callable[[str], None], tree: Tree) -> Serial:
        def has_room() -> None:
            typed.feed()

        serial = Serial(self.line(layout.COM1_GSI), console, state_of(tree, "serial", SerialState), has_room, self._coalesce)
        typed = self.inputs["serial"] = ConsoleInput(
            self.lock,
            serial.receive,
            lambda: on_console_room("serial"),
            waiting=bytes.fromhex(tree.get("typed", "")),
        )
        self.add_ports(layout.COM1_BASE, layout.COM1_LEN, serial, self.lock)
        return serial

    def _cpu_hotplug(self, guest: Guest, vcpus: int, max_vcpus: int, tree: Tree) -> CpuHotplug:
        from vmservice.devices.cpu_hotplug import CpuHotplug, CpuHotplugState

        def ejected(index: int) -> None:
            self._ejected.append(index)
            guest.vcpus_changed()

        state = state_of(tree, "cpu_hotplug", CpuHotplugState) or CpuHotplugState(vcpus, max_vcpus)
        hotplug = CpuHotplug(state, lambda _index: guest.vcpus_changed(), ejected)
        self.add_ports(layout.CPU_HOTPLUG_BASE, layout.CPU_HOTPLUG_LEN, hotplug, self.lock)
        return hotplug

    def add_ports(self, base: int, length: int, device: Device, lock: _thread.LockType) -> None:
        """`device` answers at these ports, each time with `lock` held; RangeOverlap when another one has some of them."""
        self.resources.pio.reserve(base, length, type(device).__name__)
        self.pio.insert(base, length, device, lock)

    def collect(self) -> Tree:
        """The whole state of these devices as plain values, and what waits beside them. No vCPU runs, and the lock is held."""
        devices: dict[str, Stateful | None] = {
            "ioapic": self.ioapic,
            "serial": self.serial,
            "events": self.events,
            "cpu_hotplug": self.cpu_hotplug,
            "pvpanic": self._pvpanic,
            "watchdog": self.watchdog,
            "i8042": self._keyboard_controller,
            "rtc": self._rtc,
        }
        tree: Tree = {name: device.state.values() for name, device in devices.items() if device is not None}
        tree["ejected"] = list(self._ejected)
        if "serial" in self.inputs:
            tree["typed"] = self.inputs["serial"].waiting.hex()
        return tree

    def line(self, gsi: int) -> IrqLine:
        """A wire to the interrupt controller's input `gsi`."""
        ioapic = self.ioapic
        if ioapic is not None:
            return IrqLine(lambda level: ioapic.set_line(gsi, level))
        return IrqLine(lambda level: self._vm.set_irq_line(gsi, level))

    def take_ejected(self) -> list[int]:
        """The vCPUs that the guest has given back since the last call. Their threads still hold."""
        ejected, self._ejected = self._ejected, []
        return ejected

    def put_ejected(self, vcpus: list[int]) -> None:
        """Those are for the next `take_ejected`."""
        self._ejected += vcpus

    def call_later(self, delay_sec: float, callback: Callable[[], None]) -> Timer:
        """Have `callback` called in that time, in the event loop's thread and with the lock held."""
        return self._timers.call_later(delay_sec, lambda: self._with_lock(callback))

    def _with_lock(self, callback: Callable[[], None]) -> None:
        with self.lock:
            callback()

    def start(self) -> None:
        """The vCPUs are about to run for the first time."""
        if self.ioapic is not None:
            self.ioapic.start()
        self.watchdog.start()

    def pause(self) -> None:
        """Every vCPU holds by now."""
        self.take_coalesced()
        self.watchdog.stop()

    def resume(self) -> None:
        self.watchdog.start()
        self._pvpanic.rearm()

    # Output of COM1 that KVM gathers

    def coalesce_console(self, vcpu: KvmVcpu) -> None:
        """Let KVM gather the bytes that the guest writes to COM1, and hand them over with the next exit.

        A kernel's 8250 console reads a status register for each byte that it writes: the write waits for that read. A guest
        that never reads it would be heard by chance only, so KVM gathers from the first such read on. All vCPUs share one
        ring, which is read through `vcpu`.
        """
        self._ring = vcpu
        if self.serial is not None and self.serial.state.polled:
            self._coalesce()

    def _coalesce(self) -> None:
        """The guest reads the line status: in a vCPU's thread, with the lock held."""
        if self._ring is not None and not self.is_coalescing:
            self._vm.coalesce_pio(layout.COM1_BASE, 1)
            self.is_coalescing = True
            self.expect_coalesced()

    def take_coalesced(self) -> bool:
        """Do the writes that KVM gathered, in the order of the guest: all of them to COM1; whether there were any."""
        gathered = self._ring.coalesced() if self._ring is not None else []
        if gathered and self.serial is not None:
            self.serial.write_burst(b"".join([data for _port, data in gathered]))
        return bool(gathered)

    def expect_coalesced(self) -> None:
        """The guest is at COM1: what it writes next may be followed by no exit, so look at the ring soon."""
        if self._coalesced_timer is None:
            self._coalesced_timer = self._timers.call_later(_COALESCED_PERIOD_SEC, self._look_for_coalesced)

    def _look_for_coalesced(self) -> None:
        with self.lock:
            self._coalesced_timer = None
            if self.take_coalesced():
                self.expect_coalesced()

    def close(self) -> None:
        """No timer of the board's is due any more."""
        if self._coalesced_timer is not None:
            self._coalesced_timer.cancel()
        self.watchdog.stop()

    def _update_routes(self) -> None:
        """Tell KVM of the level-triggered pins, whose EOI we must see; edges need no route, they go out as messages."""
        assert self.ioapic is not None, "only an IOAPIC of ours has routes that change"
        routes = [route if route is not None and route[1] & _MSI_LEVEL_TRIGGERED else None for route in self.ioapic.routes()]
        if routes != self._level_routes and (any(routes) or any(self._level_routes)):
            self._vm.routes.set_pins(routes)
        self._level_routes = routes


def state_of(tree: Tree, name: str, kind: type[S]) -> S | None:
    """The state called `name` in a tree that has one; ValueError when it is not one of that kind."""
    return kind.from_values(tree[name]) if name in tree else None


def _rtc(memory: GuestMemory, state: RtcState | None) -> Rtc:
    ram = (region for region in memory.regions if region.is_ram)
    below = sum(region.size_bytes for region in ram if region.gpa < layout.RAM_64BIT_START)
    return Rtc(time.time, below, memory.size_bytes - below, state)
