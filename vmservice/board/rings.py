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
    ) -> None:
        self.transport_features = TRANSPORT_FEATURES
        self._name = name
        self._serve = serve
        self._bug = bug
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
            thread = _RingThread(ring, self.kicks[ring.index], self._serve, lost, self._bug)
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


class _RingThread:
    def __init__(
        self,
        ring: Ring,
        kick: int,
        serve: Callable[[int, Queue], bool],
        lost: Callable[[GuestError], None],
        bug: Callable[[Exception], None],
    ) -> None:
        self.ring = ring
        self._kick = kick
        self._serve = serve
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

    def wait_ended(self, timeout_sec: float) -> bool:
        """Whether the thread has ended; asked again, the answer is the same."""
        if not self._alive.acquire(timeout=timeout_sec):
            return False
        self._alive.release()
        return True

    def _main(self) -> None:
        try:
            self._run()
        except GuestError as error:
            self._lost(error)
        except Exception as error:
            self._bug(error)
        finally:
            self._alive.release()

    def _run(self) -> None:
        ring, queue = self.ring, self.ring.queue
        while not self._is_to_stop():
            queue.backlog = False
            if self._serve(ring.index, queue):
                ring.signal()
            if not queue.backlog:
                os.eventfd_read(self._kick)

    def _is_to_stop(self) -> bool:
        with self._mutex:
            self._stopped = self._stopping
            return self._stopped
