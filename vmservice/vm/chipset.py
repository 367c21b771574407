"""The devices that every machine has, and the wires between them: the one place where addresses, lines and devices meet."""

from __future__ import annotations

import _thread
import time

from vmservice.arch.x86_64 import layout
from vmservice.devices.bus import Bus
from vmservice.devices.ged import GenericEvents
from vmservice.devices.i8042 import I8042
from vmservice.devices.ioapic import IoApic
from vmservice.devices.irq import IrqLine
from vmservice.devices.power import PowerRegister
from vmservice.devices.rtc import Rtc
from vmservice.devices.serial import Serial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.devices.cpu_hotplug import CpuHotplug
    from vmservice.devices.pvpanic import PvPanic
    from vmservice.devices.watchdog import Watchdog
    from vmservice.kvm.vm import KvmVm
    from vmservice.memory.guest_memory import GuestMemory

_MSI_LEVEL_TRIGGERED = 1 << 15  # Intel SDM vol. 3, 11.11.2: message data register, trigger mode


class Chipset:
    """Devices, the PIO and MMIO buses that they are on, and `lock`, held during each access to one that has no other.

    `ioapic` is None where the in-kernel irqchip has taken its place, `serial` where the configuration has it off, `cpu_hotplug`
    where the number of vCPUs is fixed, `pvpanic` and `watchdog` where nobody would act on them.
    """

    def __init__(
        self,
        vm: KvmVm,
        memory: GuestMemory,
        *,
        split_irqchip: bool,
        console: Callable[[bytes], None] | None,
        cpu_hotplug: CpuHotplug | None,
        on_console_room: Callable[[], None],
        on_sleep: Callable[[], None],
        on_reset: Callable[[], None],
        pvpanic: PvPanic | None = None,
        watchdog: Watchdog | None = None,
    ) -> None:
        self.lock = _thread.allocate_lock()
        self.pio = Bus()
        self.mmio = Bus()
        self._vm = vm
        self._level_routes: list[tuple[int, int] | None] = []
        self.ioapic: IoApic | None = None
        if split_irqchip:
            self.ioapic = IoApic(vm.signal_msi, on_routes_changed=self._update_routes)
            self.mmio.insert(layout.IOAPIC_BASE, layout.IOAPIC_LEN, self.ioapic, self.ioapic.lock)

        self.serial: Serial | None = None
        if console is not None:
            self.serial = Serial(self.line(layout.COM1_GSI), console, on_room=on_console_room)
            self.pio.insert(layout.COM1_BASE, layout.COM1_LEN, self.serial, self.lock)
        self.events = GenericEvents(self.line(layout.GED_GSI))
        self.pio.insert(layout.GED_PORT, layout.GED_LEN, self.events, self.lock)
        self.cpu_hotplug = cpu_hotplug
        if cpu_hotplug is not None:
            self.pio.insert(layout.CPU_HOTPLUG_BASE, layout.CPU_HOTPLUG_LEN, cpu_hotplug, self.lock)
        self.pvpanic = pvpanic
        if pvpanic is not None:
            self.pio.insert(layout.PVPANIC_PORT, layout.PVPANIC_LEN, pvpanic, self.lock)
        self.watchdog = watchdog
        if watchdog is not None:
            self.pio.insert(layout.WATCHDOG_BASE, layout.WATCHDOG_LEN, watchdog, self.lock)
        self.pio.insert(layout.POWER_PORT, layout.POWER_LEN, PowerRegister(on_sleep, on_reset), self.lock)
        self.pio.insert(layout.I8042_BASE, layout.I8042_LEN, I8042(on_reset), self.lock)
        self.pio.insert(layout.CMOS_BASE, layout.CMOS_LEN, _rtc(memory), self.lock)

    def line(self, gsi: int) -> IrqLine:
        """A wire to the interrupt controller's input `gsi`."""
        ioapic = self.ioapic
        if ioapic is not None:
            return IrqLine(lambda level: ioapic.set_line(gsi, level))
        return IrqLine(lambda level: self._vm.set_irq_line(gsi, level))

    def _update_routes(self) -> None:
        """Tell KVM of the level-triggered pins, whose EOI we must see; edges need no route, they go out as messages."""
        assert self.ioapic is not None
        routes = [route if route is not None and route[1] & _MSI_LEVEL_TRIGGERED else None for route in self.ioapic.routes()]
        if routes != self._level_routes and (any(routes) or any(self._level_routes)):
            self._vm.set_msi_routes(routes)
        self._level_routes = routes


def _rtc(memory: GuestMemory) -> Rtc:
    below = sum(region.size_bytes for region in memory.regions if region.gpa < layout.RAM_64BIT_START)
    return Rtc(time.time, below, memory.size_bytes - below)
