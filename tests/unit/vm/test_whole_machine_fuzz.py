"""A million random accesses to a whole machine's devices, on both buses: each is answered in its size, and none raises."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Callable

import pytest
from support.backends import SinkConsole
from support.boards import RecordingGuest, make_board, make_services
from support.guest_ram import MIB, guest_ram

from vmservice.arch.x86_64 import layout
from vmservice.board.mmio_slots import MmioSlots
from vmservice.board.pci_slots import PciSlots
from vmservice.board.slot import Plugged
from vmservice.board.timers import Timers
from vmservice.config.sections.balloon import BalloonDevice
from vmservice.devices.virtio import mmio_transport as mmio
from vmservice.devices.virtio import pci_transport as pci
from vmservice.devices.virtio.rng import Rng
from vmservice.plug.balloon import BalloonPlug
from vmservice.plug.console import ConsolePlug

ACCESSES = 1_000_000
# In so many machines, one after the other: each begins in order, before the guest has moved every BAR to nowhere.
MACHINES = 20
RAM_BYTES = 4 * MIB
ADDRESS_BITS = 40

PORTS = [
    (layout.COM1_BASE, layout.COM1_LEN),
    (layout.I8042_BASE, layout.I8042_LEN),
    (layout.CMOS_BASE, layout.CMOS_LEN),
    (layout.POWER_PORT, layout.POWER_LEN),
    (layout.CPU_HOTPLUG_BASE, layout.CPU_HOTPLUG_LEN),
    (layout.GED_PORT, layout.GED_LEN),
    (layout.PVPANIC_PORT, layout.PVPANIC_LEN),
    (layout.WATCHDOG_BASE, layout.WATCHDOG_LEN),
    (layout.PCI_CONFIG_PORT, layout.PCI_CONFIG_LEN),
    (0, 0x10000),
]
OBSTACLES = [0, layout.IOAPIC_BASE, layout.LAPIC_BASE, layout.PCI_ECAM, layout.FIRMWARE_END - pci.BAR_SIZE]

# On PCI the bridge is function 0, and the devices 1 to 3 come behind it.
DEVICES = 3
AREAS = [
    *((layout.PCI_ECAM + (device << 15), 0x1000) for device in range(DEVICES + 2)),
    *((layout.RAM_64BIT_START + index * pci.BAR_SIZE, pci.BAR_SIZE) for index in range(DEVICES)),
    *((layout.PCI_MMIO_32BIT + index * mmio.WINDOW_BYTES, mmio.WINDOW_BYTES) for index in range(DEVICES)),
    (layout.PCI_ECAM, layout.PCI_ECAM_SIZE),
    (layout.IOAPIC_BASE, layout.IOAPIC_LEN),
    (layout.PCI_MMIO_32BIT, layout.PCI_MMIO_32BIT_SIZE),
    (0, RAM_BYTES),
    (0, 1 << 64),
]

COMMAND, BAR_0 = 0x04, 0x10  # PCI Local Bus 3.0 §6.1
MEMORY_SPACE_AND_MASTER = 6
MSIX_ENABLE = 1 << 15


class FakeVm:
    """What devices want of a KvmVm: it takes every message, route and level that is one."""

    def __init__(self) -> None:
        self.interrupts = 0
        self.attached: dict[int, int] = {}

    def signal_msi(self, address: int, data: int) -> int:
        assert 0 <= address < 1 << 64 and 0 <= data < 1 << 32
        self.interrupts += 1
        return 1

    def set_irq_line(self, gsi: int, level: bool) -> None:
        assert 0 <= gsi < layout.IOAPIC_PINS
        self.interrupts += level

    @property
    def routes(self) -> FakeVm:
        return self

    def set_pins(self, routes: list[tuple[int, int] | None]) -> None:
        assert len(routes) == layout.IOAPIC_PINS

    def set_message(self, gsi: int, message: tuple[int, int]) -> None:
        assert layout.IOAPIC_PINS <= gsi < 4096 and 0 <= message[0] < 1 << 64 and 0 <= message[1] < 1 << 32

    def attach_eventfd(self, fd: int, gsi: int) -> None:
        assert fd >= 0 and gsi not in self.attached
        self.attached[gsi] = fd

    def detach_eventfd(self, fd: int, gsi: int) -> None:
        assert self.attached.pop(gsi) == fd


class Machine:
    """Everything that the builder gives a machine, and nothing of KVM."""

    def __init__(self, transport: str, *, split_irqchip: bool) -> None:
        self.transport = transport
        self.vm = FakeVm()
        self.memory = guest_ram((0, RAM_BYTES))
        self.printed = 0
        self.warnings: list[str] = []
        self.timers = Timers()
        self._calls: list[Callable[[], None]] = []
        self.guest = RecordingGuest()
        self.board = make_board(
            self.memory,
            vm=self.vm,
            timers=self.timers,
            guest=self.guest,
            split_irqchip=split_irqchip,
            vcpus=2,
            max_vcpus=8,
            console=lambda data: None,
        )
        services = make_services(self.board, self.memory, self.timers, post=self._calls.append, warn=self._warn)
        self.slots: PciSlots | MmioSlots
        if transport == "pci":
            self.slots = PciSlots(self.board, services, self.vm, irqfd=True, ioeventfd=False)  # type: ignore[arg-type]
        else:
            self.slots = MmioSlots(self.board, services)
        host_console = SinkConsole(self._print, "hvc")
        self.console = ConsolePlug(host_console, self.slots.slot("hvc"))
        rng_slot = self.slots.slot("rng")
        self.rng = Plugged(rng_slot, Rng(random.randbytes, rng_slot.call_later))
        self.balloon = BalloonPlug(BalloonDevice(RAM_BYTES // 2), self.slots.slot("balloon"))
        self.slots.start()
        for device in self.devices():
            device.start()

    def devices(self) -> list[Plugged]:
        return [self.console, self.rng, self.balloon]

    def _print(self, data: bytes) -> None:
        self.printed += len(data)

    def _warn(self, text: str) -> None:
        assert "\n" not in text
        self.warnings.append(text)

    def host_side(self, rng: random.Random) -> None:
        """What the host does in between."""
        self.timers.run_due()
        calls, self._calls[:] = self._calls[:], []
        for call in calls:
            call()
        self.board.events.raise_event(rng.randrange(1, 16))
        hotplug = self.board.cpu_hotplug
        assert self.board.serial is not None and hotplug is not None
        assert 0 <= self.board.serial.receive(rng.randbytes(20)) <= 20
        assert 0 <= self.console.device.receive(0, rng.randbytes(20)) <= 20
        self.console.device.resize(rng.randrange(1 << 16), rng.randrange(1 << 16))
        if self.board.ioapic is not None:
            self.board.ioapic.end_of_interrupt(rng.randrange(256))
        for vcpu in hotplug.absent()[:1]:
            hotplug.insert(vcpu)
        for vcpu in hotplug.taken()[1:2]:
            hotplug.request_removal(vcpu)

    def driver(self, rng: random.Random) -> None:
        """A driver that begins as it should and then lies: a device at work is harder to keep in order than one at rest."""
        index, queue = rng.randrange(DEVICES), rng.randrange(3)
        rings = descriptors, available, _ = [rng.randrange(16) << 12 for _ in range(3)]
        worst_flags, worst_index, last_head = rng.choice(((1, 8, 1), (1, 8, 1), (8, 12, 16)))
        for number in range(8):  # address, length, flags, next
            gpa, size = rng.randrange(RAM_BYTES + 64), rng.randrange(1 << rng.randrange(1, 17))
            link = (rng.randrange(worst_flags), rng.randrange(16))
            self.memory.write(descriptors + 16 * number, struct.pack("<QIHH", gpa, size, *link))
        heads = (rng.randrange(last_head) for _ in range(8))
        self.memory.write(available, struct.pack("<10H", 0, rng.randrange(worst_index), *heads))
        # One pin of the IOAPIC unmasked, with vector 0x41 (82093AA data sheet §3.2.4).
        pin = [(layout.IOAPIC_BASE, 4, 0x10 + 2 * rng.randrange(layout.IOAPIC_PINS)), (layout.IOAPIC_BASE + 0x10, 4, 0x41)]
        for register, size, value in [*pin, *self._bring_up(rng, index, queue, rings)]:
            if rng.random() < 0.98:
                self.board.mmio.write(register, value.to_bytes(size, "little"))

    def _bring_up(self, rng: random.Random, index: int, queue: int, rings: list[int]) -> list[tuple[int, int, int]]:
        """(address, size, value) of the writes by which a driver starts a device and one of its virtqueues."""
        if self.transport == "pci":
            config = layout.PCI_ECAM + (index + 1 << 15)
            # Where it was, or on another BAR, or where BARs must not be.
            base = layout.RAM_64BIT_START + (index if rng.random() < 0.9 else rng.randrange(DEVICES)) * pci.BAR_SIZE
            base = base if rng.random() < 0.9 else rng.choice(OBSTACLES)
            place = [(config + COMMAND, 2, 0), (config + BAR_0, 4, base & 0xFFFFFFFF), (config + BAR_0 + 4, 4, base >> 32)]
            place.append((config + COMMAND, 2, MEMORY_SPACE_AND_MASTER))
            # struct virtio_pci_common_cfg, virtio 1.2 §4.1.4.3
            start = [(20, 1, 0), (20, 1, 3), (8, 4, 1), (12, 4, 1), (8, 4, 0), (12, 4, 0), (20, 1, 11), (22, 2, queue)]
            start += [(24, 2, 8), (32, 8, rings[0]), (40, 8, rings[1]), (48, 8, rings[2]), (28, 2, 1), (20, 1, 15)]
            start.append((pci.NOTIFY + pci.NOTIFY_MULTIPLIER * queue, 2, queue))
            # A message for the virtqueue: entry 0 of the table, and the vector (§4.1.4.3) before the queue is enabled.
            messages = [(pci.MSIX_TABLE, 4, layout.LAPIC_BASE), (pci.MSIX_TABLE + 8, 4, 0x41), (pci.MSIX_TABLE + 12, 4, 0)]
            start = [*messages, *start[:8], (26, 2, 0), *start[8:]]
            place.append((config + self._msix_capability(config) + 2, 2, MSIX_ENABLE))
            return place + [(base + offset, size, value) for offset, size, value in start]
        base = layout.PCI_MMIO_32BIT + index * mmio.WINDOW_BYTES
        words = [(mmio.STATUS, 0), (mmio.STATUS, 3), (mmio.DRIVER_FEATURES_SEL, 1), (mmio.DRIVER_FEATURES, 1)]
        words += [(mmio.DRIVER_FEATURES_SEL, 0), (mmio.DRIVER_FEATURES, 0), (mmio.STATUS, 11), (mmio.QUEUE_SEL, queue)]
        words += [(mmio.QUEUE_NUM, 8), (mmio.QUEUE_DESC_LOW, rings[0]), (mmio.QUEUE_DRIVER_LOW, rings[1])]
        words += [(mmio.QUEUE_DEVICE_LOW, rings[2]), (mmio.QUEUE_READY, 1), (mmio.STATUS, 15), (mmio.QUEUE_NOTIFY, queue)]
        return [(base + register, 4, value) for register, value in words]

    def _msix_capability(self, config: int) -> int:
        """Where it is in the configuration space at `config` (PCI Local Bus 3.0 §6.7)."""
        offset = self.board.mmio.read(config + 0x34, 1)[0]
        while (capability := self.board.mmio.read(config + offset, 2))[0] != 0x11:
            offset = capability[1]
        return offset

    def close(self) -> None:
        for device in self.devices():
            device.close()
        self.slots.close()
        self.memory.close()
        self.timers.close()


def value_of(rng: random.Random, size: int) -> bytes:
    """All sorts: random, small, an address in RAM, or of the devices."""
    kind = rng.randrange(4)
    if kind == 0:
        return rng.randbytes(size)
    if kind == 1:
        return rng.randrange(32).to_bytes(size, "little")
    if kind == 2:
        return (rng.randrange(RAM_BYTES) & ~0xFFF & (1 << 8 * size) - 1).to_bytes(size, "little")
    base = rng.choice((layout.PCI_MMIO_32BIT, layout.IOAPIC_BASE, layout.PCI_ECAM, layout.RAM_64BIT_START))
    return ((base + (rng.randrange(16) << 15)) & (1 << 8 * size) - 1).to_bytes(size, "little")


@pytest.mark.parametrize(
    ("transport", "split_irqchip"), [("pci", True), ("mmio", True), ("pci", False)], ids=["PCI", "MMIO", "in-kernel irqchip"]
)
def test_a_million_accesses(transport: str, split_irqchip: bool) -> None:
    accesses = ACCESSES if (transport, split_irqchip) == ("pci", True) else ACCESSES // 10
    rng = random.Random(f"{transport} {split_irqchip}")
    machines = [Machine(transport, split_irqchip=split_irqchip) for _ in range(MACHINES)]
    try:
        for machine in machines:
            poke(machine, rng, accesses // MACHINES)
    finally:
        for machine in machines:
            machine.close()
    # They have come through to the devices.
    assert any(machine.guest.did.count("poweroff") for machine in machines)
    assert any(machine.guest.did.count("reset") for machine in machines)
    assert any(machine.printed for machine in machines)
    assert any(machine.vm.interrupts for machine in machines)
    warnings = "\n".join(warning for machine in machines for warning in machine.warnings)
    assert "which waits for its reset" in warnings
    if transport == "pci":
        met = set(re.findall(r"where it cannot answer: .* overlaps (.+) at", warnings))
        assert len(met) >= 4, met
        assert "RAM" in met or accesses < ACCESSES, met


def poke(machine: Machine, rng: random.Random, accesses: int) -> None:
    pio, mmio = machine.board.pio, machine.board.mmio
    choice, randrange, sizes = rng.choice, rng.randrange, (1, 2, 4, 4, 8)
    read: Callable[[int, int], bytes]
    for number in range(accesses):
        if number % 100 == 0:
            machine.host_side(rng)
            machine.driver(rng)
        size = choice(sizes)
        if number & 1:
            base, length = choice(PORTS)
            bus, size = pio, min(size, 4)
        else:
            base, length = choice(AREAS)
            bus = mmio
        # Half of them at the beginning, where registers are.
        address = base + randrange(min(length, 0x40) if number & 2 else length)
        if number & 4:
            read = bus.read
            assert len(read(address, size)) == size
        else:
            bus.write(address, value_of(rng, size))
