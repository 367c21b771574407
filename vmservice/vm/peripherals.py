"""The devices that a machine has beyond those of its board: virtio devices, on the PCI bus or each in a window of memory.

Which ones, the configuration says; where they lie, the allocators; and the guest finds them through ACPI.
"""

from __future__ import annotations

import os
from functools import partial

from vmservice.acpi import devices_aml, tables
from vmservice.arch.x86_64 import layout
from vmservice.board import resources
from vmservice.board.input import ConsoleInput
from vmservice.board.message_interrupts import MessageInterrupts
from vmservice.devices.pci import bus as pci_bus
from vmservice.devices.virtio.console import Console, Port, transmit_queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmservice.board.board import Board
    from vmservice.board.resources import Resources
    from vmservice.config_sections import PortConfig, VirtioConfig
    from vmservice.devices.pci.bus import PciBus
    from vmservice.devices.virtio.balloon import Balloon as BalloonDevice
    from vmservice.devices.virtio.device import VirtioDevice
    from vmservice.devices.virtio.mmio_transport import MmioTransport
    from vmservice.devices.virtio.pci_transport import PciTransport
    from vmservice.devices.virtio.rng import Rng
    from vmservice.devices.virtio.transport import VirtioTransport
    from vmservice.host.console import Console as HostConsole
    from vmservice.kvm.vm import KvmVm
    from vmservice.memory.guest_memory import GuestMemory

# What the PCI root hands down of the I/O ports: all but those of the configuration mechanism.
_PCI_PORTS = [(0, resources.PCI_CONFIG_PORT - 1), (0xD00, 0xFFFF)]


