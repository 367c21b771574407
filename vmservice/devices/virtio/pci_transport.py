"""virtio over PCI (virtio 1.2 §4.1): a modern device only, whose registers lie in BAR 0, and which interrupts by MSI-X.

BAR 0, each part on pages of its own, so that a guest can map them apart:

    0x0000  common configuration (§4.1.4.3)        0x3000  notifications, 4 bytes a virtqueue (§4.1.4.4)
    0x1000  ISR status (§4.1.4.5)                  0x4000  MSI-X table, up to 512 vectors
    0x2000  the device's own configuration         0x6000  MSI-X pending bits

Not offered: the legacy interface, INTx, notification data and the reset of a single virtqueue.
"""

from __future__ import annotations

import _thread
import struct

from vmservice.devices.pci.config_space import ConfigSpaceState
from vmservice.devices.pci.function import Identity, PciFunction
from vmservice.devices.pci.msix import Msix, MsixState
from vmservice.devices.state import DeviceState
from vmservice.devices.virtio.ids import TYPE_BLOCK, TYPE_CONSOLE, TYPE_NET
from vmservice.devices.virtio.queue import AVAILABLE, DESCRIPTORS, USED
from vmservice.devices.virtio.transport import VirtioTransport
from vmservice.devices.virtio.transport_state import TransportState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.devices.virtio.device import VirtioDevice
    from vmservice.devices.virtio.queue import Dma
    from vmservice.devices.virtio.rings import RingOwner

    Field = tuple[int, int, Callable[[], int], Callable[[int], None] | None]

# --- identity, §4.1.2 -----------------------------------------------------------------------------------------------------
VENDOR_ID = 0x1AF4
DEVICE_ID_BASE = 0x1040
REVISION = 1  # a device without the legacy interface has 1 or higher
# The base class tells people and lspci what it is; drivers go by the ids.
_CLASS_CODES = {TYPE_NET: 0x02_00_00, TYPE_BLOCK: 0x01_00_00, TYPE_CONSOLE: 0x07_80_00}
_CLASS_UNCLASSIFIED = 0x00_FF_00

# --- BAR 0 ----------------------------------------------------------------------------------------------------------------
BAR_INDEX = 0
BAR_SIZE = 0x8000
COMMON = 0x0000
ISR = 0x1000
DEVICE = 0x2000
NOTIFY = 0x3000
MSIX_TABLE = 0x4000
MSIX_PENDING = 0x6000
_PAGE = 0x1000

COMMON_SIZE = 0x38
ISR_SIZE = 1
DEVICE_SIZE = _PAGE
NOTIFY_MULTIPLIER = 4
MAX_QUEUES = 511  # each has a vector, and the configuration has one: 512 entries are in the table

# --- capabilities, §4.1.4 -------------------------------------------------------------------------------------------------
CAPABILITY_VENDOR = 0x09
CFG_COMMON, CFG_NOTIFY, CFG_ISR, CFG_DEVICE, CFG_PCI = range(1, 6)
_CAPABILITY = struct.Struct("<BBB3xII")  # behind id and next: length, type, BAR, offset in it, length of what is there
_CAPABILITY_SIZE = 2 + _CAPABILITY.size
# Offsets in the capability by which BARs are reached through the configuration space (§4.1.4.9)
_WINDOW_BAR = 4
_WINDOW_OFFSET = 8
_WINDOW_LENGTH = 12
_WINDOW_DATA = 16
_WINDOW_DATA_SIZE = 4

# --- interrupts -----------------------------------------------------------------------------------------------------------
NO_VECTOR = 0xFFFF
ISR_QUEUE = 1 << 0
ISR_CONFIG = 1 << 1


class RegistersState(DeviceState):
    """What the transports do not share: the MSI-X vector of each event, and the ISR status."""

    __slots__ = ("config_vector", "isr", "queue_vectors")

    def __init__(self, queues: int) -> None:
        self.config_vector = NO_VECTOR
        self.isr = 0
        self.queue_vectors = [NO_VECTOR] * queues


class PciState(DeviceState):
    """A whole function: its configuration space, MSI-X, the registers, and what the driver told the transport."""

    __slots__ = ("config_space", "msix", "registers", "transport")
    PARTS: dict[str, type[DeviceState]] = {  # noqa: RUF012
        "config_space": ConfigSpaceState,
        "msix": MsixState,
        "registers": RegistersState,
        "transport": TransportState,
    }

    def __init__(
        self, config_space: ConfigSpaceState, msix: MsixState, registers: RegistersState, transport: TransportState
    ) -> None:
        self.config_space = config_space
        self.msix = msix
        self.registers = registers
        self.transport = transport


