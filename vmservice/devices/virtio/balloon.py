"""virtio-balloon, the traditional memory balloon (virtio 1.2 §5.5): memory that the guest lends back to the host.

It inflates and deflates by target, lets go of itself when the guest runs out of memory, reports free pages, and answers with
statistics. Free page hinting and page poisoning are left out.
"""

from __future__ import annotations

import struct
import time

from vmservice.devices.state import DeviceState
from vmservice.devices.virtio.device import cut_config
from vmservice.devices.virtio.ids import TYPE_BALLOON
from vmservice.devices.virtio.queue import SLICE_SEC, UNFINISHED
from vmservice.errors import GuestError, InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.devices.virtio.device import DriverPort
    from vmservice.devices.virtio.queue import Chain, Queue
    from vmservice.memory.guest_memory import GuestMemory

# Feature bits
F_STATS = 1 << 1
F_DEFLATE_ON_OOM = 1 << 2
F_REPORTING = 1 << 5

# Linux reports free pages only to a virtqueue of at least 32 entries.
QUEUE_SIZE = 64

PAGE_BYTES = 4096  # whatever the guest's own pages are (§5.5.6)

# Linux sends 256 page numbers at a time, Windows' driver 1024: one page of them.
MAX_PAGES_IN_REQUEST = 1024

# What is given back to the host in one call, and a multiple of which it ends at: the kernel takes about a millisecond for it,
# and Python holds its own lock meanwhile. No huge page of the host is larger that could be given back.
DISCARD_BYTES = 4 << 20

INFLATE_QUEUE = 0
DEFLATE_QUEUE = 1
STATS_QUEUE = 2
SPECIFIED_REPORTING_QUEUE = 4

# num_pages, actual; the two fields behind them belong to features that are not offered
_CONFIG = struct.Struct("<II")
_ACTUAL_OFFSET = 4

_STATISTIC = struct.Struct("<HQ")
# As they are in virtio 1.2 §5.5.6.4, by tag
STATISTIC_NAMES = (
    "swap_in_bytes",
    "swap_out_bytes",
    "major_faults",
    "minor_faults",
    "free_bytes",
    "total_bytes",
    "available_bytes",
    "disk_caches_bytes",
    "hugetlb_allocations",
    "hugetlb_failures",
)
# Room for tags that are not known yet.
MAX_STATISTICS_BYTES = 64 * _STATISTIC.size


class BalloonState(DeviceState):
    """Sizes in pages of PAGE_BYTES. `done_bytes` by virtqueue: of the chain that is at its head, what has been given back.

    `statistics` by tag, -1 for what the guest has not said; `statistics_head` is the chain that the guest left for the next
    request, -1 for none.
    """

    __slots__ = ("actual_pages", "done_bytes", "statistics", "statistics_head", "target_pages")

    def __init__(self) -> None:
        self.actual_pages = 0
        self.done_bytes = [0] * 5
        self.statistics = [-1] * len(STATISTIC_NAMES)
        self.statistics_head = -1
        self.target_pages = 0


