"""A ring owner with a thread for each virtqueue, for devices that wait for the host: a disk's, for its file."""

from __future__ import annotations

import os

from vmservice.board.ring_threads import RingThread, RingThreads
from vmservice.errors import GuestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmservice.devices.virtio.queue import Queue
    from vmservice.devices.virtio.rings import Ring


class ThreadRings(RingThreads):
    """`serve(index, queue)` does one slice of a virtqueue's work and publishes it; whether the driver wants an interrupt. It is
    called in the virtqueue's thread, with no lock held, and may wait for the host.

    It may also leave requests in flight: whoever has done one writes 1 to the virtqueue's eventfd, which has `serve` called
    again. `finish(index, queue)` then gives back what is done, takes nothing, and publishes; whether the driver wants an
    interrupt, and whether nothing is in flight any more. A virtqueue is stopped when that is so.

    `bug` is told of an exception that is no driver's fault, in the thread that it ended.
    """

    def __init__(
        self,
        name: str,
        queues: int,
        serve: Callable[[int, Queue], bool],
        bug: Callable[[Exception], None],
        *,
        finish: Callable[[int, Queue], tuple[bool, bool]] | None = None,
    ) -> None:
        super().__init__(name, queues)
        self._serve = serve
        self._bug = bug
        self._finish = finish or _nothing_in_flight

    def start(self, rings: Sequence[Ring], features: int, lost: Callable[[GuestError], None]) -> None:
        self._check_stopped()
        for ring in rings:
            thread = _QueueThread(ring, self.kicks[ring.index], self._serve, self._finish, lost, self._bug)
            self._begin(thread, f"virtqueue {ring.index}")


def _nothing_in_flight(_index: int, _queue: Queue) -> tuple[bool, bool]:
    return False, True


class _QueueThread(RingThread):
    def __init__(
        self,
        ring: Ring,
        kick: int,
        serve: Callable[[int, Queue], bool],
        finish: Callable[[int, Queue], tuple[bool, bool]],
        lost: Callable[[GuestError], None],
        bug: Callable[[Exception], None],
    ) -> None:
        super().__init__(bug)
        self._ring = ring
        self._kick = kick
        self._serve = serve
        self._finish = finish
        self._lost = lost

    def wake(self) -> None:
        os.eventfd_write(self._kick, 1)

    def on_lie(self, error: GuestError) -> None:
        self._lost(error)
        while not self._finish_some():
            os.eventfd_read(self._kick)

    def run(self) -> None:
        ring, queue = self._ring, self._ring.queue
        while True:
            if not self.is_stopping:
                queue.backlog = False
                if self._serve(ring.index, queue):
                    ring.signal()
                if queue.backlog:
                    continue
            elif self._finish_some() and self.may_end():
                return
            os.eventfd_read(self._kick)

    def _finish_some(self) -> bool:
        """Give back what is done; whether nothing is in flight any more."""
        wants_interrupt, is_done = self._finish(self._ring.index, self._ring.queue)
        if wants_interrupt:
            self._ring.signal()
        return is_done
