"""A ring owner whose virtqueues are served by the kernel, by vhost: a network's at a tap, those of sockets.

The kernel is notified by eventfds and interrupts by eventfds, so that no byte of what it moves comes to Python. One thread does
the rest, and sleeps until there is something: virtqueues that are the device's own, such as a network's control queue;
interrupts where the driver has no MSI-X; and what the kernel says of a driver that breaks the rules.
"""

from __future__ import annotations

import _thread
import os
import select

from vmservice.board.handed_over import HandedOver
from vmservice.board.ring_eventfds import RingEventfds, ring_bell, take_bell
from vmservice.devices.virtio.rings import TRANSPORT_FEATURES
from vmservice.errors import GuestError, HostError
from vmservice.host.poll import wait
from vmservice.host.vhost import RINGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmservice.devices.virtio.queue import Queue
    from vmservice.devices.virtio.rings import Lost, Ring
    from vmservice.host.vhost import Vhost
    from vmservice.memory.guest_memory import GuestMemory, Region


class VhostRings:
    """For `queues` virtqueues of the device called `name`. The k-th of `vhosts`, which the caller owns, serves virtqueues 2k
    and 2k+1. A driver that has chosen `features` uses the first `in_use(features)` of them, all by default; what is behind
    those is the device's own, and `serve(index, queue)` does one slice of it as that of `ThreadRings` does: in the thread,
    with no lock held.

    `memory` is what the kernel is shown. `bug` is told of an exception that is nobody else's fault, at the thread's end.

    `begin` starts the thread; `close` ends it, and leaves the virtqueues.
    """

    def __init__(
        self,
        name: str,
        queues: int,
        vhosts: Sequence[Vhost],
        memory: GuestMemory,
        *,
        bug: Callable[[Exception], None],
        serve: Callable[[int, Queue], bool] | None = None,
        in_use: Callable[[int], int] | None = None,
    ) -> None:
        self.transport_features = TRANSPORT_FEATURES
        for vhost in vhosts:
            self.transport_features &= vhost.features
        self._name = name
        self._vhosts = vhosts
        self._memory = memory
        self._bug = bug
        self._serve = serve
        self._in_use = in_use
        self._mutex = _thread.allocate_lock()  # held for the kernel's part of a start or a stop, some milliseconds
        self._session: _Session | None = None  # what is served
        self._last: _Session | None = None
        self._is_held = False
        self._handling = _thread.allocate_lock()  # held while the thread does something for a session
        self._ending = False
        self._alive = _thread.allocate_lock()  # held while the thread runs
        self._eventfds = RingEventfds(name, queues)
        self.kicks = self._eventfds.kicks
        try:
            self._error = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError as error:
            self._eventfds.close()
            raise HostError.from_os(f"no eventfd for a virtqueue of {name}", error) from error

    def begin(self) -> None:
        """In the main thread: Linux makes the kernel's thread out of the one that asks, and not while a signal is on its way to
        it, as it often is to a vCPU's."""
        for vhost in self._vhosts:
            vhost.own()
        self._alive.acquire()
        try:
            _thread.start_new_thread(self._main, ())
        except RuntimeError as error:
            self._alive.release()
            raise HostError(f"cannot start a thread for the virtqueues of {self._name}: {error}") from error
        self._memory.listen(self)

    def close(self) -> None:
        with self._mutex:
            self._ending = True
            session, self._session = self._session, None
            if session is not None:
                self._halt(session)
        if self._error < 0:
            return
        ring_bell(self._eventfds.wake)
        self._alive.acquire()
        self._alive.release()
        self._eventfds.close()
        os.close(self._error)
        self._error = -1

    # What the transport asks (RingOwner)

    def start(self, rings: Sequence[Ring], features: int, lost: Lost) -> None:
        vhosts = self._vhosts if self._in_use is None else self._vhosts[: self._in_use(features)]
        session = _Session(self._memory, rings, features, lost, vhosts)
        with self._mutex:
            if self._session is not None:
                raise ValueError(f"the virtqueues of {self._name} are served already")
            self._run(session)
            self._session = self._last = session
        ring_bell(self._eventfds.wake)

    def notify(self, index: int) -> None:
        ring_bell(self.kicks[index])

    def stop(self, timeout_sec: float) -> bool:
        """The kernel's are stopped at once; what takes longer are the device's own."""
        error = None
        with self._mutex:
            session, self._session = self._session, None
            if session is not None:
                error = self._halt(session)
        if session is not None and error is not None:
            session.lost(error)
        ring_bell(self._eventfds.wake)
        if not self._handling.acquire(timeout=timeout_sec):
            return False
        self._handling.release()
        return True

    def go_on(self) -> None:
        with self._mutex:
            session, error = self._last, None
            if session is not None and not session.is_lost and self._session is None:
                try:
                    self._run(session)
                    self._session = session
                except HostError as failed:
                    error, session.is_lost = failed, True
        if session is not None and error is not None:
            session.lost(error)
        ring_bell(self._eventfds.wake)

    def hold(self, held: bool) -> None:
        """Whether the kernel is to serve nothing though the driver is there, as where a network's link is down.

        The device's own virtqueues are served all the same.
        """
        error = None
        with self._mutex:
            session, was_held, self._is_held = self._session, self._is_held, held
            if session is None or held == was_held:
                return
            try:
                if held:
                    error = self._halt(session)
                else:
                    self._run(session)
            except HostError as failed:
                error = failed
        if error is not None:
            self._lose(session, error)

    # Guest memory that comes and goes

    def region_added(self, region: Region) -> None:
        with self._mutex:
            if self._session is not None:
                self._show_memory(self._session, (*self._memory.regions, region))

    def region_removed(self, region: Region) -> None:
        with self._mutex:
            session = self._session
            if session is None:
                return
            try:
                self._show_memory(session, self._memory.regions)
                return
            except HostError as failed:
                error = failed
        self._lose(session, error)  # the kernel must not reach memory that is gone

    def _show_memory(self, session: _Session, regions: Sequence[Region]) -> None:
        for vhost in session.running:
            vhost.set_memory(regions)

    # Virtqueues there and back, with the mutex held

    def _run(self, session: _Session) -> None:
        """HostError when the kernel cannot serve them; then it serves none."""
        for ring in session.own:
            ring_bell(self.kicks[ring.index])
        if self._is_held:
            return
        take_bell(self._error)
        try:
            for number, vhost in enumerate(session.vhosts):
                rings = [ring for ring in session.rings if ring.index // RINGS == number]
                if rings:
                    self._run_one(session, vhost, rings)
        except HostError:
            self._halt(session)
            raise
        session.bases = {}
        # What came while nobody listened, and what was done while nobody could say so.
        for ring in session.rings:
            ring_bell(self.kicks[ring.index])
            ring_bell(self._eventfds.call_of(ring))

    def _run_one(self, session: _Session, vhost: Vhost, rings: Sequence[Ring]) -> None:
        regions = self._memory.regions
        session.running.append(vhost)
        vhost.set_features(session.features)
        vhost.set_memory(regions)
        for ring in rings:
            state = ring.queue.state
            vhost.set_ring(
                ring.index % RINGS,
                state.size,
                session.base(ring),
                state.addresses,
                regions,
                kick=self.kicks[ring.index],
                call=self._eventfds.call_of(ring),
                error=self._error,
            )
        vhost.run([ring.index % RINGS for ring in rings])

    def _halt(self, session: _Session) -> HostError | None:
        """The virtqueues' own states say where any owner goes on. What could not be asked of the kernel, if anything."""
        error = None
        for number, vhost in enumerate(session.vhosts):
            if vhost not in session.running:
                continue
            rings = [ring for ring in session.rings if ring.index // RINGS == number]
            try:
                vhost.halt()
                for ring in rings:
                    session.bases[ring.index] = vhost.base(ring.index % RINGS)
            except HostError as failed:
                error = failed
        session.running = []
        if error is None and len(session.bases) == len(session.rings):
            session.save()
        elif error is not None:
            session.is_lost = True
        return error

    def _lose(self, session: _Session, error: GuestError | HostError) -> None:
        """Serve it no more, for the driver has to begin anew."""
        with self._mutex:
            if self._session is not session:
                return
            self._session = None
            session.is_lost = True
            self._halt(session)
        session.lost(error)

    # The thread

    def _main(self) -> None:
        try:
            while self._turn():
                pass
        except Exception as error:
            self._bug(error)
        finally:
            self._alive.release()

    def _turn(self) -> bool:
        """Sleep until something happens, and do it; False when the thread is to end."""
        with self._mutex:
            if self._ending:
                return False
            session = self._session
        poll = select.poll()
        poll.register(self._eventfds.wake, select.POLLIN)
        relayed: dict[int, Ring] = {}
        if session is not None:
            relayed = self._eventfds.relayed(session.rings)
            for fd in (self._error, *relayed, *(self.kicks[ring.index] for ring in session.own)):
                poll.register(fd, select.POLLIN)
        wait(poll, None)
        take_bell(self._eventfds.wake)
        if session is not None:
            with self._handling:
                self._handle(session, relayed)
        return True

    def _handle(self, session: _Session, relayed: dict[int, Ring]) -> None:
        if self._session is not session:
            return
        if take_bell(self._error):
            self._lose(session, GuestError("the kernel cannot make sense of what the driver has put into a virtqueue"))
            return
        for fd, ring in relayed.items():
            if take_bell(fd):
                ring.signal()
        for ring in session.own:
            if take_bell(self.kicks[ring.index]) and self._serve is not None:
                self._serve_own(session, ring)

    def _serve_own(self, session: _Session, ring: Ring) -> None:
        assert self._serve is not None
        ring.queue.backlog = False
        try:
            if self._serve(ring.index, ring.queue):
                ring.signal()
        except GuestError as error:
            # It waits for the main thread: its traceback would keep the guest's memory mapped until then.
            self._lose(session, error.with_traceback(None))
            return
        if ring.queue.backlog:
            ring_bell(self.kicks[ring.index])


class _Session(HandedOver):
    """What one `start` is about: `rings` are those that the kernel serves, by `vhosts`, and `own` the device's."""

    __slots__ = ("own", "running", "vhosts")

    def __init__(self, memory: GuestMemory, rings: Sequence[Ring], features: int, lost: Lost, vhosts: Sequence[Vhost]) -> None:
        last = RINGS * len(vhosts)
        super().__init__(memory, [ring for ring in rings if ring.index < last], features, lost)
        self.own = [ring for ring in rings if ring.index >= last]
        self.vhosts = vhosts
        self.running: list[Vhost] = []
