"""The virtqueues of an active device, and the ring owner that serves them while it may."""

from __future__ import annotations

import _thread
import os
import time

from vmservice.devices.virtio.queue import SLICE_SEC, Queue
from vmservice.devices.virtio.rings import Inline, Ring
from vmservice.errors import GuestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmservice.devices.virtio.device import BusInterrupt, VirtioDevice
    from vmservice.devices.virtio.queue import Dma, QueueState
    from vmservice.devices.virtio.rings import RingOwner
    from vmservice.errors import HostError


class ServedQueues:
    """`queues` by index, none while the device is not active. Every call comes with `lock`, the device's, held.

    `rings` serves them, the device itself in turns of one slice each without. `broken` is told, with the lock held, of a driver
    that broke the rules, or a host that failed; `post(callback)` has the callback called soon, by a thread that holds no lock.
    """

    def __init__(
        self,
        device: VirtioDevice,
        rings: RingOwner | None,
        interrupt: BusInterrupt,
        lock: _thread.LockType,
        post: Callable[[Callable[[], None]], None],
        broken: Callable[[GuestError | HostError], None],
    ) -> None:
        self.queues: list[Queue] = []
        self.is_served = False
        self._is_inline = rings is None
        self._rings: RingOwner = rings or Inline(device)
        self._interrupt = interrupt
        self._lock = lock
        self._post = post
        self._broken = broken
        self._posted = False
        self._next_turn = 0  # the virtqueue that is looked at first
        self._signals: list[int] = []  # virtqueues of which the driver is still to be told

    @property
    def transport_features(self) -> int:
        return self._rings.transport_features

    def open(self, memory: Dma, states: Sequence[QueueState], features: int) -> None:
        """Make the virtqueues; a GuestError says that they cannot be. Nothing is taken before `start`."""
        on_backlog = self._ask_for_turn if self._is_inline else None
        self.queues = [Queue(memory, state, features, on_backlog) for state in states]
        self._hold(True)

    def close(self) -> None:
        """Let go of guest memory; nothing is served."""
        self._signals = []
        for queue in self.queues:
            queue.close()
        self.queues = []

    def start(self, features: int) -> None:
        """Serve them: first what was made available while they were not, which came without a notification.

        HostError when the owner cannot.
        """
        queues = self.queues
        self._hold(False)
        rings = [self._ring(index, queue) for index, queue in enumerate(queues) if queue.state.ready]
        self._rings.start(rings, features, lambda error: self._post(lambda: self._lost(queues, error)))
        self.is_served = True
        if self._is_inline:
            self._take_turns()

    def stop(self, timeout_sec: float) -> bool:
        """Leave them as they are; whether that was done in time, see RingOwner."""
        if self.is_served:
            if not self._rings.stop(timeout_sec):
                return False
            self.is_served = False
            while self._signals:
                self.interrupt_queue(self._signals.pop())
        self._hold(True)
        return True

    def go_on(self) -> None:
        """After a stop that was not done in time: they are served as before."""
        self._rings.go_on()

    def _hold(self, held: bool) -> None:
        for queue in self.queues:
            queue.held = held

    def _ring(self, index: int, queue: Queue) -> Ring:
        queues = self.queues
        eventfd = None if self._is_inline else self._interrupt.queue_eventfd(index)
        if eventfd is None:
            return Ring(index, queue, lambda: self._signal(index, queues))
        return Ring(index, queue, lambda: os.eventfd_write(eventfd, 1), eventfd)

    def interrupts_changed(self, timeout_sec: float, features: int) -> None:
        """A virtqueue has another interrupt: whoever serves it has the old one's eventfd."""
        if self.is_served and not self._is_inline and self.stop(timeout_sec):
            self.start(features)

    # From the owner's threads

    def _lost(self, queues: list[Queue], error: GuestError | HostError) -> None:
        with self._lock:
            if queues is self.queues:  # else the driver has reset the device in the meantime
                self._broken(error)

    def _signal(self, index: int, queues: list[Queue]) -> None:
        """Whoever has the lock may be waiting for this thread to stop, so it is not waited for."""
        if self._lock.acquire(timeout=SLICE_SEC):
            try:
                if queues is self.queues:
                    self.interrupt_queue(index)
            finally:
                self._lock.release()
        else:
            self._signals.append(index)
            self._post(self._tell_later)

    def _tell_later(self) -> None:
        with self._lock:
            while self._signals:
                self.interrupt_queue(self._signals.pop())

    def interrupt_queue(self, index: int) -> None:
        if self.queues:
            self._interrupt.interrupt_queue(index)

    # Notifications, and turns

    def notify(self, index: int) -> None:
        """The driver says that virtqueue `index` has buffers. Unknown or disabled ones, and those of an idle device: no.

        What comes before its turn is served in its turn, and all are when they are held no more.
        """
        queues = self.queues
        if index < len(queues) and queues[index].state.ready and not (self._is_inline and queues[index].backlog):
            self._serve(index)

    def _serve(self, index: int) -> None:
        if not self.is_served:
            return
        try:
            self._rings.notify(index)
        except GuestError as error:
            self._broken(error)

    def _turn(self) -> None:
        with self._lock:
            self._posted = False
            if self.is_served:
                self._take_turns()

    def _take_turns(self) -> None:
        """Serve virtqueues that have a backlog, one after the other and a slice each, for the time of one slice."""
        deadline = time.monotonic() + SLICE_SEC
        for _ in range(len(self.queues)):
            queues = self.queues  # none are left when one has met a bad chain
            if not queues:
                return
            index, self._next_turn = self._next_turn % len(queues), self._next_turn + 1
            if queues[index].backlog:
                queues[index].backlog = False
                self._serve(index)
                if time.monotonic() >= deadline:
                    break
        if any(queue.backlog for queue in self.queues):
            self._ask_for_turn()

    def _ask_for_turn(self) -> None:
        if not self._posted:
            self._posted = True
            self._post(self._turn)
