"""A pair of virtqueues of a network card, served at one queue of a tap: frames straight from and into the guest's buffers.

A frame has virtio's header of 12 bytes in front, in the tap as in the buffers: the kernel checks it, and fills it in
(TUNSETVNETHDRSZ).
"""

from __future__ import annotations

import errno
import os
import time

from vmservice.devices.virtio.net import MRG_RXBUF
from vmservice.devices.virtio.queue import SLICE_SEC, Room
from vmservice.errors import GuestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmservice.devices.virtio.queue import Queue

HEADER_BYTES = 12
# The longest that a tap has: header, Ethernet's own with a VLAN tag, and a packet that waits to be cut into segments.
FRAME_MAX_BYTES = HEADER_BYTES + 18 + 65536
# What a frame that was longer than expected has behind the buffers; and the least that is made ready for the next one.
_SMALL_BYTES = 2048
_NUM_BUFFERS = slice(10, 12)  # of the header: how many of the driver's buffers the frame has
_FRAMES_A_SLICE = 256
_VIEWS_MAX = 512  # for one frame; the kernel takes 1,024 (IOV_MAX)

# How a slice of receiving ended: no frame is left in the tap; no buffers are, for a frame that may be; or it was long enough.
DRAINED, STARVED, MORE = range(3)


class Counters:
    """Of one pair, whose thread alone changes them. The guest's: it receives what comes out of the tap."""

    __slots__ = ("received", "received_bytes", "received_dropped", "sent", "sent_bytes", "sent_dropped")

    def __init__(self) -> None:
        self.received = self.received_bytes = self.received_dropped = self.sent = self.sent_bytes = self.sent_dropped = 0


