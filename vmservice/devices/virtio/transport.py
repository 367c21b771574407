"""What both transports share (virtio 1.2 §2.1, §2.2, §3.1): device status, features, virtqueues' places, configuration.

The bus side, MMIO registers or a PCI device's BAR, gives each of its registers to one method here. All 32-bit values that a
driver writes are accepted; what makes no sense changes nothing, or ends with DEVICE_NEEDS_RESET when the driver goes on to
use it.
"""

from __future__ import annotations

import _thread
import time

from vmservice.devices.virtio.ids import EVENT_IDX, INDIRECT_DESC, VERSION_1
from vmservice.devices.virtio.queue import SLICE_SEC, Queue, QueueState, check_rings
from vmservice.devices.virtio.rings import Inline, Ring
from vmservice.devices.virtio.transport_state import TransportState
from vmservice.errors import GuestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.devices.virtio.device import Interrupt, VirtioDevice
    from vmservice.devices.virtio.queue import Dma
    from vmservice.devices.virtio.rings import RingOwner

# Device status (virtio 1.2 §2.1)
ACKNOWLEDGE = 0x01
DRIVER = 0x02
DRIVER_OK = 0x04
FEATURES_OK = 0x08
NEEDS_RESET = 0x40
FAILED = 0x80

TRANSPORT_FEATURES = VERSION_1 | INDIRECT_DESC | EVENT_IDX

# A guest that breaks the rules over and over fills no journal.
WARNING_INTERVAL_SEC = 60.0

# How much of the configuration space is watched for changes; no device has more.
WATCHED_CONFIG_BYTES = 256

_LOW = 0xFFFF_FFFF


