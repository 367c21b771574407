"""The driver's side of virtio, for tests of every device: rings and buffers in guest memory, honest ones and others.

It shares no code with the device's side: what both sides take for granted is written down twice, from virtio 1.2 §2.7.
"""

from __future__ import annotations

import _thread
import struct
import time
from collections.abc import Callable, Sequence

from vmservice.devices.virtio.ids import EVENT_IDX, VERSION_1
from vmservice.devices.virtio.transport import VirtioTransport
from vmservice.devices.virtio.transport_state import TransportState
from vmservice.memory.guest_memory import GuestMemory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.devices.virtio.device import VirtioDevice
    from vmservice.devices.virtio.rings import RingOwner
    from vmservice.devices.virtio.transport_state import TransportState

    MakeDriver = Callable[[VirtioDevice], "Driver"]

NEXT = 1
WRITE = 2
INDIRECT = 4
NO_INTERRUPT = 1

DRIVER_READY = 0x0F  # ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK

# Where a test's virtqueues are, and how far apart: room for 256 entries and for their buffers.
QUEUES_GPA = 0x10000
QUEUE_STRIDE = 0x20000
BUFFERS_OFFSET = 0x4000


class DriverQueue:
    """A split virtqueue of `size` entries at `gpa`, its buffers between BUFFERS_OFFSET and QUEUE_STRIDE behind it."""

    def __init__(self, memory: GuestMemory, gpa: int, size: int, features: int) -> None:
        self.memory = memory
        self.size = size
        self.event_index = bool(features & EVENT_IDX)
        self.descriptors = gpa
        self.available = gpa + 16 * size
        self.used = (self.available + 6 + 2 * size + 3) & ~3
        self._buffers = (gpa + BUFFERS_OFFSET, gpa + QUEUE_STRIDE)
        self._next_buffer = self._buffers[0]
        self._free = list(range(size))
        self._chains: dict[int, tuple[list[int], list[tuple[int, int]]]] = {}
        self.available_index = 0
        self._used_index = 0

    @property
    def addresses(self) -> tuple[int, int, int]:
        return self.descriptors, self.available, self.used

    # Honest requests

    def add(self, readable: Sequence[bytes] = (), writable: Sequence[int] = (), *, indirect: bool = False) -> int:
        """Make one chain available: buffers that hold `readable`, and empty ones of the sizes `writable`. Returns its head."""
        buffers = [(self.place(data), len(data), 0) for data in readable]
        buffers += [(self.place(bytes(size)), size, WRITE) for size in writable]
        space = [(gpa, size) for gpa, size, flags in buffers if flags & WRITE]
        if indirect:
            entries = [
                (gpa, size, flags | (NEXT if number + 1 < len(buffers) else 0), number + 1)
                for number, (gpa, size, flags) in enumerate(buffers)
            ]
            head = self._free.pop(0)
            self.describe(head, self.table(entries), 16 * len(entries), INDIRECT)
            self._chains[head] = ([head], space)
        else:
            indexes = [self._free.pop(0) for _ in buffers]
            for number, (gpa, size, flags) in enumerate(buffers):
                following = indexes[number + 1] if number + 1 < len(indexes) else 0
                self.describe(indexes[number], gpa, size, flags | (NEXT if number + 1 < len(indexes) else 0), following)
            head = indexes[0]
            self._chains[head] = (indexes, space)
        self.make_available(head)
        return head

    def take_used(self) -> list[tuple[int, int, bytes]]:
        """What the device has given back since the last call: (head, bytes written, those bytes).

        Then an interrupt is wanted for the next one; before the first call, for the first.
        """
        taken = []
        while self._used_index != self.used_index():
            entry = self.used + 4 + 8 * (self._used_index % self.size)
            head, written = struct.unpack("<II", self.memory.read(entry, 8))
            indexes, space = self._chains.pop(head)
            self._free += indexes
            data = b"".join(self.memory.read(gpa, size) for gpa, size in space)
            taken.append((head, written, data[:written]))
            self._used_index = (self._used_index + 1) & 0xFFFF
        self.set_used_event(self._used_index)
        return taken

    # The parts they are made of, for requests that are not honest

    def place(self, data: bytes) -> int:
        """Put `data` into the next free place of the buffer area, which is used round and round; returns its gpa."""
        start, end = self._buffers
        if self._next_buffer + len(data) > end:
            self._next_buffer = start
        gpa = self._next_buffer
        self.memory.write(gpa, data)
        self._next_buffer = (gpa + len(data) + 15) & ~15
        return gpa

    def table(self, entries: Sequence[tuple[int, int, int, int]]) -> int:
        """An indirect table of (gpa, size, flags, next); returns its gpa."""
        return self.place(b"".join(struct.pack("<QIHH", *entry) for entry in entries))

    def describe(self, index: int, gpa: int, size: int, flags: int = 0, following: int = 0) -> None:
        self.memory.write(self.descriptors + 16 * index, struct.pack("<QIHH", gpa, size, flags, following))

    def make_available(self, head: int) -> None:
        self.memory.write(self.available + 4 + 2 * (self.available_index % self.size), struct.pack("<H", head))
        self.set_available_index(self.available_index + 1)

    def set_available_index(self, index: int) -> None:
        self.available_index = index & 0xFFFF
        self.memory.write(self.available + 2, struct.pack("<H", self.available_index))

    def jump_to(self, index: int) -> None:
        """Both sides' indices are at `index`, as after so many requests; the device's state is set apart from this."""
        self.set_available_index(index)
        self._used_index = index
        self.memory.write(self.used + 2, struct.pack("<H", index))
        self.set_used_event(index)

    def set_flags(self, flags: int) -> None:
        self.memory.write(self.available, struct.pack("<H", flags))

    def set_used_event(self, index: int) -> None:
        self.memory.write(self.available + 4 + 2 * self.size, struct.pack("<H", index & 0xFFFF))

    def used_index(self) -> int:
        return self._read_index(self.used + 2)

    def avail_event(self) -> int:
        return self._read_index(self.used + 4 + 8 * self.size)

    def notification_wanted(self, added: int = 1) -> bool:
        """Whether the device asked to be notified of the last `added` chains (vring_need_event of <linux/virtio_ring.h>)."""
        if not self.event_index:
            return True
        return (self.available_index - self.avail_event() - 1) & 0xFFFF < added

    def _read_index(self, gpa: int) -> int:
        (value,) = struct.unpack("<H", self.memory.read(gpa, 2))
        return int(value)


