"""A ring owner whose virtqueues are served by another process, to which they are handed over by vhost-user.

One thread speaks with the back end, so that no vCPU waits for it: what the transport asks is noted, and done there. The thread
sleeps until there is something to do: a request of the transport, the end of the connection, a message of the back end's own.

A back end may end at any time, by itself or because a driver broke the rules. With requests in flight nobody knows which of
them were done, and one that is volatile takes along what the driver takes for written: the driver is told that the device
needs a reset, and the next start connects anew. Otherwise nothing is lost: it is connected to at once, and all goes on.
"""

from __future__ import annotations

import _thread
import os
import select
import time

from vmservice.board.handed_over import HandedOver
from vmservice.board.ring_eventfds import RingEventfds, ring_bell
from vmservice.board.task import Task
from vmservice.devices.virtio.rings import TRANSPORT_FEATURES
from vmservice.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmservice.devices.virtio.rings import Lost, Ring
    from vmservice.host.vhost_user import VhostUser
    from vmservice.host.vhost_user_link import BackEndLink
    from vmservice.memory.guest_memory import GuestMemory, Region

# What requests in flight are waited for when the machine is at its end; otherwise they are for as long as it takes.
SETTLE_SEC = 5.0
_FIRST_LOOK_SEC = 0.0005
_LAST_LOOK_SEC = 0.02
# One that ends without a request in flight more often than that is not trusted with more.
RESTART_INTERVAL_SEC = 5.0
WARNING_INTERVAL_SEC = 60.0


