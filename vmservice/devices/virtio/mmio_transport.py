"""A virtio device as a window of memory-mapped registers (virtio 1.2 §4.2), the present version of them only.

Such a device is found by its entry in the DSDT: `virtio_mmio` of acpi/devices_aml.py.
"""

from __future__ import annotations

import _thread
import struct

from vmservice.devices.state import DeviceState
from vmservice.devices.virtio.queue import AVAILABLE, DESCRIPTORS, USED
from vmservice.devices.virtio.transport import STOP_TIMEOUT_SEC, VirtioTransport
from vmservice.devices.virtio.transport_state import TransportState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.devices.irq import IrqLine
    from vmservice.devices.virtio.device import VirtioDevice
    from vmservice.devices.virtio.queue import Dma
    from vmservice.devices.virtio.rings import RingOwner

# The size of the window: what is not configuration space reads as zeros.
WINDOW_BYTES = 0x1000

# Registers (virtio 1.2 §4.2.2), each of 32 bits; the names are those of the specification
MAGIC_VALUE = 0x000
VERSION = 0x004
DEVICE_ID = 0x008
VENDOR_ID = 0x00C
DEVICE_FEATURES = 0x010
DEVICE_FEATURES_SEL = 0x014
DRIVER_FEATURES = 0x020
DRIVER_FEATURES_SEL = 0x024
QUEUE_SEL = 0x030
QUEUE_NUM_MAX = 0x034
QUEUE_NUM = 0x038
QUEUE_READY = 0x044
QUEUE_NOTIFY = 0x050
INTERRUPT_STATUS = 0x060
INTERRUPT_ACK = 0x064
STATUS = 0x070
QUEUE_DESC_LOW = 0x080
QUEUE_DESC_HIGH = 0x084
QUEUE_DRIVER_LOW = 0x090
QUEUE_DRIVER_HIGH = 0x094
QUEUE_DEVICE_LOW = 0x0A0
QUEUE_DEVICE_HIGH = 0x0A4
SHM_LEN_LOW = 0x0B0
SHM_BASE_HIGH = 0x0BC
CONFIG_GENERATION = 0x0FC
CONFIG = 0x100

MAGIC = int.from_bytes(b"virt", "little")
CURRENT_VERSION = 2
VENDOR = int.from_bytes(b"VMSV", "little")

# Interrupt status
USED_BUFFER = 1
CONFIG_CHANGE = 2

# Register → (ring, which half of its address)
_QUEUE_ADDRESSES = {
    QUEUE_DESC_LOW: (DESCRIPTORS, 0),
    QUEUE_DESC_HIGH: (DESCRIPTORS, 32),
    QUEUE_DRIVER_LOW: (AVAILABLE, 0),
    QUEUE_DRIVER_HIGH: (AVAILABLE, 32),
    QUEUE_DEVICE_LOW: (USED, 0),
    QUEUE_DEVICE_HIGH: (USED, 32),
}

_REGISTER = struct.Struct("<I")


class MmioState(DeviceState):
    """`interrupt_status` of the window, and what the transports share."""

    __slots__ = ("interrupt_status", "transport")
    PARTS: dict[str, type[DeviceState]] = {"transport": TransportState}  # noqa: RUF012

    def __init__(self, queue_max_sizes: tuple[int, ...]) -> None:
        self.interrupt_status = 0
        self.transport = TransportState(queue_max_sizes)


class _LineInterrupt:
    """`line` is high, level-triggered, from an interrupt until the driver has acknowledged it: none gets lost."""

    def __init__(self, line: IrqLine, status: int) -> None:
        self._line = line
        self.status = status
        line.level = bool(status)  # the IOAPIC knows it already

    def interrupt_queue(self, index: int) -> None:
        self._raise(USED_BUFFER)

    def interrupt_config(self) -> None:
        self._raise(CONFIG_CHANGE)

    def queue_eventfd(self, index: int) -> int | None:
        return None  # the status register says why the line is high

    def acknowledge(self, bits: int) -> None:
        self.status &= ~bits
        self._line.set(bool(self.status))

    def _raise(self, bit: int) -> None:
        self.status |= bit
        self._line.set(True)


