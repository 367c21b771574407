"""The device's side of a split virtqueue (virtio 1.2 §2.7), with indirect descriptors and the event index.

Guest and device share the rings without a lock, so every index that the other side reads is stored in one piece, through a
memoryview of 16- or 32-bit items: struct.pack_into() first fills its target with zeros, which another vCPU could see.
Whatever the driver put into the rings is checked before it is used; what breaks the rules is a GuestError.
"""

from __future__ import annotations

import _thread
import struct
import time

from vmservice.devices.state import DeviceState
from vmservice.devices.virtio.ids import EVENT_IDX, INDIRECT_DESC
from vmservice.errors import GuestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Protocol

    class Dma(Protocol):
        """Guest memory as a function of the bus sees it: the whole of it, or what an IOMMU lets it see."""

        def view(self, gpa: int, size_bytes: int) -> memoryview:
            """The guest's own bytes, writable; a GuestError unless they all lie in one region."""

        def contains(self, gpa: int, size_bytes: int) -> bool:
            """Whether `view` would have them."""

    Segment = tuple[int, memoryview]
    """A part of a buffer: its guest physical address, and its bytes in place."""

# The rings of a virtqueue, in the order of QueueState.addresses
DESCRIPTORS = 0
AVAILABLE = 1
USED = 2

MAX_QUEUE_SIZE = 32768  # virtio 1.2 §2.7

_RING_NAMES = ("descriptor table", "available ring", "used ring")
_RING_ALIGNMENTS = (16, 2, 4)  # virtio 1.2 §2.7

DESCRIPTOR_BYTES = 16
_unpack_descriptor = struct.Struct("<QIHH").unpack_from
_DESC_NEXT = 1
_DESC_WRITE = 2
_DESC_INDIRECT = 4

_AVAIL_NO_INTERRUPT = 1

# The rings as arrays: of 16-bit items flags, idx, ring[size], used_event; and, in the used ring, of 32-bit items behind
# flags and idx pairs of id and length.
_FLAGS = 0
_INDEX = 1
_RING = 2

# Longest chain in an indirect table; the queue size bounds the others. Linux' drivers and QEMU stay at or below it.
MAX_INDIRECT_CHAIN = 1024
MAX_CHAIN_BYTES = 1 << 32  # virtio 1.2 §2.7.5

# What is done at once, with the device's lock held: others that need the lock get their turn in between. The longest chain
# takes most of a millisecond to parse, and comes on top.
SLICE_SEC = 0.001
SLICE_BYTES = 1 << 20

# For a handler of `Queue.drain`: this chain has more to do than one slice; hand it over again in the next one.
UNFINISHED = -1


class QueueState(DeviceState):
    """A virtqueue after reset. The three addresses are those of the rings; the indices count up to 2^16 and wrap."""

    __slots__ = ("addresses", "max_size", "next_available", "next_used", "published_used", "ready", "size")

    def __init__(self, max_size: int) -> None:
        self.addresses = [0, 0, 0]
        self.max_size = max_size
        self.next_available = 0
        self.next_used = 0
        self.published_used = 0
        self.ready = False
        self.size = max_size


class Chain:
    """One request of the driver: what the device may read, and behind that what it may write. At least one is not empty."""

    __slots__ = ("head", "readable", "total_bytes", "writable")

    def __init__(self, head: int) -> None:
        self.head = head
        self.total_bytes = 0  # of both
        self.readable: list[Segment] = []
        self.writable: list[Segment] = []

    @property
    def readable_bytes(self) -> int:
        return sum(len(view) for _, view in self.readable)

    @property
    def writable_bytes(self) -> int:
        return sum(len(view) for _, view in self.writable)

    def read(self, limit_bytes: int) -> bytes:
        """The first bytes of what the device may read, at most `limit_bytes`."""
        if len(self.readable) == 1:
            return bytes(self.readable[0][1][:limit_bytes])
        parts, left = [], limit_bytes
        for _, view in self.readable:
            parts.append(view[:left])
            left -= len(parts[-1])
            if not left:
                break
        return b"".join(parts)

    def write(self, data: bytes) -> int:
        """Put `data` where the device may write, as far as there is room; returns how many bytes had."""
        done = 0
        for _, view in self.writable:
            part = data[done : done + len(view)]
            view[: len(part)] = part
            done += len(part)
            if done == len(data):
                break
        return done


