"""What both transports share (virtio 1.2 §2.1, §2.2, §3.1): device status, features, virtqueues' places, configuration.

The bus side, MMIO registers or a PCI device's BAR, gives each of its registers to one method here. All 32-bit values that a
driver writes are accepted; what makes no sense changes nothing, or ends with DEVICE_NEEDS_RESET when the driver goes on to
use it.
"""

from __future__ import annotations

import _thread
import time

from vmservice.devices.limited_warnings import LimitedWarnings
from vmservice.devices.virtio.ids import VERSION_1
from vmservice.devices.virtio.queue import SLICE_SEC, QueueState, check_rings
from vmservice.devices.virtio.rings import TRANSPORT_FEATURES
from vmservice.devices.virtio.served import ServedQueues
from vmservice.devices.virtio.transport_state import TransportState
from vmservice.errors import GuestError, HostError, seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.devices.virtio.device import BusInterrupt, VirtioDevice
    from vmservice.devices.virtio.queue import Dma
    from vmservice.devices.virtio.rings import RingOwner

# Device status (virtio 1.2 §2.1)
ACKNOWLEDGE = 0x01
DRIVER = 0x02
DRIVER_OK = 0x04
FEATURES_OK = 0x08
NEEDS_RESET = 0x40
FAILED = 0x80

# What the requests in flight at a host in trouble are waited for, when nothing else can be done.
STOP_TIMEOUT_SEC = 10.0

# How much of the configuration space is watched for changes; no device has more.
WATCHED_CONFIG_BYTES = 256

_LOW = 0xFFFF_FFFF


