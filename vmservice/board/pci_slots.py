"""Slots of the PCI bus: a function with a BAR and MSI-X vectors each."""

from __future__ import annotations

from vmservice.acpi import devices_aml, tables
from vmservice.arch.x86_64 import layout
from vmservice.board.board import state_of
from vmservice.board.doorbells import Doorbells
from vmservice.board.message_interrupts import MessageInterrupts
from vmservice.board.slot import Slot
from vmservice.devices.pci import bus as pci_bus
from vmservice.devices.pci.config_space import ConfigSpaceState
from vmservice.devices.pci.host_bridge import host_bridge
from vmservice.devices.virtio.pci_transport import BAR_SIZE, NOTIFY, NOTIFY_MULTIPLIER, PciState, PciTransport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.board.board import Board, Tree
    from vmservice.board.slot import Services
    from vmservice.devices.virtio.device import VirtioDevice
    from vmservice.devices.virtio.rings import RingOwner
    from vmservice.kvm.vm import KvmVm
    from vmservice.memory.guest_memory import Region

# What the PCI root hands down of the I/O ports: all but those of the configuration mechanism.
_PCI_PORTS = [(0, layout.PCI_CONFIG_PORT - 1), (0xD00, 0xFFFF)]


class PciSlots:
    """The bus, its host bridge in slot 0, and the others in the order in which devices are placed.

    `irqfd` says whether KVM routes message-signalled interrupts from eventfds, `ioeventfd` whether it notifies by them.
    """

    def __init__(
        self, board: Board, services: Services, vm: KvmVm, *, irqfd: bool, ioeventfd: bool, tree: Tree | None = None
    ) -> None:
        tree = tree or {}
        self._board = board
        self._services = services
        self._vm = vm
        self._irqfd = irqfd
        self._ioeventfd = ioeventfd
        self._interrupts: list[MessageInterrupts] = []
        # What answers at these addresses without being on the MMIO bus: no BAR may be moved there.
        reserved = [
            (layout.IOAPIC_BASE, layout.IOAPIC_LEN, "the IOAPIC"),
            (layout.LAPIC_BASE, layout.LAPIC_LEN, "the local APICs"),
            (layout.IDENTITY_MAP_ADDRESS, layout.KVM_PAGES_SIZE, "pages of KVM's own"),
            (layout.FIRMWARE_END - layout.FIRMWARE_MAX_SIZE, layout.FIRMWARE_MAX_SIZE, "the firmware"),
        ]
        self.bus = pci_bus.PciBus(
            board.mmio, reserved=reserved, warn=services.warn, state=state_of(tree, "bus", pci_bus.PciBusState)
        )
        services.memory.listen(self)
        board.add_ports(layout.PCI_CONFIG_PORT, layout.PCI_CONFIG_LEN, self.bus.config_ports, self.bus.lock)
        board.mmio.insert(layout.PCI_ECAM, pci_bus.ECAM_SIZE, self.bus.ecam, self.bus.lock)
        self._host_bridge = host_bridge(state_of(tree, "host_bridge", ConfigSpaceState))
        self.bus.insert(self._host_bridge)
        self._numbers: dict[str, int] = dict(tree.get("slots", {}))

    # As a listener of guest memory

    def region_added(self, region: Region) -> None:
        self.bus.reserve(region.gpa, region.size_bytes, "RAM" if region.is_ram else "a device's memory")

    def region_removed(self, region: Region) -> None:
        self.bus.free(region.gpa)

    # Slots

    def slot(self, label: str, tree: Tree | None = None) -> Slot:
        return Slot(label, self._services, self._place, tree)

    def start(self) -> None:
        """Every device is in its slot."""
        self.bus.start()

    def collect(self) -> Tree:
        """What is the bus's own: which device is in which slot, and which BARs answer."""
        return {
            "bus": self.bus.state.values(),
            "host_bridge": self._host_bridge.config.state.values(),
            "slots": dict(self._numbers),
        }

    def aml(self) -> list[bytes]:
        r"""Objects for \_SB in the DSDT."""
        available = self._board.resources
        root = devices_aml.pci_root(
            layout.PCI_CONFIG_PORT,
            pci_bus.BUSES,
            mmio32=(available.mmio32.base, available.mmio32.end - 1),
            mmio64=available.mmio64_window(),
            io=_PCI_PORTS,
        )
        return [root, devices_aml.motherboard_memory(layout.PCI_ECAM, layout.PCI_ECAM_SIZE)]

    def tables(self) -> list[bytes]:
        """Tables beside the ones that every machine has."""
        return [tables.mcfg(layout.PCI_ECAM, pci_bus.BUSES)]

    def close(self) -> None:
        """Give back the eventfds."""
        for interrupts in self._interrupts:
            interrupts.close()

    def _place(self, slot: Slot, device: VirtioDevice, rings: RingOwner | None) -> PciTransport:
        resources = self._board.resources
        vectors = len(device.queue_max_sizes) + 1
        first_gsi = resources.msi_gsis.allocate(vectors, slot.label) if self._irqfd else None
        interrupts = MessageInterrupts(self._vm, first_gsi, slot.warn)
        self._interrupts.append(interrupts)
        wide = resources.mmio64_window() is not None
        function = PciTransport(
            device,
            slot.memory,
            signal=interrupts.signal,
            on_route_changed=interrupts.on_route_changed,
            warn=slot.warn,
            post=self._services.post,
            lock=slot.lock,
            rings=rings,
            eventfd=interrupts.eventfd if self._irqfd else None,
            take_waiting=interrupts.take_waiting if self._irqfd else None,
            is_64bit=wide,
            state=state_of(slot.tree, "transport", PciState),
        )
        if self._ioeventfd and rings is not None and rings.kicks:
            doorbells = Doorbells(self._vm, rings.kicks, NOTIFY, NOTIFY_MULTIPLIER, slot.warn)
            function.bar.on_mapped = doorbells.moved
        area = resources.mmio64 if wide else resources.mmio32
        base = area.allocate(BAR_SIZE, slot.label, alignment=BAR_SIZE)
        if not slot.tree:  # else it is where the guest has it
            function.place_bar(function.bar, base)
        self._numbers[slot.label] = self.bus.insert(function, self._numbers.get(slot.label))
        return function