class Room:
    """Buffers that a driver receives in, taken ahead: of each chain in turn head, bytes, and how many of the `views` it has."""

    __slots__ = ("counts", "heads", "size_bytes", "sizes", "views")

    def __init__(self) -> None:
        self.heads: list[int] = []
        self.sizes: list[int] = []
        self.counts: list[int] = []
        self.views: list[memoryview] = []
        self.size_bytes = 0  # of all

    def add(self, head: int, size_bytes: int, views: list[memoryview]) -> None:
        self.heads.append(head)
        self.sizes.append(size_bytes)
        self.counts.append(len(views))
        self.views += views
        self.size_bytes += size_bytes

    def drop(self, count: int) -> None:
        """The first `count` chains, which were given back."""
        self.size_bytes -= sum(self.sizes[:count])
        del self.views[: sum(self.counts[:count])]
        del self.heads[:count], self.sizes[:count], self.counts[:count]


def check_rings(state: QueueState, memory: Dma) -> None:
    """GuestError unless a virtqueue of this size can be at these addresses."""
    size = state.size
    if not 0 < size <= min(state.max_size, MAX_QUEUE_SIZE) or size & (size - 1):
        raise GuestError(f"a virtqueue of {size} entries cannot be; up to {state.max_size} are possible, a power of two")
    for name, gpa, alignment, length in zip(_RING_NAMES, state.addresses, _RING_ALIGNMENTS, _ring_bytes(size), strict=True):
        if gpa % alignment:
            raise GuestError(f"the {name} at guest address {gpa:#x} is not aligned to {alignment} bytes")
        if not memory.contains(gpa, length):
            raise GuestError(f"the {name}, {length} bytes at guest address {gpa:#x}, is not in guest memory")


def _ring_bytes(size: int) -> tuple[int, int, int]:
    return DESCRIPTOR_BYTES * size, 6 + 2 * size, 6 + 8 * size


# Taken and given back, a lock is a full memory barrier, the only one at hand. A reader that sees the one store has to see
# the other side's: without a barrier x86 lets a load pass an earlier store (Intel SDM vol. 3, 9.2.3.4).
_barrier_lock = _thread.allocate_lock()


def _full_barrier() -> None:
    with _barrier_lock:
        pass