class Pair:
    """`fd` is the tap's queue, non-blocking; `readv` and `writev` move a frame, as those of `os` do.

    A frame that has been taken out of the tap and found no room among the driver's buffers is kept for the next ones.
    `is_gone`: the tap is not there any more, or its queue is not to be used. `refused` is told the errno of each frame of the
    guest's that the host does not take.
    """

    def __init__(
        self,
        fd: int,
        refused: Callable[[int], None],
        readv: Callable[[int, Sequence[memoryview]], int] = os.readv,
        writev: Callable[[int, Sequence[memoryview]], int] = os.writev,
    ) -> None:
        self.fd = fd
        self.counters = Counters()
        self.is_gone = False
        self._refused = refused
        self._readv = readv
        self._writev = writev
        self._features = 0
        self._merges = False
        self._spill = memoryview(bytearray(FRAME_MAX_BYTES))
        self._kept = b""
        self._want = _SMALL_BYTES
        self._ahead = Room()  # taken, and not given back yet

    def begin(self, features: int) -> None:
        """Serve a driver with those features. One that has chosen others than the last one may not take its frame."""
        if features != self._features:
            self._features, self._kept = features, b""
        self._merges = bool(features & MRG_RXBUF)

    def let_go(self, queue: Queue) -> None:
        """Leave what was taken ahead in the virtqueue: it is served no longer."""
        for _ in self._ahead.heads:
            queue.put_back()
        self._ahead = Room()

    # Out of the guest

    def send(self, queue: Queue, *, is_up: bool) -> bool:
        """One slice; whether to interrupt. What the host does not take is lost, as it is on any network."""
        counters, writev, fd = self.counters, self._writev, self.fd
        for chain in queue.take():
            if chain.writable or chain.total_bytes < HEADER_BYTES:
                raise GuestError(
                    f"a frame to send has {chain.readable_bytes} bytes to read; its header alone has {HEADER_BYTES}"
                )
            if is_up and not self.is_gone and chain.total_bytes <= FRAME_MAX_BYTES:
                try:
                    writev(fd, [view for _, view in chain.readable])
                    counters.sent += 1
                    counters.sent_bytes += chain.total_bytes - HEADER_BYTES
                except OSError as error:
                    counters.sent_dropped += 1
                    self._not_sent(error.errno or errno.EIO)
            else:
                counters.sent_dropped += 1
            queue.add_used(chain.head, 0)
        return queue.publish()

    def _not_sent(self, number: int) -> None:
        if number == errno.EBADFD:
            self.is_gone = True
        else:
            self._refused(number)

    # Into the guest

    def receive(self, queue: Queue) -> int:
        """One slice, to be published by the caller: DRAINED, STARVED or MORE."""
        deadline = time.monotonic() + SLICE_SEC
        for _ in range(_FRAMES_A_SLICE):
            if not self._make_ready(queue, self._want):
                return STARVED
            if self._kept:
                if not self._deliver_kept(queue):
                    return STARVED
                continue
            views, room = self._ahead.views, self._ahead.size_bytes
            count = len(views)
            if count > _VIEWS_MAX:
                count, views = _VIEWS_MAX, views[:_VIEWS_MAX]
                room = sum(map(len, views))
            try:
                length = self._readv(self.fd, [*views, self._spill])
            except BlockingIOError:
                return DRAINED
            except OSError:
                self.is_gone = True
                return DRAINED
            self._deliver(queue, length, count, room)
            if time.monotonic() >= deadline:
                break
        return MORE

    def _make_ready(self, queue: Queue, want_bytes: int) -> bool:
        """Take buffers ahead for a frame of so many bytes, or as many as there are; whether there are any.

        Without merged buffers a frame has one, whatever its size.
        """
        if not self._merges:
            want_bytes = 1
        if self._ahead.size_bytes < want_bytes:
            queue.take_room(self._ahead, want_bytes, HEADER_BYTES)
        return bool(self._ahead.heads)

    def _deliver(self, queue: Queue, length: int, count: int, room: int) -> None:
        """A frame that is in the first `count` views, of `room` bytes, and what had none there in the spill."""
        self._want = max(length, self._want - self._want // 8, _SMALL_BYTES)
        if length <= HEADER_BYTES:
            self.counters.received_dropped += 1
        elif length <= room:
            self._give_back(queue, length)
        elif not self._merges and length > self._ahead.size_bytes:
            self.counters.received_dropped += 1
        elif self._make_ready(queue, length) and self._ahead.size_bytes >= length:
            _scatter(self._spill[: length - room], self._ahead.views, room)
            self._give_back(queue, length)
        else:
            self._kept = b"".join((*self._ahead.views[:count], self._spill))[:length]

    def _deliver_kept(self, queue: Queue) -> bool:
        """The frame that had no room, if it has now."""
        frame = self._kept
        self._make_ready(queue, len(frame))
        if self._ahead.size_bytes >= len(frame):
            _scatter(frame, self._ahead.views)
            self._give_back(queue, len(frame))
        elif len(self._ahead.views) >= queue.state.size:
            self.counters.received_dropped += 1  # all that this driver has is not enough
        else:
            return False
        self._kept = b""
        return True

    def _give_back(self, queue: Queue, length: int) -> None:
        """The buffers that a frame of so many bytes is in."""
        ahead = self._ahead
        written, left = [], length
        for size_bytes in ahead.sizes:
            written.append(min(left, size_bytes))
            left -= size_bytes
            if left <= 0:
                break
        count = len(written)
        queue.add_all_used(ahead.heads[:count], written)
        number = count.to_bytes(2, "little")
        if len(ahead.views[0]) >= HEADER_BYTES:
            ahead.views[0][_NUM_BUFFERS] = number
        else:
            _scatter(number, ahead.views, _NUM_BUFFERS.start)
        ahead.drop(count)
        self.counters.received += 1
        self.counters.received_bytes += length - HEADER_BYTES


def _scatter(data: bytes | memoryview, views: Sequence[memoryview], skip: int = 0) -> None:
    """Write `data` into `views`, which have room for it, behind the first `skip` bytes."""
    done = 0
    for view in views:
        if skip >= len(view):
            skip -= len(view)
            continue
        part = data[done : done + len(view) - skip]
        view[skip : skip + len(part)] = part
        done += len(part)
        skip = 0
        if done == len(data):
            return