class VirtioTransport:
    """One device, and what its driver has told it. `interrupt` is the bus' way to the driver.

    A GuestError from the device or a virtqueue sets DEVICE_NEEDS_RESET, tells the driver, says one sentence to `warn` (in
    limited number), and resets the device, which so does nothing until the driver has reset it too.

    `lock` is held during each access of the guest, and by whoever calls the device from the host's side.

    One notification is worth one slice of a virtqueue's work (`Queue.take`). Where more is left, `post(callback)` is called,
    and has the callback called soon, by a thread that holds no lock: it does one slice more. There is one such callback at a
    time, and while a virtqueue waits for its turn its notifications do nothing: no guest gets more by asking more often.

    `rings` serves the virtqueues, the device itself by default. An owner with threads has slices of its own, and may have
    requests in flight when the driver resets the device. They are waited for: the status reads 0 when the last is done
    (virtio 1.2 §4.1.4.3.2), and a driver that does not read it again (`reset_wait_sec`) is kept in its write until then.

    Nothing happens before `start`. Before it, after `stop`, and while `set_dma` has said so, no virtqueue is touched; nothing
    of what the driver asks meanwhile is lost.
    """

    def __init__(
        self,
        device: VirtioDevice,
        memory: Dma,
        interrupt: BusInterrupt,
        *,
        warn: Callable[[str], None],
        post: Callable[[Callable[[], None]], None],
        lock: _thread.LockType | None = None,
        rings: RingOwner | None = None,
        reset_wait_sec: float = SLICE_SEC,
        state: TransportState | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lock = lock or _thread.allocate_lock()
        self.device = device
        self.state = state or self._reset_state()
        self._memory = memory
        self._interrupt = interrupt
        self._warn = LimitedWarnings(warn, clock)
        self._served = ServedQueues(device, rings, interrupt, self.lock, post, self.needs_reset)
        self._reset_wait_sec = reset_wait_sec
        self._is_resetting = False  # the driver has asked for it, and requests are in flight
        self._started = False
        self._has_dma = True

    def _reset_state(self) -> TransportState:
        return TransportState(self.device.queue_max_sizes, self.device.read_config(0, WATCHED_CONFIG_BYTES))

    # The machine's side; each takes the lock itself

    def start(self) -> None:
        """Serve the driver from now on, or again: first what it has made available by now."""
        with self.lock:
            self._started = True
            self._go_on()

    def stop(self) -> bool:
        """Leave the virtqueues as they are until `start`. False, with all as before, when requests in flight take too long."""
        with self.lock:
            self._started = False
            if self._hold(STOP_TIMEOUT_SEC):
                return True
            self._started = True
            if not self._is_resetting:
                self._served.go_on()
            return False

    def close(self) -> None:
        """Let go of guest memory, which else cannot be closed. HostError when requests in flight take too long."""
        with self.lock:
            self._started = False
            if not self._deactivate(STOP_TIMEOUT_SEC):
                raise HostError(f"a request to the host takes more than {seconds(STOP_TIMEOUT_SEC)}")

    # Whether the virtqueues may be touched

    def set_dma(self, allowed: bool) -> None:
        """Whether the bus lets the device reach guest memory."""
        self._has_dma = allowed
        if allowed:
            self._go_on()
        else:
            self._hold(STOP_TIMEOUT_SEC)

    def _hold(self, timeout_sec: float) -> bool:
        stopped = self._served.stop(timeout_sec)
        if stopped and self._is_resetting:
            self._finish_reset()
        return stopped

    def _go_on(self) -> None:
        """Do what the driver had asked for while nothing could be done."""
        if self._started and self.state.status & (DRIVER_OK | NEEDS_RESET | FAILED) == DRIVER_OK:
            if not self._served.queues:
                self._activate()
            elif self._has_dma and not self._served.is_served:
                self._serve()

    def _serve(self) -> None:
        try:
            self._served.start(self.state.driver_features)
        except HostError as error:
            self.needs_reset(error)

    def interrupts_changed(self) -> None:
        """The driver has given a virtqueue another interrupt."""
        self._served.interrupts_changed(STOP_TIMEOUT_SEC, self.state.driver_features)

    # Features: windows of 32 bits, of which there are two

    @property
    def offered_features(self) -> int:
        return self.device.features | TRANSPORT_FEATURES & self._served.transport_features

    def select_device_features(self, value: int) -> None:
        self.state.device_features_select = value

    def device_features(self) -> int:
        return _window(self.offered_features, self.state.device_features_select)

    def select_driver_features(self, value: int) -> None:
        self.state.driver_features_select = value

    def driver_features(self) -> int:
        return _window(self.state.driver_features, self.state.driver_features_select)

    def write_driver_features(self, value: int) -> None:
        """Fixed from FEATURES_OK on (virtio 1.2 §3.1.1)."""
        state = self.state
        if state.driver_features_select < 2 and not state.status & FEATURES_OK:
            state.driver_features = _replace(state.driver_features, 32 * state.driver_features_select, value)

    # Virtqueues: of the selected one; there may be none, which reads as zeros

    def select_queue(self, index: int) -> None:
        self.state.queue_select = index

    def selected_queue(self) -> QueueState | None:
        state = self.state
        return state.queues[state.queue_select] if state.queue_select < len(state.queues) else None

    def queue_max_size(self) -> int:
        queue = self.selected_queue()
        return queue.max_size if queue is not None else 0

    def queue_size(self) -> int:
        queue = self.selected_queue()
        return queue.size if queue is not None else 0

    def set_queue_size(self, value: int) -> None:
        """Kept as it is; a size that cannot be is met when the virtqueue is enabled."""
        queue = self._queue_to_set_up()
        if queue is not None:
            queue.size = min(value, 0xFFFF)

    def queue_address(self, ring: int) -> int:
        """`ring` is DESCRIPTORS, AVAILABLE or USED of queue.py."""
        queue = self.selected_queue()
        return queue.addresses[ring] if queue is not None else 0

    def set_queue_address(self, ring: int, shift: int, value: int) -> None:
        """Replace the low (`shift` 0) or high (32) half of a ring's address."""
        queue = self._queue_to_set_up()
        if queue is not None:
            queue.addresses[ring] = _replace(queue.addresses[ring], shift, value)

    def queue_ready(self) -> bool:
        queue = self.selected_queue()
        return queue is not None and queue.ready

    def set_queue_ready(self, ready: bool) -> None:
        """Enable the selected virtqueue, if the device is not active yet, or disable it, which holds until the reset."""
        queue = self.selected_queue()
        if queue is None or queue.ready == ready:
            return
        if not ready:
            queue.ready = False
        elif self._queue_to_set_up() is not None:
            try:
                check_rings(queue, self._memory)
            except GuestError as error:
                self.needs_reset(error)
            else:
                queue.ready = True

    def _queue_to_set_up(self) -> QueueState | None:
        """The selected virtqueue if it may still be changed: not when it is enabled, not when the device is active."""
        queue = self.selected_queue()
        return queue if queue is not None and not queue.ready and not self.state.status & (DRIVER_OK | NEEDS_RESET) else None

    # Device status

    @property
    def status(self) -> int:
        if self._is_resetting:
            self._hold(0.0)
        return self.state.status

    def write_status(self, value: int) -> None:
        """0 resets. Bits are only ever added, each when those before it are there (virtio 1.2 §2.1, §3.1.1)."""
        if not value & 0xFF:
            self.reset()
            return
        if self._is_resetting:
            return
        state = self.state
        added = value & ~state.status
        if added & FAILED:
            state.status |= FAILED
            self._deactivate(0.0)
        if state.status & (NEEDS_RESET | FAILED):
            return
        state.status |= added & (ACKNOWLEDGE | DRIVER)
        if added & FEATURES_OK and state.status & DRIVER and self._accepts_features():
            state.status |= FEATURES_OK
        if added & DRIVER_OK and state.status & FEATURES_OK:
            state.status |= DRIVER_OK
            self._activate()

    def _accepts_features(self) -> bool:
        chosen = self.state.driver_features
        return not chosen & ~self.offered_features and bool(chosen & VERSION_1)

    def reset(self) -> None:
        """By the driver: everything it said is forgotten. The bus side takes back its interrupts."""
        self._is_resetting = True
        self._hold(self._reset_wait_sec)

    def _finish_reset(self) -> None:
        self._is_resetting = False
        self._deactivate(0.0)
        generation, config = self.state.generation, self.state.config
        self.state = self._reset_state()
        self.state.generation, self.state.config = generation, config

    def _activate(self) -> None:
        features = self.state.driver_features
        try:
            self._served.open(self._memory, self.state.queues, features)
            self.device.activate(self._served.queues, self, features)
        except GuestError as error:
            self.needs_reset(error)
            return
        if self._started and self._has_dma:
            self._serve()

    def _deactivate(self, timeout_sec: float) -> bool:
        """Whether it was done in time; if not, nothing new is served, and the reset does the rest."""
        if not self._served.stop(timeout_sec):
            return False
        self.device.reset()
        self._served.close()
        return True

    def notify(self, index: int) -> None:
        """The driver says that virtqueue `index` has buffers."""
        self._served.notify(index)

    # The device's way to its driver (DriverPort)

    def interrupt_queue(self, index: int) -> None:
        self._served.interrupt_queue(index)

    def interrupt_config(self) -> None:
        if self.state.status & DRIVER_OK:
            self._interrupt.interrupt_config()

    def needs_reset(self, error: GuestError | HostError) -> None:
        name = type(self.device).__name__
        if isinstance(error, HostError):
            self._break(f"virtio device {name} cannot be served until its next reset: {error}")
        else:
            self._break(f"the guest's driver broke the rules of virtio device {name}, which waits for its reset: {error}")

    def _break(self, reason: str) -> None:
        state = self.state
        if state.status & NEEDS_RESET:
            return
        state.status |= NEEDS_RESET
        self._deactivate(0.0)
        self.interrupt_config()
        self._warn(reason)

    # Configuration

    def config_generation(self) -> int:
        """Another number, of 8 bits, whenever the configuration has changed since the last call (virtio 1.2 §2.5)."""
        config = self.device.read_config(0, WATCHED_CONFIG_BYTES)
        if config != self.state.config:
            self.state.config[:] = config
            self.state.generation = (self.state.generation + 1) & 0xFF
        return self.state.generation

    def read_config(self, offset: int, size: int) -> bytes:
        return self.device.read_config(offset, size)

    def write_config(self, offset: int, data: bytes) -> None:
        self.device.write_config(offset, data)


def _window(features: int, select: int) -> int:
    return features >> 32 * select & _LOW if select < 2 else 0


def _replace(value: int, shift: int, half: int) -> int:
    """`value` of 64 bits with the 32 bits from `shift` on replaced."""
    return value & ~(_LOW << shift) | (half & _LOW) << shift