class VhostUserRings:
    """For `queues` virtqueues of the device called `name`, at the back end behind `link`, which the caller owns.

    `is_volatile`: what it has done may be lost with it, as a disk's cache. `memory` is what it is shown. `on_config` gets, in
    this owner's thread, the configuration space whenever it may have changed; `warn` takes a sentence for the journal; `bug` an
    exception that is nobody else's fault, at the thread's end.

    `begin` starts the thread; `close` ends it, and leaves the virtqueues.
    """

    def __init__(
        self,
        name: str,
        queues: int,
        link: BackEndLink,
        memory: GuestMemory,
        *,
        is_volatile: bool,
        on_config: Callable[[bytes], None],
        warn: Callable[[str], None],
        bug: Callable[[Exception], None],
        settle_sec: float = SETTLE_SEC,
    ) -> None:
        self.transport_features = link.features & TRANSPORT_FEATURES
        self._eventfds = RingEventfds(name, queues)
        self.kicks = self._eventfds.kicks
        self._name = name
        self._link = link
        self._memory = memory
        self._on_config = on_config
        self._warn = warn
        self._bug = bug
        self._is_volatile = is_volatile
        self._settle_sec = settle_sec
        self._abandoned = False
        self._mutex = _thread.allocate_lock()  # guards what follows, for a few instructions at a time
        self._wanted: HandedOver | None = None
        self._busy: HandedOver | None = None  # the back end has its virtqueues, or had them and may have requests in flight
        self._last: HandedOver | None = None
        self._tasks: list[Task] = []
        self._ending = False
        self._released = _thread.allocate_lock()  # held while there is a busy one
        self._alive = _thread.allocate_lock()  # held while the thread runs
        self._shown_to: VhostUser | None = None  # the connection that has all of `memory`
        self._restarted_at = self._warned_at = float("-inf")
        self._not_before = float("-inf")  # no virtqueues are handed over before that
        self._is_held = False  # nor while this is so

    def begin(self) -> None:
        self._link.allow()
        self._alive.acquire()
        try:
            _thread.start_new_thread(self._main, ())
        except RuntimeError as error:
            self._alive.release()
            raise HostError(f"cannot start a thread for the back end of {self._name}: {error}") from error
        self._memory.listen(self)

    def close(self) -> None:
        """Requests in flight are not waited for, and the back end lets go of the guest's memory."""
        with self._mutex:
            self._ending = True
        self._link.cut()
        if self._eventfds.wake >= 0:
            self._wake()
            self._alive.acquire()
            self._alive.release()
        self._link.close()
        self._eventfds.close()

    def _wake(self) -> None:
        ring_bell(self._eventfds.wake)

    # What the transport asks (RingOwner)

    def start(self, rings: Sequence[Ring], features: int, lost: Lost) -> None:
        """What cannot be done is said by `lost`, later."""
        with self._mutex:
            if self._busy is not None or self._wanted is not None:
                raise ValueError(f"the virtqueues of {self._name} are served already")
            self._wanted = self._last = HandedOver(self._memory, rings, features, lost, self._last)
        self._wake()

    def notify(self, index: int) -> None:
        ring_bell(self.kicks[index])

    def stop(self, timeout_sec: float) -> bool:
        with self._mutex:
            self._wanted = None
            if self._busy is None:
                return True
        self._wake()
        if self._abandoned and not self._wait_released(min(timeout_sec, 2 * self._settle_sec)):
            self._link.cut()  # it does not even answer
        return self._wait_released(timeout_sec)

    def _wait_released(self, timeout_sec: float) -> bool:
        if not self._released.acquire(timeout=timeout_sec):
            return False
        self._released.release()
        return True

    def go_on(self) -> None:
        with self._mutex:
            if self._last is not None and not self._last.is_lost:
                self._wanted = self._last
        self._wake()

    def abandon(self) -> None:
        """The machine is at its end: `stop` gives up what is not done in SETTLE_SEC, or a back end that does not answer.

        A driver can have a back end forget a request, one without room for an answer, which then is never done.
        """
        self._abandoned = True

    def refresh(self) -> None:
        """Look at the configuration space once more. HostError when the back end does not show it."""
        self._do(lambda: self._on_config(self._link.read_config()))

    # Guest memory that comes and goes

    def region_added(self, region: Region) -> None:
        if region.fd >= 0:
            self._do(lambda: self._add_region(region))

    def region_removed(self, region: Region) -> None:
        if region.fd >= 0:
            self._do(lambda: self._remove_region(region))

    def _add_region(self, region: Region) -> None:
        front = self._shown_to
        if front is None or front.is_lost or self._busy is None:
            self._shown_to = None  # all of it is shown at the next start
        elif front.can_add_regions:
            front.add_region(region)
        else:
            raise HostError(f"{self._link.name} cannot be shown more memory while the guest runs")

    def _remove_region(self, region: Region) -> None:
        front, busy = self._shown_to, self._busy
        if front is None or busy is None:
            self._shown_to = None
            return
        try:
            front.remove_region(region)
        except HostError as error:
            # It must not reach memory that is gone.
            self._link.close()
            self._lose(busy, error)

    def _do(self, call: Callable[[], None]) -> None:
        """In the thread, and wait for it; its HostError is the caller's."""
        task = Task(call)
        with self._mutex:
            self._tasks.append(task)
        self._wake()
        task.wait(self._link.name)

    # The thread

    def _main(self) -> None:
        try:
            self._look()
            while self._step():
                self._sleep()
        except Exception as error:
            self._bug(error)
        finally:
            self._release()
            self._alive.release()

    def _look(self) -> None:
        """The back end is awake when a driver comes, and what the driver reads of the configuration is of today."""
        try:
            self._link.open()
            self._on_config(self._link.config)
        except HostError:
            return  # the start that needs it says so

    def _step(self) -> bool:
        """Do what is asked; False when the thread is to end."""
        while True:
            with self._mutex:
                ending, wanted, busy = self._ending, self._wanted, self._busy
                tasks, self._tasks = self._tasks, []
            if ending:
                return False
            for task in tasks:
                task.run()
            if busy is not None and (wanted is not busy or self._is_held):
                self._stop(busy)
            elif wanted is not None and busy is None and not self._is_held and time.monotonic() >= self._not_before:
                self._start(wanted)
            elif not tasks:
                return True

    def _sleep(self) -> None:
        """Until something happens, which is met here unless it is a request."""
        front, busy = self._link.front, self._busy
        poll = select.poll()
        wake = self._eventfds.wake
        poll.register(wake, select.POLLIN)
        if front is not None and not front.is_lost:
            poll.register(front.fd, select.POLLIN)
            if front.channel >= 0:
                poll.register(front.channel, select.POLLIN)
        relays = self._eventfds.relayed(busy.rings) if busy is not None else {}
        for fd in relays:
            poll.register(fd, select.POLLIN)
        waits = busy is None and self._wanted is not None and not self._is_held
        # In milliseconds, not before the time has come.
        timeout = max(0.0, self._not_before - time.monotonic()) * 1000 + 1 if waits else None
        for fd, _ in poll.poll(timeout):
            if fd == wake:
                os.eventfd_read(fd)
            elif fd in relays:
                os.eventfd_read(fd)
                relays[fd].signal()
            elif front is not None and fd == front.channel:
                self._heed(front)
            elif front is not None and fd == front.fd:
                self._gone(front)

    def _heed(self, front: VhostUser) -> None:
        """The back end says something by itself."""
        try:
            if front.take_config_changed():
                self._on_config(self._link.read_config())
        except HostError:
            self._gone(front)

    def _gone(self, front: VhostUser) -> None:
        """The connection is at its end, or the back end talks nonsense on it."""
        with self._mutex:
            busy = self._busy
        if busy is None:
            self._link.close()
        else:
            self._died(busy, HostError(f"{self._link.name} has ended"))

    def _died(self, session: HandedOver, why: HostError) -> None:
        """It had the session's virtqueues, or some of them."""
        self._link.close()
        in_flight, now = session.in_flight(), time.monotonic()
        if in_flight or self._is_volatile or now - self._restarted_at < RESTART_INTERVAL_SEC:
            left = "no request" if not in_flight else "one request" if in_flight == 1 else f"{in_flight} requests"
            unknown = "; whether they were done is not known" if in_flight else ""
            lost = "; what it had done and not stored yet is lost" if self._is_volatile else ""
            self._lose(session, HostError(f"{why}, with {left} in flight{unknown}{lost}"))
            return
        if now - self._warned_at >= WARNING_INTERVAL_SEC:
            self._warned_at = now
            self._warn(f"{why}, with no request in flight; it is connected to anew, and nothing is lost")
        self._restarted_at = now
        session.rewind()
        self._hand_over(session)

    # Virtqueues there and back

    def _start(self, session: HandedOver) -> None:
        error = self._prepare(session)
        if error is not None:
            self._unreachable(session, error)
            return
        with self._mutex:
            if self._wanted is not session:
                return
            self._busy = session
            self._released.acquire()
        self._hand_over(session)

    def _unreachable(self, session: HandedOver, error: HostError) -> None:
        """Nobody can be given the session's virtqueues."""
        with self._mutex:
            if self._wanted is not session:
                return
            self._wanted = None
            session.is_lost = True
        session.lost(error)

    def _prepare(self, session: HandedOver) -> HostError | None:
        """Why the session cannot be served."""
        try:
            try:
                self._connect()
                config = self._link.read_config()  # a back end may change it and say nothing
            except HostError:
                if self._link.front is None:
                    raise
                self._connect()  # it had ended while nothing was asked of it
                config = self._link.read_config()
            front = self._link.front
        except HostError as error:
            return error
        self._on_config(config)
        if self._is_volatile and session.served_by not in (None, front):
            lost = "what it had done and not stored yet is lost"
            return HostError(f"{self._link.name} has ended while the virtual machine was paused; {lost}")
        return None

    def _connect(self) -> VhostUser:
        front = self._link.open()
        if self._shown_to is not front:
            front.set_memory([region for region in self._memory.regions if region.is_ram or region.fd >= 0])
            self._shown_to = front
        return front

    def _hand_over(self, session: HandedOver) -> None:
        """The back end serves the session's virtqueues from where they stand."""
        try:
            session.served_by = front = self._connect()
            front.set_features(session.features & self._link.features)
            for ring in session.rings:
                state = ring.queue.state
                front.start_ring(
                    ring.index,
                    state.size,
                    session.base(ring),
                    state.addresses,
                    kick=self.kicks[ring.index],
                    call=self._eventfds.call_of(ring),
                )
                session.bases.pop(ring.index, None)
                # What came while nobody listened, and what was done while nobody could say so.
                ring_bell(self.kicks[ring.index])
                ring.signal()
        except HostError as error:
            self._died(session, error)

    def _stop(self, session: HandedOver) -> None:
        """Take the virtqueues back, once the requests in flight are done; or begin anew when that is wanted meanwhile."""
        try:
            front = session.served_by
            assert front is not None
            for ring in session.rings:
                if ring.index not in session.bases:
                    session.bases[ring.index] = front.stop_ring(ring.index)
            if not self._settled(session):
                return
        except HostError as error:
            self._died(session, error)
            return
        session.save()
        self._release()

    def _settled(self, session: HandedOver) -> bool:
        """Wait for requests in flight. False when the session has been taken up again, or all is at an end."""
        deadline, pause_sec = time.monotonic() + self._settle_sec, _FIRST_LOOK_SEC
        while session.missing():
            with self._mutex:
                if self._ending:
                    return False
                taken_up = self._wanted is session
            if taken_up:
                self._hand_over(session)
                return False
            if self._abandoned and time.monotonic() >= deadline:
                raise HostError(f"{self._link.name} does not end what it has begun")
            time.sleep(pause_sec)
            pause_sec = min(2 * pause_sec, _LAST_LOOK_SEC)
        for ring in session.rings:
            ring.signal()  # of what was done when the back end had no eventfd any more
        return True

    def _lose(self, session: HandedOver, error: HostError) -> None:
        """The back end has the virtqueues no more, and the driver has to begin anew."""
        with self._mutex:
            if self._busy is not session:
                return
            if self._wanted is session:
                self._wanted = None
            session.is_lost = True
        self._release()
        session.lost(error)

    def _release(self) -> None:
        with self._mutex:
            if self._busy is not None:
                self._busy = None
                self._released.release()