class Peripherals:
    """All of them, plugged in at once. Every method is called with the board's lock held.

    `irqfd` says whether KVM routes message-signalled interrupts from eventfds.
    `hvc` takes what the guest writes to its virtio-console, or is None for a machine without one; `hvc_size` answers the
    columns and rows of its terminal. `ports` are the other ends of the configuration's ports, by name. `on_room` is told hvc,
    or a port's name, when bytes that were refused may be offered again. `post` is what virtio's transports want.
    """

    def __init__(
        self,
        config: VirtioConfig,
        *,
        vm: KvmVm,
        memory: GuestMemory,
        board: Board,
        address_bits: int,
        irqfd: bool,
        hvc: Callable[[bytes], None] | None,
        hvc_size: Callable[[], tuple[int, int]] | None,
        ports: Mapping[str, HostConsole],
        on_room: Callable[[str], None],
        post: Callable[[Callable[[], None]], None],
        warn: Callable[[str], None],
    ) -> None:
        self._vm = vm
        self._memory = memory
        self._board = board
        self._hvc_size = hvc_size
        self._post = post
        self._warn = warn
        self._irqfd = irqfd
        self._interrupts: list[MessageInterrupts] = []
        self._resources = resources.Resources(memory.end, address_bits)
        self._transports: list[VirtioTransport] = []
        self._port_transport: VirtioTransport | None = None
        self._mmio_aml: list[bytes] = []
        self._pci = self._create_pci() if config.transport == "pci" else None
        self.inputs: dict[str, ConsoleInput] = {}
        self.console: Console | None = None
        if hvc is not None:
            self.console = Console([Port(hvc, on_room=partial(self._feed, "hvc"))])
            self._add_input("hvc", self.console, 0, on_room)
            self._plug(self.console)
            self._follow_terminal()
        self._ports = [(port, ports[port.name]) for port in config.ports if port.name in ports]
        if self._ports:
            # On a device of its own, as hvc0 is alone on its own: only so the size of its terminal is safe with every Linux.
            self._port_device = Console([self._port(port, host) for port, host in self._ports], multiport=True)
            for number, (port, _host) in enumerate(self._ports):
                self._add_input(port.name, self._port_device, number, on_room)
            self._follow_clients()
            self._port_transport = self._plug(self._port_device)
        self._rng: Rng | None = None
        if config.rng:
            from vmservice.devices.virtio.rng import Rng

            self._rng = Rng(os.urandom)
            self._plug(self._rng)
        self.balloon: BalloonDevice | None = None
        if config.balloon_bytes is not None:
            from vmservice.devices.virtio.balloon import Balloon

            self.balloon = Balloon(memory, memory.discard)
            self.balloon.set_target_bytes(config.balloon_bytes)
            self._plug(self.balloon)

    # For ACPI

    def aml(self) -> list[bytes]:
        r"""Objects for \_SB in the DSDT."""
        if self._pci is None:
            return self._mmio_aml
        return [_pci_root(self._resources), devices_aml.motherboard_memory(layout.PCI_ECAM, layout.PCI_ECAM_SIZE)]

    def tables(self) -> list[bytes]:
        """Tables beside the ones that every machine has."""
        return [] if self._pci is None else [tables.mcfg(layout.PCI_ECAM, pci_bus.BUSES)]

    # While the machine runs

    def tick(self) -> None:
        """Several times a second: go on with requests that had to wait, and see how large the terminal is, and who is there."""
        self._follow_terminal()
        self._follow_clients()
        if self._rng is not None:
            self._rng.tick()

    def _add_input(self, label: str, device: Console, number: int, on_room: Callable[[str], None]) -> None:
        self.inputs[label] = ConsoleInput(self._board.lock, partial(device.receive, number), partial(on_room, label))

    def _feed(self, label: str) -> None:
        self.inputs[label].feed()

    def close(self) -> None:
        """Let go of guest memory, and of the descriptors."""
        for transport in self._transports:
            transport.close()
        for interrupts in self._interrupts:
            interrupts.close()

    def _follow_terminal(self) -> None:
        """Asked for rather than told by SIGWINCH, which comes for our own terminal only and not for a pseudoterminal's."""
        if self.console is not None and self._hvc_size is not None:
            self.console.resize(*self._hvc_size())

    def _follow_clients(self) -> None:
        """The guest learns whether a stream has another end now, and one that had no room for its bytes may have it again."""
        for number, (port, host) in enumerate(self._ports):
            if not port.is_console:
                self._port_device.set_open(number, host.is_attached)
                if self._port_transport is not None:
                    self._port_transport.notify(transmit_queue(number))

    # Plugging in

    def _create_pci(self) -> PciBus:
        from vmservice.devices.pci.host_bridge import host_bridge

        # What answers at these addresses without being on the MMIO bus: no BAR may be moved there.
        reserved = [(region.gpa, region.size_bytes, "RAM") for region in self._memory.regions]
        reserved += [
            (layout.IOAPIC_BASE, layout.IOAPIC_LEN, "the IOAPIC"),
            (layout.LAPIC_BASE, layout.LAPIC_LEN, "the local APICs"),
            (layout.IDENTITY_MAP_ADDRESS, layout.KVM_PAGES_SIZE, "pages of KVM's own"),
            (layout.FIRMWARE_END - layout.FIRMWARE_MAX_SIZE, layout.FIRMWARE_MAX_SIZE, "the firmware"),
        ]
        pci = pci_bus.PciBus(self._board.mmio, reserved=reserved, warn=self._warn)
        self._board.pio.insert(resources.PCI_CONFIG_PORT, resources.PCI_CONFIG_LEN, pci.config_ports, pci.lock)
        self._board.mmio.insert(layout.PCI_ECAM, pci_bus.ECAM_SIZE, pci.ecam, pci.lock)
        pci.insert(host_bridge())
        return pci

    def _plug(self, device: VirtioDevice) -> VirtioTransport:
        transport = self._plug_mmio(device) if self._pci is None else self._plug_pci(device, self._pci)
        self._transports.append(transport.virtio)
        transport.start()
        return transport.virtio

    def _plug_pci(self, device: VirtioDevice, pci: PciBus) -> PciTransport:
        from vmservice.devices.virtio.pci_transport import BAR_SIZE, PciTransport

        owner = type(device).__name__
        vectors = len(device.queue_max_sizes) + 1
        first_gsi = self._resources.msi_gsis.allocate(vectors, owner) if self._irqfd else None
        interrupts = MessageInterrupts(self._vm, first_gsi, self._warn)
        self._interrupts.append(interrupts)
        wide = self._resources.mmio64_window() is not None
        transport = PciTransport(
            device,
            self._memory,
            signal=interrupts.signal,
            on_route_changed=interrupts.on_route_changed,
            warn=self._warn,
            post=self._post,
            lock=self._board.lock,
            is_64bit=wide,
        )
        area = self._resources.mmio64 if wide else self._resources.mmio32
        transport.place_bar(transport.bar, area.allocate(BAR_SIZE, owner, alignment=BAR_SIZE))
        pci.insert(transport)
        return transport

    def _plug_mmio(self, device: VirtioDevice) -> MmioTransport:
        from vmservice.devices.virtio.mmio_transport import WINDOW_BYTES, MmioTransport

        owner = type(device).__name__
        base = self._resources.mmio32.allocate(WINDOW_BYTES, owner, alignment=WINDOW_BYTES)
        pin = self._resources.pins.allocate(1, owner)
        window = MmioTransport(
            device, self._memory, self._board.line(pin), warn=self._warn, post=self._post, lock=self._board.lock
        )
        self._board.mmio.insert(base, WINDOW_BYTES, window, window.virtio.lock)
        self._mmio_aml.append(devices_aml.virtio_mmio(len(self._mmio_aml), base, pin))
        return window

    def _port(self, port: PortConfig, host: HostConsole) -> Port:
        return Port(
            host.write,
            name=port.name,
            is_console=port.is_console,
            on_room=partial(self._feed, port.name),
            has_room=None if port.is_console else host.has_room,
        )


def _pci_root(available: Resources) -> bytes:
    mmio32 = (available.mmio32.base, available.mmio32.end - 1)
    return devices_aml.pci_root(
        resources.PCI_CONFIG_PORT, pci_bus.BUSES, mmio32=mmio32, mmio64=available.mmio64_window(), io=_PCI_PORTS
    )