class VirtioTransport:
    """One device, and what its driver has told it. `interrupt` is the bus' way to the driver.

    A GuestError from the device or a virtqueue sets DEVICE_NEEDS_RESET, tells the driver, says one sentence to `warn` (at
    most one each WARNING_INTERVAL_SEC), and resets the device, which so does nothing until the driver has reset it too.

    `lock` is held during each access of the guest, and by whoever calls the device from the host's side.

    One notification is worth one slice of a virtqueue's work (`Queue.take`). Where more is left, `post(callback)` is called,
    and has the callback called soon, by a thread that holds no lock: it does one slice more. There is one such callback at a
    time, and while a virtqueue waits for its turn its notifications do nothing: no guest gets more by asking more often.

    `rings` serves the virtqueues, the device itself by default. An owner with threads has slices of its own.

    Nothing happens before `start`. Before it, after `stop`, and while `set_dma` has said so, no virtqueue is touched; nothing
    of what the driver asks meanwhile is lost.
    """

    def __init__(
        self,
        device: VirtioDevice,
        memory: Dma,
        interrupt: Interrupt,
        *,
        warn: Callable[[str], None],
        post: Callable[[Callable[[], None]], None],
        lock: _thread.LockType | None = None,
        rings: RingOwner | None = None,
        state: TransportState | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lock = lock or _thread.allocate_lock()
        self.device = device
        self.state = state or self._reset_state()
        self._memory = memory
        self._interrupt = interrupt
        self._warn = warn
        self._post = post
        self._posted = False
        self._is_inline = rings is None
        self._rings: RingOwner = rings or Inline(device)
        self._is_served = False
        self._signals: list[int] = []  # virtqueues of which the driver is still to be told
        self._clock = clock
        self._warned_at: float | None = None
        self._warnings_held_back = 0
        self._queues: list[Queue] = []  # empty while the device is not active
        self._started = False
        self._has_dma = True
        self._next_turn = 0  # the virtqueue that is looked at first

    def _reset_state(self) -> TransportState:
        return TransportState(self.device.queue_max_sizes, self.device.read_config(0, WATCHED_CONFIG_BYTES))

    # The machine's side; each takes the lock itself

    def start(self) -> None:
        """Serve the driver from now on, or again: first what it has made available by now."""
        with self.lock:
            self._started = True
            self._go_on()

    def stop(self) -> None:
        """Leave the virtqueues as they are until `start`."""
        with self.lock:
            self._started = False
            self._hold()

    def close(self) -> None:
        """Let go of guest memory, which else cannot be closed."""
        with self.lock:
            self._started = False
            self._deactivate()

    # Whether the virtqueues may be touched

    def set_dma(self, allowed: bool) -> None:
        """Whether the bus lets the device reach guest memory."""
        self._has_dma = allowed
        if allowed:
            self._go_on()
        else:
            self._hold()

    @property
    def _held(self) -> bool:
        return not (self._started and self._has_dma)

    def _hold(self) -> None:
        self._stop_rings()
        for queue in self._queues:
            queue.held = True

    def _start_rings(self) -> None:
        """What was made available before the device was active, or while it was held, came without a notification."""
        queues = self._queues

        def lost(error: GuestError) -> None:
            self._post(lambda: self._lost(queues, error))

        rings = [self._ring(index, queue) for index, queue in enumerate(queues) if queue.state.ready]
        for queue in queues:
            queue.held = False
        self._is_served = True
        self._rings.start(rings, self.state.driver_features, lost)
        if self._is_inline:
            self._take_turns()

    def _ring(self, index: int, queue: Queue) -> Ring:
        queues = self._queues
        return Ring(index, queue, lambda: self._signal(index, queues))

    def _stop_rings(self) -> None:
        if self._is_served:
            self._rings.stop()
            self._is_served = False
            self._tell_signals()

    def _lost(self, queues: list[Queue], error: GuestError) -> None:
        with self.lock:
            if queues is self._queues:  # else the driver has reset the device in the meantime
                self.needs_reset(error)

    def _signal(self, index: int, queues: list[Queue]) -> None:
        """From a ring owner's thread. Whoever has the lock may be waiting for that thread to stop, so it is not waited for."""
        if self.lock.acquire(timeout=SLICE_SEC):
            try:
                if queues is self._queues:
                    self.interrupt_queue(index)
            finally:
                self.lock.release()
        else:
            self._signals.append(index)
            self._post(self._tell_later)

    def _tell_later(self) -> None:
        with self.lock:
            self._tell_signals()

    def _tell_signals(self) -> None:
        while self._signals:
            self.interrupt_queue(self._signals.pop())

    def _go_on(self) -> None:
        if not self._started:
            return
        if not self._queues and self.state.status & (DRIVER_OK | NEEDS_RESET | FAILED) == DRIVER_OK:
            self._activate()
        elif self._queues and not self._held and not self._is_served:
            self._start_rings()

    # Features: windows of 32 bits, of which there are two

    @property
    def offered_features(self) -> int:
        return self.device.features | TRANSPORT_FEATURES

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
        return self.state.status

    def write_status(self, value: int) -> None:
        """0 resets. Bits are only ever added, each when those before it are there (virtio 1.2 §2.1, §3.1.1)."""
        if not value & 0xFF:
            self.reset()
            return
        state = self.state
        added = value & ~state.status
        if added & FAILED:
            state.status |= FAILED
            self._deactivate()
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
        """By the driver, or with the machine: everything it said is forgotten. The bus side takes back its interrupts."""
        self._deactivate()
        generation, config = self.state.generation, self.state.config
        self.state = self._reset_state()
        self.state.generation, self.state.config = generation, config

    def _activate(self) -> None:
        features = self.state.driver_features
        try:
            on_backlog = self._ask_for_turn if self._is_inline else None
            self._queues = [Queue(self._memory, queue, features, on_backlog) for queue in self.state.queues]
            self.device.activate(self._queues, self, features)
        except GuestError as error:
            self.needs_reset(error)
        if self._held:
            self._hold()
        elif self._queues:
            self._start_rings()

    def _deactivate(self) -> None:
        self._stop_rings()
        self._signals = []
        self.device.reset()
        for queue in self._queues:
            queue.close()
        self._queues = []

    # Notifications of the driver

    def notify(self, index: int) -> None:
        """The driver says that virtqueue `index` has buffers. Unknown or disabled ones, and those of an idle device: no.

        What comes before its turn is served in its turn.
        """
        queues = self._queues
        if index < len(queues) and queues[index].state.ready and not (self._is_inline and queues[index].backlog):
            self._serve(index)

    def _serve(self, index: int) -> None:
        if self._held:
            return  # all are served when that is over
        try:
            self._rings.notify(index)
        except GuestError as error:
            self.needs_reset(error)

    def _turn(self) -> None:
        with self.lock:
            self._posted = False
            if not self._held:
                self._take_turns()

    def _take_turns(self) -> None:
        """Serve virtqueues that have a backlog, one after the other and a slice each, for the time of one slice."""
        deadline = time.monotonic() + SLICE_SEC
        for _ in range(len(self._queues)):
            queues = self._queues  # none are left when one has met a bad chain
            if not queues:
                return
            index, self._next_turn = self._next_turn % len(queues), self._next_turn + 1
            if queues[index].backlog:
                queues[index].backlog = False
                self._serve(index)
                if time.monotonic() >= deadline:
                    break
        if any(queue.backlog for queue in self._queues):
            self._ask_for_turn()

    def _ask_for_turn(self) -> None:
        if not self._posted:
            self._posted = True
            self._post(self._turn)

    # The device's way to its driver (DriverPort)

    def interrupt_queue(self, index: int) -> None:
        if self._queues:
            self._interrupt.interrupt_queue(index)

    def interrupt_config(self) -> None:
        if self.state.status & DRIVER_OK:
            self._interrupt.interrupt_config()

    def needs_reset(self, error: GuestError) -> None:
        state = self.state
        if state.status & NEEDS_RESET:
            return
        state.status |= NEEDS_RESET
        self._deactivate()
        self.interrupt_config()
        self._warn_of(error)

    def _warn_of(self, error: GuestError) -> None:
        now = self._clock()
        if self._warned_at is not None and now - self._warned_at < WARNING_INTERVAL_SEC:
            self._warnings_held_back += 1
            return
        since = f" (and {self._warnings_held_back} times since the last warning)" if self._warnings_held_back else ""
        self._warned_at, self._warnings_held_back = now, 0
        name = type(self.device).__name__
        self._warn(f"the guest's driver broke the rules of virtio device {name}, which waits for its reset{since}: {error}")

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