class Balloon:
    """`discard(gpa, size_bytes)` lets the host have whole pages of guest memory back; they may read as zeros afterwards.

    A page that the guest takes out of the balloon comes back by itself when it is touched.
    """

    device_type = TYPE_BALLOON
    features = F_STATS | F_DEFLATE_ON_OOM | F_REPORTING
    queue_max_sizes = (QUEUE_SIZE,) * 5

    def __init__(self, memory: GuestMemory, discard: Callable[[int, int], None], state: BalloonState | None = None) -> None:
        self.state = state or BalloonState()
        self._memory = memory
        self._discard = discard
        self._queues: list[Queue] = []
        self._interrupt: DriverPort | None = None
        self._reporting: tuple[int, ...] = ()
        self._has_statistics = False

    # The host's side

    def set_target_bytes(self, size_bytes: int) -> None:
        """How much the guest is to do without, rounded down to pages. It takes its time, or never does."""
        if not 0 <= size_bytes <= self._memory.size_bytes:
            raise InvalidArgument(
                f"a balloon of {size_bytes} bytes: it can have 0 to {self._memory.size_bytes}, the guest's memory"
            )
        target_pages = size_bytes // PAGE_BYTES
        if target_pages != self.state.target_pages:
            self.state.target_pages = target_pages
            if self._interrupt is not None:
                self._interrupt.interrupt_config()

    def statistics(self) -> dict[str, int]:
        """What the balloon is to have and what the guest says is in it, in bytes, and what it said last by STATISTIC_NAMES."""
        state = self.state
        told = {"target_bytes": state.target_pages * PAGE_BYTES, "actual_bytes": state.actual_pages * PAGE_BYTES}
        return told | {name: value for name, value in zip(STATISTIC_NAMES, state.statistics, strict=True) if value >= 0}

    def request_statistics(self) -> bool:
        """Ask the guest for fresh statistics, which `statistics` has when it has answered.

        False while it has not answered the last request, or never will.
        """
        head, interrupt = self.state.statistics_head, self._interrupt
        if head < 0 or interrupt is None:
            return False
        queue = self._queues[STATS_QUEUE]
        if queue.held:
            return False
        self.state.statistics_head = -1
        queue.add_used(head, 0)
        if queue.publish():
            interrupt.interrupt_queue(STATS_QUEUE)
        return True

    # The driver's side

    def read_config(self, offset: int, size: int) -> bytes:
        return cut_config(_CONFIG.pack(self.state.target_pages, self.state.actual_pages), offset, size)

    def write_config(self, offset: int, data: bytes) -> None:
        """`actual` is the driver's; it may come in pieces."""
        config = bytearray(_CONFIG.pack(self.state.target_pages, self.state.actual_pages))
        written = config[offset : offset + len(data)]
        config[offset : offset + len(written)] = data[: len(written)]
        (self.state.actual_pages,) = struct.unpack_from("<I", config, _ACTUAL_OFFSET)

    def activate(self, queues: list[Queue], interrupt: DriverPort, features: int) -> None:
        self._queues, self._interrupt = queues, interrupt
        self._has_statistics = bool(features & F_STATS)
        # The specification numbers all virtqueues that there could be; Linux and QEMU count those that there are.
        counted = STATS_QUEUE + 1 if self._has_statistics else STATS_QUEUE
        self._reporting = (counted, SPECIFIED_REPORTING_QUEUE) if features & F_REPORTING else ()

    def reset(self) -> None:
        """The target is the host's and stays; the driver starts with an empty balloon."""
        self._queues, self._interrupt, self._reporting = [], None, ()
        self.state.actual_pages = 0
        self.state.done_bytes = [0] * len(self.queue_max_sizes)
        self.state.statistics_head = -1
        self.state.statistics = [-1] * len(STATISTIC_NAMES)

    def notify(self, index: int) -> None:
        interrupt = self._interrupt
        if interrupt is None:
            return
        if index == INFLATE_QUEUE:
            handle: Callable[[Chain], int | None] = self._inflate
        elif index == DEFLATE_QUEUE:
            handle = self._deflate
        elif index in self._reporting:
            if self._queues[index].drain(lambda chain: self._take_report(index, chain)):
                interrupt.interrupt_queue(index)
            return
        else:
            if index == STATS_QUEUE and self._has_statistics:
                self._take_statistics(self._queues[index])
            return
        if self._queues[index].drain(handle):
            interrupt.interrupt_queue(index)

    def _inflate(self, chain: Chain) -> int:
        return self._give_back(INFLATE_QUEUE, self._parse_pages(chain))

    def _deflate(self, chain: Chain) -> int:
        self._parse_pages(chain)
        return 0

    def _parse_pages(self, chain: Chain) -> list[tuple[int, int]]:
        """Ranges (gpa, size in bytes) of the pages that the request names by their 32-bit numbers (§5.5.6)."""
        size_bytes = chain.readable_bytes
        if chain.writable or size_bytes % 4 or size_bytes > 4 * MAX_PAGES_IN_REQUEST:
            raise GuestError(
                f"a balloon request of {size_bytes} bytes to read: it is made of 4 bytes for each page, of at most"
                f" {MAX_PAGES_IN_REQUEST} pages, and of nothing to write"
            )
        ranges = _merge([PAGE_BYTES * number for (number,) in struct.iter_unpack("<I", chain.read(size_bytes))])
        for gpa, length in ranges:
            if not self._memory.contains(gpa, length):
                self._check_each_page(gpa, length)
        return ranges

    def _check_each_page(self, gpa: int, size_bytes: int) -> None:
        """A range may go over the border between two regions."""
        for page in range(gpa, gpa + size_bytes, PAGE_BYTES):
            if not self._memory.contains(page, PAGE_BYTES):
                raise GuestError(f"the page at guest address {page:#x}, for the balloon, is not in guest memory")

    def _take_report(self, index: int, chain: Chain) -> int:
        """Free pages, each range a buffer of its own (§5.5.6.7). What is not a whole page of it stays."""
        if chain.readable:
            raise GuestError("a report of free pages has buffers to read, where it is made of the pages themselves")
        ranges = []
        for gpa, view in chain.writable:
            start = gpa + PAGE_BYTES - 1 & -PAGE_BYTES
            end = gpa + len(view) & -PAGE_BYTES
            if start < end:
                ranges.append((start, end - start))
        return self._give_back(index, ranges)

    def _give_back(self, index: int, ranges: list[tuple[int, int]]) -> int:
        """Discard ranges of (gpa, size in bytes), from where the last slice ended; UNFINISHED where this one ends."""
        done, position, deadline = self.state.done_bytes[index], 0, time.monotonic() + SLICE_SEC
        for gpa, size_bytes in ranges:
            start, end = gpa + max(done - position, 0), gpa + size_bytes
            position += size_bytes
            while start < end:
                piece = min(end, (start // DISCARD_BYTES + 1) * DISCARD_BYTES) - start
                self._discard(start, piece)
                start += piece
                done += piece
                if time.monotonic() >= deadline:
                    self.state.done_bytes[index] = done
                    return UNFINISHED
        self.state.done_bytes[index] = 0
        return 0

    def _take_statistics(self, queue: Queue) -> None:
        """The guest answers by making the next buffer available, which is kept to ask again with (§5.5.6.3)."""
        chain = queue.pop()
        if chain is None:
            return
        if self.state.statistics_head >= 0:
            raise GuestError("a second buffer with statistics, before the first was used")
        self.state.statistics_head = chain.head
        statistics = [-1] * len(STATISTIC_NAMES)
        for tag, value in _iter_statistics(chain.read(MAX_STATISTICS_BYTES)):
            if tag < len(statistics):
                statistics[tag] = value
        self.state.statistics = statistics


def _iter_statistics(data: bytes) -> list[tuple[int, int]]:
    """(tag, value) of every whole entry."""
    return [_STATISTIC.unpack_from(data, offset) for offset in range(0, len(data) - _STATISTIC.size + 1, _STATISTIC.size)]


def _merge(pages: list[int]) -> list[tuple[int, int]]:
    """Neighbouring pages as ranges of (gpa, size in bytes); a call to the host for each page would take far longer."""
    ranges: list[tuple[int, int]] = []
    for gpa in sorted(set(pages)):
        if ranges and sum(ranges[-1]) == gpa:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + PAGE_BYTES)
        else:
            ranges.append((gpa, PAGE_BYTES))
    return ranges