class Queue:
    """A virtqueue of an active device. Only `state` counts: a Queue made from it goes on where another one stopped.

    A device takes chains by `take` or `pop` and gives each back by `add_used`; `publish` shows the driver what was given back
    since, and says whether it wants an interrupt for it. `drain` is all that in one.

    `backlog`: there is more to do than one slice, for which `on_backlog` was called; whoever gives the queue its next turn
    sets it back. While `held` nothing is taken, and nothing must be given back: there is no DMA, or the machine is stopped.
    """

    __slots__ = (
        "_avail_event",
        "_available",
        "_descriptors",
        "_event_index",
        "_indirect",
        "_memory",
        "_on_backlog",
        "_used",
        "_used_elements",
        "_views",
        "backlog",
        "held",
        "state",
    )

    def __init__(self, memory: Dma, state: QueueState, features: int, on_backlog: Callable[[], None] | None = None) -> None:
        self.state = state
        self.backlog = False
        self.held = False
        self._on_backlog = on_backlog
        self._memory = memory
        self._event_index = bool(features & EVENT_IDX)
        self._indirect = bool(features & INDIRECT_DESC)
        self._views: list[memoryview] = []
        if state.ready:
            check_rings(state, memory)
            descriptors, available, used = state.addresses
            size = state.size
            self._descriptors = self._map(descriptors, DESCRIPTOR_BYTES * size, "B")
            self._available = self._map(available, 6 + 2 * size, "H")
            self._used = self._map(used, 4, "H")
            self._used_elements = self._map(used + 4, 8 * size, "I")
            self._avail_event = self._map(used + 4 + 8 * size, 2, "H")

    def _map(self, gpa: int, size_bytes: int, item: str) -> memoryview:
        # The native formats of memoryview are little-endian here: this VMM runs on x86.
        raw = self._memory.view(gpa, size_bytes)
        view = raw.cast(item)  # type: ignore[call-overload]
        self._views += (view, raw)
        return view  # type: ignore[no-any-return]

    def close(self) -> None:
        """Let go of guest memory; the queue is of no use any more."""
        for view in self._views:
            view.release()
        self._views = []

    # Chains in

    def pop(self) -> Chain | None:
        """The next chain, complete and checked, or None. Where there is none the driver is asked to notify of the next one."""
        if not self.has_available():
            return None
        self._waiting()
        state = self.state
        position = state.next_available
        chain = self._parse(self._available[_RING + (position & state.size - 1)])
        state.next_available = position + 1 & 0xFFFF
        return chain

    def take_room(self, room: Room, wanted_bytes: int, least_bytes: int) -> None:
        """Add chains to `room` until it has that many bytes, or there are no more.

        Each has at least `least_bytes`, all to write. It is `pop` for many: a frame may take forty of them, nearly all of
        one descriptor, which has the short way here.
        """
        state, available, descriptors, view = self.state, self._available, self._descriptors, self._memory.view
        size = state.size
        while room.size_bytes < wanted_bytes and self.has_available():
            for _ in range(self._waiting()):
                head = available[_RING + (state.next_available & size - 1)]
                views = []
                if head < size:
                    gpa, size_bytes, flags, _ = _unpack_descriptor(descriptors, head * DESCRIPTOR_BYTES)
                    if flags == _DESC_WRITE and size_bytes >= least_bytes:
                        views = [view(gpa, size_bytes)]
                if not views:
                    size_bytes, views = self._parse_writable(head, least_bytes)
                room.add(head, size_bytes, views)
                state.next_available = state.next_available + 1 & 0xFFFF
                if room.size_bytes >= wanted_bytes:
                    return

    def _parse_writable(self, head: int, least_bytes: int) -> tuple[int, list[memoryview]]:
        chain = self._parse(head)
        if chain.readable or chain.total_bytes < least_bytes:
            size_bytes = chain.writable_bytes
            raise GuestError(
                f"a buffer to receive in has {size_bytes} bytes to write; expected {least_bytes} at least, all to write"
            )
        return chain.total_bytes, [view for _, view in chain.writable]

    def _waiting(self) -> int:
        """How many chains there are."""
        waiting = (self._available[_INDEX] - self.state.next_available) & 0xFFFF
        if waiting > self.state.size:
            raise GuestError(f"the available ring's index jumps by {waiting}, but the virtqueue has {self.state.size} entries")
        return waiting

    def has_available(self) -> bool:
        """Whether `pop` would find something; if not, the driver is asked to notify when that changes."""
        state = self.state
        if not state.ready or self.held:
            return False
        if self._available[_INDEX] != state.next_available:
            return True
        if not self._event_index:  # it notifies of every chain
            return False
        # A chain that came before the driver could see this comes without a notification: look once more.
        self._avail_event[0] = state.next_available
        _full_barrier()
        return bool(self._available[_INDEX] != state.next_available)

    def _parse(self, head: int) -> Chain:
        chain = Chain(head)
        memory = self._memory
        table = self._descriptors
        entries = limit = self.state.size
        readable, writable = chain.readable, chain.writable
        index, total_bytes = head, 0
        while True:
            if index >= entries:
                raise GuestError(f"descriptor {index} is named, but the table has {entries}")
            if not limit:
                raise GuestError(f"the chain of descriptors from {head} on is a loop, or longer than can be")
            limit -= 1
            gpa, size_bytes, flags, following = _unpack_descriptor(table, index * DESCRIPTOR_BYTES)
            if flags & _DESC_INDIRECT:
                if table is not self._descriptors:
                    raise GuestError(f"descriptor {index} of an indirect table refers to another indirect table")
                table = self._indirect_table(gpa, size_bytes, flags)
                index, entries = 0, size_bytes // DESCRIPTOR_BYTES
                limit = min(entries, MAX_INDIRECT_CHAIN)
                continue
            if not size_bytes:
                raise GuestError(f"descriptor {index} has no bytes")
            total_bytes += size_bytes
            if total_bytes > MAX_CHAIN_BYTES:
                raise GuestError(f"the buffers of the chain from descriptor {head} on sum up to more than 4 GiB")
            if flags & _DESC_WRITE:
                writable.append((gpa, memory.view(gpa, size_bytes)))
            elif writable:
                raise GuestError(f"descriptor {index} is for the device to read, but follows one that it may write")
            else:
                readable.append((gpa, memory.view(gpa, size_bytes)))
            if not flags & _DESC_NEXT:
                chain.total_bytes = total_bytes
                return chain
            index = following

    def _indirect_table(self, gpa: int, size_bytes: int, flags: int) -> memoryview:
        # Its WRITE flag is to be ignored (virtio 1.2 §2.7.5.3.2).
        if not self._indirect:
            raise GuestError("an indirect descriptor, though VIRTIO_F_INDIRECT_DESC was not negotiated")
        if flags & _DESC_NEXT:
            raise GuestError("a descriptor is both indirect and chained")
        if not size_bytes or size_bytes % DESCRIPTOR_BYTES:
            raise GuestError(f"an indirect table has {size_bytes} bytes; a descriptor takes {DESCRIPTOR_BYTES}")
        return self._memory.view(gpa, size_bytes)

    # Chains out

    def add_used(self, head: int, written_bytes: int) -> None:
        """Give the chain that begins at `head` back; the driver sees it after `publish`."""
        state = self.state
        element = 2 * (state.next_used & state.size - 1)
        self._used_elements[element] = head
        self._used_elements[element + 1] = written_bytes
        state.next_used = state.next_used + 1 & 0xFFFF

    def add_all_used(self, heads: Sequence[int], written: Sequence[int]) -> None:
        """`add_used` for several, in that order."""
        state, elements, mask = self.state, self._used_elements, self.state.size - 1
        position = state.next_used
        for head, written_bytes in zip(heads, written, strict=True):
            element = 2 * (position & mask)
            elements[element] = head
            elements[element + 1] = written_bytes
            position += 1
        state.next_used = position & 0xFFFF

    def publish(self) -> bool:
        """Show the driver all that was given back; whether it wants an interrupt for it (virtio 1.2 §2.7.7, §2.7.10)."""
        state = self.state
        old, new = state.published_used, state.next_used
        if old == new:
            return False
        # Stores become visible in their order on x86: the elements are there before the index says so.
        self._used[_INDEX] = state.published_used = new
        _full_barrier()
        if self._event_index:
            used_event = self._available[_RING + state.size]
            return new - used_event - 1 & 0xFFFF < new - old & 0xFFFF
        return not self._available[_FLAGS] & _AVAIL_NO_INTERRUPT

    # Both

    def take(self) -> Iterator[Chain]:
        """The chains of one slice, each to be given back or put back: it ends when there are none, or at its bounds.

        The bounds are SLICE_SEC, SLICE_BYTES, and as many chains as the virtqueue has entries: no honest driver can have made
        more available, for it gets none back before the end. What has become available beyond them is a backlog.
        """
        left_bytes, deadline = SLICE_BYTES, time.monotonic() + SLICE_SEC
        for _ in range(self.state.size):
            chain = self.pop()
            if chain is None:
                return
            yield chain
            left_bytes -= chain.total_bytes
            if left_bytes <= 0 or time.monotonic() >= deadline:
                break
        if self.has_available():
            self.ask_for_turn()

    def ask_for_turn(self) -> None:
        """There is more to do here, soon but not now."""
        self.backlog = True
        if self._on_backlog is not None:
            self._on_backlog()

    def put_back(self) -> None:
        """Leave the chain that was taken last in the ring; the next `pop` finds it again."""
        self.state.next_available = self.state.next_available - 1 & 0xFFFF

    def drain(self, handle: Callable[[Chain], int | None]) -> bool:
        """Pass the chains of one slice to `handle`, which returns how many bytes it wrote; publish; whether to interrupt.

        None from `handle` leaves that chain and those behind it in the ring, until somebody drains again; so does UNFINISHED,
        and it asks for a turn.
        """
        for chain in self.take():
            written_bytes = handle(chain)
            if written_bytes is None or written_bytes == UNFINISHED:
                self.put_back()
                if written_bytes is not None:
                    self.ask_for_turn()
                break
            self.add_used(chain.head, written_bytes)
        return self.publish()
