"""A ring owner with a thread for each virtqueue, for devices that wait for the host: a disk's, for its file."""

from __future__ import annotations

import _thread
import os
import time

from vmservice.devices.virtio.rings import TRANSPORT_FEATURES
from vmservice.errors import GuestError, HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmservice.devices.virtio.queue import Queue
    from vmservice.devices.virtio.rings import Ring

# For threads that have just begun, when there is none for the next virtqueue.
_START_FAILED_SEC = 10.0


class ThreadRings:
    """`serve(index, queue)` does one slice of a virtqueue's work and publishes it; whether the driver wants an interrupt. It is
    called in the virtqueue's thread, with no lock held, and may wait for the host.

    It may also leave requests in flight: whoever has done one writes 1 to the virtqueue's eventfd, which has `serve` called
    again. `finish(index, queue)` then gives back what is done, takes nothing, and publishes; whether the driver wants an
    interrupt, and whether nothing is in flight any more. A virtqueue is stopped when that is so.

    `kicks` are eventfds by virtqueue. A write of 1 is a notification: by `notify`, or by KVM where the address that the driver
    notifies at is attached to it (ioeventfd). `bug` is told of an exception that is no driver's fault, in the thread that it
    ended.
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
        self.transport_features = TRANSPORT_FEATURES
        self._name = name
        self._serve = serve
        self._bug = bug
        self._finish = finish or _nothing_in_flight
        self._threads: list[_RingThread] = []
        self.kicks: list[int] = []
        try:
            for _ in range(queues):
                self.kicks.append(os.eventfd(0, os.EFD_CLOEXEC))
        except OSError as error:
            self.close()
            raise HostError(f"no eventfd for a virtqueue of {name}: {error}") from error

    def start(self, rings: Sequence[Ring], features: int, lost: Callable[[GuestError], None]) -> None:
        if self._threads:
            raise ValueError(f"the virtqueues of {self._name} are served already")
        for ring in rings:
            thread = _RingThread(ring, self.kicks[ring.index], self._serve, self._finish, lost, self._bug)
            try:
                thread.start()
            except RuntimeError as error:
                self.stop(_START_FAILED_SEC)
                raise HostError(f"cannot start a thread for virtqueue {ring.index} of {self._name}: {error}") from error
            self._threads.append(thread)

    def notify(self, index: int) -> None:
        os.eventfd_write(self.kicks[index], 1)

    def stop(self, timeout_sec: float) -> bool:
        """All are asked first, so that they end side by side."""
        for thread in self._threads:
            thread.ask_to_stop()
        deadline = time.monotonic() + timeout_sec
        if not all(thread.wait_ended(max(deadline - time.monotonic(), 0.0)) for thread in self._threads):
            return False
        self._threads = []
        return True

    def go_on(self) -> None:
        for thread in self._threads:
            thread.go_on()

    def close(self) -> None:
        """Give the eventfds back; no virtqueue is served."""
        while self.kicks:
            os.close(self.kicks.pop())


def _nothing_in_flight(_index: int, _queue: Queue) -> tuple[bool, bool]:
    return False, True


class _RingThread:
    def __init__(
        self,
        ring: Ring,
        kick: int,
        serve: Callable[[int, Queue], bool],
        finish: Callable[[int, Queue], tuple[bool, bool]],
        lost: Callable[[GuestError], None],
        bug: Callable[[Exception], None],
    ) -> None:
        self.ring = ring
        self._kick = kick
        self._serve = serve
        self._finish = finish
        self._lost = lost
        self._bug = bug
        self._mutex = _thread.allocate_lock()  # guards the two flags, for a few instructions at a time
        self._stopping = False
        self._stopped = False
        self._alive = _thread.allocate_lock()  # held until the thread has ended
        self._alive.acquire()

    def start(self) -> None:
        _thread.start_new_thread(self._main, ())

    def ask_to_stop(self) -> None:
        # In this order: the thread looks at the flag whenever it has read the eventfd.
        with self._mutex:
            self._stopping = True
        os.eventfd_write(self._kick, 1)

    def go_on(self) -> None:
        """Take the request to stop back."""
        with self._mutex:
            self._stopping = False
            stopped, self._stopped = self._stopped, False
        if stopped:
            self._alive.acquire()  # it is at its end
            self.start()
        else:
            os.eventfd_write(self._kick, 1)  # notifications that came meanwhile were only read

    def wait_ended(self, timeout_sec: float) -> bool:
        """Whether the thread has ended; asked again, the answer is the same."""
        if not self._alive.acquire(timeout=timeout_sec):
            return False
        self._alive.release()
        return True

    def _main(self) -> None:
        try:
            try:
                self._run()
            except GuestError as error:
                # It waits for the main thread: its traceback would keep the guest's memory mapped until then.
                self._lost(error.with_traceback(None))
                while not self._finish_some():
                    os.eventfd_read(self._kick)
        except Exception as error:
            self._bug(error)
        finally:
            self._alive.release()

    def _run(self) -> None:
        ring, queue = self.ring, self.ring.queue
        while True:
            if not self._stopping:
                queue.backlog = False
                if self._serve(ring.index, queue):
                    ring.signal()
                if queue.backlog:
                    continue
            elif self._finish_some() and self._may_end():
                return
            os.eventfd_read(self._kick)

    def _finish_some(self) -> bool:
        """Give back what is done; whether nothing is in flight any more."""
        wants_interrupt, is_done = self._finish(self.ring.index, self.ring.queue)
        if wants_interrupt:
            self.ring.signal()
        return is_done

    def _may_end(self) -> bool:
        """Unless the request to stop has been taken back in the meantime."""
        with self._mutex:
            self._stopped = self._stopping
            return self._stopped
