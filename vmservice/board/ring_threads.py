"""What ring owners with threads have in common: eventfds, and threads that are asked to stop and may be asked to go on."""

from __future__ import annotations

import _thread
import os
import time

from vmservice.devices.virtio.rings import TRANSPORT_FEATURES
from vmservice.errors import GuestError, HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# For threads that have just begun, when there is none for the next virtqueue.
_START_FAILED_SEC = 10.0


class RingThread:
    """A subclass serves in `run` until `may_end`, after it has found `is_stopping`; `wake` has it look.

    `on_lie` is told, in the thread and at its end, of a driver that breaks the rules; `bug` of an exception that is no
    driver's fault.
    """

    def __init__(self, bug: Callable[[Exception], None]) -> None:
        self.is_stopping = False
        self._bug = bug
        self._mutex = _thread.allocate_lock()  # guards the two flags, for a few instructions at a time
        self._stopped = False
        self._alive = _thread.allocate_lock()  # held until the thread has ended
        self._alive.acquire()

    def run(self) -> None:
        raise NotImplementedError

    def wake(self) -> None:
        raise NotImplementedError

    def on_lie(self, error: GuestError) -> None:
        raise NotImplementedError

    def start(self) -> None:
        _thread.start_new_thread(self._main, ())

    def ask_to_stop(self) -> None:
        # In this order: the thread looks at the flag whenever it has been woken.
        with self._mutex:
            self.is_stopping = True
        self.wake()

    def go_on(self) -> None:
        """Take the request to stop back."""
        with self._mutex:
            self.is_stopping = False
            stopped, self._stopped = self._stopped, False
        if stopped:
            self._alive.acquire()  # it is at its end
            self.start()
        else:
            self.wake()  # notifications that came meanwhile were only read

    def wait_ended(self, timeout_sec: float) -> bool:
        """Whether the thread has ended; asked again, the answer is the same."""
        if not self._alive.acquire(timeout=timeout_sec):
            return False
        self._alive.release()
        return True

    def may_end(self) -> bool:
        """In the thread: unless the request to stop has been taken back in the meantime."""
        with self._mutex:
            self._stopped = self.is_stopping
            return self._stopped

    def _main(self) -> None:
        try:
            try:
                self.run()
            except GuestError as error:
                # It waits for the main thread: its traceback would keep the guest's memory mapped until then.
                self.on_lie(error.with_traceback(None))
        except Exception as error:
            self._bug(error)
        finally:
            self._alive.release()


class RingThreads:
    """Of the device called `name`, which has `queues` virtqueues. A subclass begins its threads.

    `kicks` are eventfds by virtqueue. A write of 1 is a notification: by `notify`, or by KVM where the address that the driver
    notifies at is attached to it (ioeventfd).
    """

    def __init__(self, name: str, queues: int, flags: int = 0) -> None:
        """`flags`: of the eventfds, beside close-on-exec."""
        self.transport_features = TRANSPORT_FEATURES
        self._name = name
        self._threads: list[RingThread] = []
        self.kicks: list[int] = []
        try:
            for _ in range(queues):
                self.kicks.append(os.eventfd(0, os.EFD_CLOEXEC | flags))
        except OSError as error:
            self.close()
            raise HostError.from_os(f"no eventfd for a virtqueue of {name}", error) from error

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

    def _check_stopped(self) -> None:
        if self._threads:
            raise ValueError(f"the virtqueues of {self._name} are served already")

    def _begin(self, thread: RingThread, what: str) -> None:
        """HostError, with none left, when there is no thread for `what`."""
        try:
            thread.start()
        except RuntimeError as error:
            self.stop(_START_FAILED_SEC)
            raise HostError(f"cannot start a thread for {what} of {self._name}: {error}") from error
        self._threads.append(thread)
