"""A ring owner for a network card at a tap: a thread for each pair of virtqueues, which waits for the tap and the driver alike.

Frames for a driver that gives no buffers stay in the tap, whose queue the host bounds. A stop waits for one slice at most.
"""

from __future__ import annotations

import os
import select

from vmservice.board.net_server import DRAINED, MORE, STARVED
from vmservice.board.ring_threads import RingThread, RingThreads
from vmservice.errors import GuestError
from vmservice.host.poll import wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmservice.board.net_server import Pair
    from vmservice.devices.virtio.queue import Queue
    from vmservice.devices.virtio.rings import Lost, Ring


class NetRings(RingThreads):
    """`pairs` by number, of which a driver that has chosen `features` uses the first `in_use(features)`; what comes behind
    their virtqueues is the device's own, and `serve(index, queue)` does one slice of it, in the first pair's thread.

    `host_gone` is told, in a pair's thread, that it has lost its tap; it is served anew from the next `hold` on. `bug` is told
    of an exception that is no driver's fault.
    """

    def __init__(
        self,
        name: str,
        pairs: Sequence[Pair],
        *,
        serve: Callable[[int, Queue], bool],
        in_use: Callable[[int], int],
        host_gone: Callable[[], None],
        bug: Callable[[Exception], None],
    ) -> None:
        super().__init__(name, 2 * len(pairs) + 1, os.EFD_NONBLOCK)
        self.is_held = False
        self._pairs = pairs
        self._serve = serve
        self._in_use = in_use
        self._host_gone = host_gone
        self._bug = bug

    def start(self, rings: Sequence[Ring], features: int, lost: Lost) -> None:
        self._check_stopped()
        by_index = {ring.index: ring for ring in rings}
        pairs = self._in_use(features)
        control = by_index.get(2 * pairs)
        for number in range(pairs):
            receiving, sending = by_index.get(2 * number), by_index.get(2 * number + 1)
            if receiving is None and sending is None and (number or control is None):
                continue
            self._pairs[number].begin(features)
            thread = _PairThread(self, number, receiving, sending, None if number else control, lost)
            self._begin(thread, f"pair {number}")

    def begin(self) -> None:
        """Threads come with the driver."""

    def hold(self, held: bool) -> None:
        """Whether what the driver sends is lost, and it receives nothing: its link is down."""
        self.is_held = held
        if not held:
            for pair in self._pairs:
                pair.is_gone = False
        for thread in tuple(self._threads):
            thread.wake()

    # For its threads

    def pair(self, number: int) -> Pair:
        return self._pairs[number]

    def serve_own(self, ring: Ring) -> bool:
        """One slice of the device's own virtqueue; whether there is more."""
        ring.queue.backlog = False
        if self._serve(ring.index, ring.queue):
            ring.signal()
        return ring.queue.backlog

    def tell_gone(self) -> None:
        self._host_gone()

    def tell_bug(self, error: Exception) -> None:
        self._bug(error)


class _PairThread(RingThread):
    def __init__(
        self, owner: NetRings, number: int, receiving: Ring | None, sending: Ring | None, own: Ring | None, lost: Lost
    ) -> None:
        super().__init__(self._on_bug)
        self._owner = owner
        self._pair = owner.pair(number)
        self._receiving = receiving
        self._sending = sending
        self._own = own
        self._lost = lost
        self._bells = [owner.kicks[ring.index] for ring in (receiving, sending, own) if ring is not None]

    def wake(self) -> None:
        os.eventfd_write(self._bells[0], 1)

    def on_lie(self, error: GuestError) -> None:
        self._let_go()
        self._lost(error)

    def _on_bug(self, error: Exception) -> None:
        self._let_go()
        self._owner.tell_bug(error)

    def _let_go(self) -> None:
        if self._receiving is not None:
            self._pair.let_go(self._receiving.queue)

    def run(self) -> None:
        poll = select.poll()
        for bell in self._bells:
            poll.register(bell, select.POLLIN)
        waits_for_tap = False
        while True:
            if self.is_stopping:
                self._let_go()
                if self.may_end():
                    return
                continue
            has_more, wants_tap = self._turn()
            if has_more:
                continue
            if wants_tap != waits_for_tap:
                waits_for_tap = wants_tap
                if wants_tap:
                    poll.register(self._pair.fd, select.POLLIN)
                else:
                    poll.unregister(self._pair.fd)
            for fd, _ in wait(poll, None):
                if fd != self._pair.fd:
                    _take(fd)

    def _turn(self) -> tuple[bool, bool]:
        """A slice of each; whether there is more to do, and whether the next frame in the tap is waited for."""
        owner, pair = self._owner, self._pair
        has_more = self._own is not None and owner.serve_own(self._own)
        was_gone = pair.is_gone
        sending, receiving = self._sending, self._receiving
        if sending is not None:
            sending.queue.backlog = False
            if pair.send(sending.queue, is_up=not owner.is_held):
                sending.signal()
            has_more |= sending.queue.backlog
        outcome = STARVED
        if receiving is not None and not owner.is_held and not pair.is_gone:
            outcome = pair.receive(receiving.queue)
            if receiving.queue.publish():
                receiving.signal()
        if pair.is_gone and not was_gone:
            owner.tell_gone()
        return has_more or outcome == MORE, outcome == DRAINED and not pair.is_gone


def _take(bell: int) -> None:
    try:
        os.eventfd_read(bell)
    except BlockingIOError:
        return