class MmioTransport:
    """`device` behind a window of WINDOW_BYTES; `line` leads to a level-triggered pin. The rest is VirtioTransport's."""

    def __init__(
        self,
        device: VirtioDevice,
        memory: Dma,
        line: IrqLine,
        *,
        warn: Callable[[str], None],
        post: Callable[[Callable[[], None]], None],
        lock: _thread.LockType | None = None,
        rings: RingOwner | None = None,
        state: MmioState | None = None,
    ) -> None:
        self._interrupt = _LineInterrupt(line, state.interrupt_status if state is not None else 0)
        self.virtio = VirtioTransport(
            device,
            memory,
            self._interrupt,
            warn=warn,
            post=post,
            lock=lock,
            rings=rings,
            reset_wait_sec=STOP_TIMEOUT_SEC,  # a driver may go on as soon as it has written 0 (virtio 1.2 §4.2.2)
            state=state.transport if state is not None else None,
        )

    @property
    def state(self) -> MmioState:
        state = MmioState(())
        state.interrupt_status, state.transport = self._interrupt.status, self.virtio.state
        return state

    # The guest's side. Registers are read and written as aligned 32-bit words (§4.2.2.2); the driver that does otherwise
    # reads zeros and writes nothing. The configuration space takes every width.

    def read(self, offset: int, size: int) -> bytes:
        if offset >= CONFIG:
            return self.virtio.read_config(offset - CONFIG, size)
        if size != 4 or offset & 3:
            return bytes(size)
        return _REGISTER.pack(self._read_register(offset))

    def write(self, offset: int, data: bytes) -> None:
        if offset >= CONFIG:
            self.virtio.write_config(offset - CONFIG, data)
        elif len(data) == 4 and not offset & 3:
            self._write_register(offset, _REGISTER.unpack(data)[0])

    def _read_register(self, register: int) -> int:
        transport = self.virtio
        if register == INTERRUPT_STATUS:
            return self._interrupt.status
        if register == STATUS:
            return transport.status
        if register == MAGIC_VALUE:
            return MAGIC
        if register == VERSION:
            return CURRENT_VERSION
        if register == DEVICE_ID:
            return transport.device.device_type
        if register == VENDOR_ID:
            return VENDOR
        if register == DEVICE_FEATURES:
            return transport.device_features()
        if register == QUEUE_NUM_MAX:
            return transport.queue_max_size()
        if register == QUEUE_READY:
            return transport.queue_ready()
        if register == CONFIG_GENERATION:
            return transport.config_generation()
        # No shared memory region: a length, and a place, of -1 (§4.2.2).
        return 0xFFFF_FFFF if SHM_LEN_LOW <= register <= SHM_BASE_HIGH else 0

    def _write_register(self, register: int, value: int) -> None:
        transport = self.virtio
        if register == QUEUE_NOTIFY:
            transport.notify(value)
        elif register == INTERRUPT_ACK:
            self._interrupt.acknowledge(value)
        elif register == STATUS:
            transport.write_status(value)
            if not transport.status:
                self._interrupt.acknowledge(USED_BUFFER | CONFIG_CHANGE)
        elif register == DEVICE_FEATURES_SEL:
            transport.select_device_features(value)
        elif register == DRIVER_FEATURES_SEL:
            transport.select_driver_features(value)
        elif register == DRIVER_FEATURES:
            transport.write_driver_features(value)
        elif register == QUEUE_SEL:
            transport.select_queue(value)
        elif register == QUEUE_NUM:
            transport.set_queue_size(value)
        elif register == QUEUE_READY:
            transport.set_queue_ready(bool(value & 1))
        elif register in _QUEUE_ADDRESSES:
            ring, shift = _QUEUE_ADDRESSES[register]
            transport.set_queue_address(ring, shift, value)

    def start(self) -> None:
        self.virtio.start()

    def close(self) -> None:
        """Let go of guest memory."""
        self.virtio.close()