RESET_TIMEOUT_SEC = 60.0


class RecordingInterrupt:
    """Notes what the driver would be told: `queues` by index, in order, and how often the configuration has changed."""

    def __init__(self) -> None:
        self.queues: list[int] = []
        self.configs = 0

    def interrupt_queue(self, index: int) -> None:
        self.queues.append(index)

    def interrupt_config(self) -> None:
        self.configs += 1

    def queue_eventfd(self, index: int) -> int | None:
        return None

    def take(self) -> list[int]:
        queues, self.queues = self.queues, []
        return queues


class Driver:
    """A driver and its device on a bare VirtioTransport.

    `warnings` holds what would have gone to the journal, `posted` what the event loop would call next.
    """

    def __init__(
        self,
        device: VirtioDevice,
        memory: GuestMemory,
        clock: Callable[[], float] = lambda: 0.0,
        state: TransportState | None = None,
        rings: RingOwner | None = None,
        lock: _thread.LockType | None = None,
    ) -> None:
        self.device = device
        self.memory = memory
        self.interrupt = RecordingInterrupt()
        self.warnings: list[str] = []
        self.posted: list[Callable[[], None]] = []
        self.transport = VirtioTransport(
            device,
            memory,
            self.interrupt,
            warn=self.warnings.append,
            post=self.posted.append,
            clock=clock,
            state=state,
            rings=rings,
            lock=lock,
        )
        self.transport.start()
        self.queues: list[DriverQueue] = []

    def start(
        self, features: int | None = None, *, sizes: Sequence[int] = (), stop_before_ok: bool = False
    ) -> list[DriverQueue]:
        """Reset and initialise the device as virtio 1.2 §3.1.1 says, with all that it offers unless `features` say less.

        `sizes`: of the virtqueues; the largest possible without. One of 0 is not enabled.
        """
        transport = self.transport
        transport.write_status(0)
        _wait_for_reset(transport)
        transport.write_status(1)
        transport.write_status(3)
        chosen = offered(transport) if features is None else features | VERSION_1
        for half in range(2):
            transport.select_driver_features(half)
            transport.write_driver_features(chosen >> 32 * half & 0xFFFF_FFFF)
        transport.write_status(0x0B)
        assert transport.status == 0x0B
        self.queues = []
        for index, maximum in enumerate(self.device.queue_max_sizes):
            size = sizes[index] if sizes else maximum
            gpa = QUEUES_GPA + index * QUEUE_STRIDE
            self.memory.write(gpa, bytes(BUFFERS_OFFSET))
            queue = DriverQueue(self.memory, gpa, size or 1, chosen)
            self.queues.append(queue)
            transport.select_queue(index)
            transport.set_queue_size(size)
            for ring, address in enumerate(queue.addresses):
                transport.set_queue_address(ring, 0, address & 0xFFFF_FFFF)
                transport.set_queue_address(ring, 32, address >> 32)
            if size:
                transport.set_queue_ready(True)
        if not stop_before_ok:
            transport.write_status(DRIVER_READY)
            assert transport.status == DRIVER_READY
        return self.queues

    def kick(self, index: int = 0) -> None:
        self.transport.notify(index)

    def run_posted(self) -> int:
        """What the event loop would do until there is no more; how many callbacks it were."""
        done = 0
        while self.posted:
            self.posted.pop(0)()
            done += 1
        return done

    @property
    def is_broken(self) -> bool:
        return bool(self.transport.status & 0x40)


def _wait_for_reset(transport: VirtioTransport) -> None:
    """Requests in flight are waited for by the device, and the device by its driver (§4.1.4.3.2)."""
    deadline = time.monotonic() + RESET_TIMEOUT_SEC
    while transport.status:
        assert time.monotonic() < deadline, "the device is not reset"
        time.sleep(0.001)


def offered(transport: VirtioTransport) -> int:
    """The features that the device offers, read as a driver does."""
    features = 0
    for half in range(2):
        transport.select_device_features(half)
        features |= transport.device_features() << 32 * half
    return features