class PciRegisters:
    """What answers behind BAR 0, and the device's way to interrupt."""

    def __init__(
        self,
        device: VirtioDevice,
        memory: Dma,
        msix: Msix,
        *,
        warn: Callable[[str], None],
        post: Callable[[Callable[[], None]], None],
        lock: _thread.LockType,
        rings: RingOwner | None,
        eventfd: Callable[[int], int] | None,
        state: RegistersState | None = None,
        transport_state: TransportState | None = None,
    ) -> None:
        self.state = state or RegistersState(len(device.queue_max_sizes))
        self._msix = msix
        self._eventfd = eventfd
        self.virtio = VirtioTransport(device, memory, self, warn=warn, post=post, lock=lock, rings=rings, state=transport_state)
        self._fields = self._common_fields()

    # The device's side (devices.virtio.device.Interrupt)

    def interrupt_queue(self, index: int) -> None:
        self.state.isr |= ISR_QUEUE
        self._send(self.state.queue_vectors[index])

    def interrupt_config(self) -> None:
        self.state.isr |= ISR_CONFIG
        self._send(self.state.config_vector)

    def queue_eventfd(self, index: int) -> int | None:
        if self._eventfd is None:
            return None
        try:
            return self._eventfd(self.state.queue_vectors[index])
        except OSError:
            return None

    def _send(self, vector: int) -> None:
        if vector != NO_VECTOR:
            self._msix.interrupt(vector)

    # The guest's side

    def read(self, offset: int, size: int) -> bytes:
        if offset < ISR:
            return self._read_common(offset, size)
        if offset < DEVICE:
            return self._read_isr(size) if offset == ISR else bytes(size)
        if offset < NOTIFY:
            return self.virtio.read_config(offset - DEVICE, size)
        if offset < MSIX_TABLE:
            return bytes(size)
        if offset < MSIX_PENDING:
            return self._msix.read_table(offset - MSIX_TABLE, size)
        return self._msix.read_pending(offset - MSIX_PENDING, size)

    def write(self, offset: int, data: bytes) -> None:
        if offset < ISR:
            self._write_common(offset, data)
        elif DEVICE <= offset < NOTIFY:
            self.virtio.write_config(offset - DEVICE, data)
        elif NOTIFY <= offset < MSIX_TABLE and offset % NOTIFY_MULTIPLIER == 0:
            # The address says which virtqueue; what is written says it once more.
            self.virtio.notify((offset - NOTIFY) // NOTIFY_MULTIPLIER)
        elif MSIX_TABLE <= offset < MSIX_PENDING:
            self._msix.write_table(offset - MSIX_TABLE, data)

    def _read_isr(self, size: int) -> bytes:
        """Reading takes the bits away (§4.1.4.5.1)."""
        isr, self.state.isr = self.state.isr, 0
        return isr.to_bytes(size, "little")

    # The common configuration

    def _read_common(self, offset: int, size: int) -> bytes:
        """Any width: the fields lie side by side, and what is not asked for is cut off."""
        touched = [field for field in self._fields if field[0] < offset + size and offset < field[0] + field[1]]
        if not touched:
            return bytes(size)
        data = b"".join(read().to_bytes(width, "little") for _, width, read, _ in touched)
        skipped = offset - touched[0][0]
        return data[skipped : skipped + size].ljust(size, b"\0")

    def _write_common(self, offset: int, data: bytes) -> None:
        """Every field that is written whole; a driver has to write each in its own width (§4.1.3.1)."""
        for start, width, _, write in self._fields:
            position = start - offset
            if write is not None and position >= 0 and position + width <= len(data):
                write(int.from_bytes(data[position : position + width], "little"))

    def _common_fields(self) -> tuple[Field, ...]:
        """(offset, bytes, read, write) of struct virtio_pci_common_cfg, ascending and without a gap. No write: read-only."""
        transport = self.virtio
        return (
            (0x00, 4, lambda: transport.state.device_features_select, transport.select_device_features),
            (0x04, 4, transport.device_features, None),
            (0x08, 4, lambda: transport.state.driver_features_select, transport.select_driver_features),
            (0x0C, 4, transport.driver_features, transport.write_driver_features),
            (0x10, 2, lambda: self.state.config_vector, self._set_config_vector),
            (0x12, 2, lambda: len(self.state.queue_vectors), None),
            (0x14, 1, lambda: transport.status, self._write_status),
            (0x15, 1, transport.config_generation, None),
            (0x16, 2, lambda: transport.state.queue_select, transport.select_queue),
            (0x18, 2, transport.queue_size, transport.set_queue_size),
            (0x1A, 2, self._queue_vector, self._set_queue_vector),
            (0x1C, 2, lambda: int(transport.queue_ready()), self._enable_queue),
            (0x1E, 2, self._notify_offset, None),
            *self._ring_fields(0x20, DESCRIPTORS),
            *self._ring_fields(0x28, AVAILABLE),
            *self._ring_fields(0x30, USED),
        )

    def _ring_fields(self, offset: int, ring: int) -> tuple[Field, ...]:
        """64 bits, which a driver writes as two times 32 (§4.1.3.1)."""
        transport = self.virtio
        return (
            (
                offset,
                4,
                lambda: transport.queue_address(ring) & 0xFFFFFFFF,
                lambda value: transport.set_queue_address(ring, 0, value),
            ),
            (
                offset + 4,
                4,
                lambda: transport.queue_address(ring) >> 32,
                lambda value: transport.set_queue_address(ring, 32, value),
            ),
        )

    def _write_status(self, value: int) -> None:
        self.virtio.write_status(value)
        if value == 0:
            self.state = RegistersState(len(self.state.queue_vectors))
            self._msix.clear_pending()

    def _valid(self, vector: int) -> int:
        """A vector that is not in the table reads back as none, by which the driver sees that it failed (§4.1.5.1.2.1)."""
        return vector if vector < self._msix.vectors else NO_VECTOR

    def _set_config_vector(self, vector: int) -> None:
        self.state.config_vector = self._valid(vector)

    def _queue_vector(self) -> int:
        index = self.virtio.state.queue_select
        return self.state.queue_vectors[index] if index < len(self.state.queue_vectors) else NO_VECTOR

    def _set_queue_vector(self, vector: int) -> None:
        index = self.virtio.state.queue_select
        if index < len(self.state.queue_vectors):
            self.state.queue_vectors[index] = self._valid(vector)
            self.virtio.interrupts_changed()

    def _enable_queue(self, value: int) -> None:
        # Only a reset disables a virtqueue (§4.1.4.3.2).
        if value == 1:
            self.virtio.set_queue_ready(True)

    def _notify_offset(self) -> int:
        """In units of the multiplier: the virtqueue's own number."""
        index = self.virtio.state.queue_select
        return index if index < len(self.state.queue_vectors) else 0


class PciTransport(PciFunction):
    """The function of one virtio device. `signal` and `on_route_changed` as in `Msix`; vectors: one a virtqueue, and one more.

    `warn`, `post` and `rings` as in `VirtioTransport`. `eventfd(vector)` is one that is the vector's interrupt (NO_VECTOR: one
    that nobody hears), and `take_waiting` as in `Msix`; None where there is none.

    The host's side calls `virtio`. `bar` is BAR 0, for whoever wants to catch the notifications of virtqueue n at its base +
    NOTIFY + 4 * n.
    """

    def __init__(
        self,
        device: VirtioDevice,
        memory: Dma,
        *,
        signal: Callable[[int], None],
        on_route_changed: Callable[[int, int, int, bool], None],
        warn: Callable[[str], None],
        post: Callable[[Callable[[], None]], None],
        lock: _thread.LockType | None = None,
        rings: RingOwner | None = None,
        eventfd: Callable[[int], int] | None = None,
        take_waiting: Callable[[int], bool] | None = None,
        is_64bit: bool = True,
        state: PciState | None = None,
    ) -> None:
        queues = len(device.queue_max_sizes)
        if queues > MAX_QUEUES:
            raise ValueError(f"a virtio device of {queues} virtqueues: {MAX_QUEUES} have room in BAR 0")
        super().__init__(_identity(device.device_type), config_state=state.config_space if state else None, lock=lock)
        self.msix = Msix(
            self.config,
            queues + 1,
            table=(BAR_INDEX, MSIX_TABLE),
            pending_bits=(BAR_INDEX, MSIX_PENDING),
            signal=signal,
            on_route_changed=on_route_changed,
            bus_master=self.is_bus_master,
            take_waiting=take_waiting,
            state=state.msix if state else None,
        )
        self._window = self._add_capabilities(queues)
        self.registers = PciRegisters(
            device,
            memory,
            self.msix,
            warn=warn,
            post=post,
            lock=self.lock,
            rings=rings,
            eventfd=eventfd,
            state=state.registers if state else None,
            transport_state=state.transport if state else None,
        )
        self.virtio = self.registers.virtio
        self.bar = self.add_bar(BAR_INDEX, BAR_SIZE, self.registers, is_64bit=is_64bit)

    @property
    def state(self) -> PciState:
        self.msix.gather_waiting()
        return PciState(self.config.state, self.msix.state, self.registers.state, self.virtio.state)

    def start(self) -> None:
        """Tell the routes of the interrupts, send those that wait, and serve the driver; after `stop` again."""
        with self.lock:
            self.msix.config_written()
        self.bus_master_changed()
        self.virtio.start()

    def close(self) -> None:
        """Let go of guest memory."""
        self.virtio.close()

    def bus_master_changed(self) -> None:
        with self.lock:
            self.msix.set_bus_master(self.is_bus_master)
            self.virtio.set_dma(self.is_bus_master)

    def _add_capabilities(self, queues: int) -> int:
        """The five of §4.1.4; the offset of the last one, the window."""
        add = self._add_capability
        add(CFG_COMMON, COMMON, COMMON_SIZE)
        add(CFG_NOTIFY, NOTIFY, NOTIFY_MULTIPLIER * queues, struct.pack("<I", NOTIFY_MULTIPLIER))
        add(CFG_ISR, ISR, ISR_SIZE)
        add(CFG_DEVICE, DEVICE, DEVICE_SIZE)
        window = add(CFG_PCI, 0, 0, bytes(_WINDOW_DATA_SIZE))
        self.config.allow(window + _WINDOW_BAR, 0xFF, 1)
        self.config.allow(window + _WINDOW_OFFSET, (1 << 96) - 1, 12)  # offset, length and data
        return window

    def _add_capability(self, kind: int, offset: int, length: int, more: bytes = b"") -> int:
        head = _CAPABILITY.pack(_CAPABILITY_SIZE + len(more), kind, BAR_INDEX, offset, length)
        return self.config.add_capability(CAPABILITY_VENDOR, head + more)

    # The guest's side: the configuration space, in which the window's data are those of a BAR

    def read_config(self, offset: int, size: int) -> bytes:
        if self._touches_window(offset, size):
            target = self._window_target()
            if target is not None:
                start, length = target
                with self.lock:
                    data = self.registers.read(start, length)
                self.config.store(self._window + _WINDOW_DATA, int.from_bytes(data, "little"), length)
        return super().read_config(offset, size)

    def write_config(self, offset: int, data: bytes) -> None:
        super().write_config(offset, data)
        with self.lock:
            self.msix.config_written()
        if self._touches_window(offset, len(data)):
            target = self._window_target()
            if target is not None:
                start, length = target
                with self.lock:
                    self.registers.write(start, self.config.read(self._window + _WINDOW_DATA, length))

    def _touches_window(self, offset: int, size: int) -> bool:
        data = self._window + _WINDOW_DATA
        return offset < data + _WINDOW_DATA_SIZE and data < offset + size

    def _window_target(self) -> tuple[int, int] | None:
        """(offset in BAR 0, bytes) that the driver has set up, or None for what cannot be (§4.1.4.9.1)."""
        bar = self.config.value(self._window + _WINDOW_BAR, 1)
        start = self.config.value(self._window + _WINDOW_OFFSET, 4)
        length = self.config.value(self._window + _WINDOW_LENGTH, 4)
        possible = bar == BAR_INDEX and length in (1, 2, 4) and start % length == 0 and start + length <= BAR_SIZE
        return (start, length) if possible else None


def _identity(device_type: int) -> Identity:
    device = DEVICE_ID_BASE + device_type
    class_code = _CLASS_CODES.get(device_type, _CLASS_UNCLASSIFIED)
    return Identity(VENDOR_ID, device, class_code, revision=REVISION, subsystem_vendor=VENDOR_ID, subsystem=device)
