"""A few threads for calls that wait for the host, so that whoever asks for them does not."""

from __future__ import annotations

import _thread
import ctypes
import time
from _queue import SimpleQueue  # `queue` has it too, and imports threading with it

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Job = Callable[[], None]

_PR_SET_NAME = 15  # <linux/prctl.h>; 15 bytes of it are kept

_libc = ctypes.CDLL(None)


class Pool:
    """At most `threads`, called `name` in the list of threads; each is started when there is something to do for it.

    `bug` is told, in any thread, of an exception in a job.
    """

    def __init__(self, name: str, threads: int, bug: Callable[[Exception], None]) -> None:
        self._name = name
        self._limit = threads
        self._bug = bug
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._mutex = _thread.allocate_lock()
        self._alive: list[_thread.LockType] = []  # one a thread, held until it has ended

    def put(self, job: Job) -> None:
        """Have `job` called soon; here, if there is no thread to be had. From any thread."""
        if len(self._alive) < self._limit:
            self._start_one()
        if self._alive:
            self._jobs.put(job)
        else:
            self._do(job)

    def end(self, timeout_sec: float) -> bool:
        """When nothing is put any more: do what there is, and end the threads. They are started anew by the next job.

        False when one is still at work after that time; it ends when that is done.
        """
        alive, self._alive = self._alive, []
        for _ in alive:
            self._jobs.put(None)
        deadline = time.monotonic() + timeout_sec
        return all(lock.acquire(timeout=max(deadline - time.monotonic(), 0.0)) for lock in alive)

    def _start_one(self) -> None:
        with self._mutex:
            if len(self._alive) >= self._limit:
                return
            alive = _thread.allocate_lock()
            alive.acquire()
            try:
                _thread.start_new_thread(self._main, (self._jobs, alive))
            except RuntimeError:  # no more threads for this account
                return
            self._alive.append(alive)

    def _main(self, jobs: SimpleQueue[Job | None], alive: _thread.LockType) -> None:
        try:
            _libc.prctl(_PR_SET_NAME, self._name.encode(), 0, 0, 0)
            while True:
                job = jobs.get()
                if job is None:
                    return
                self._do(job)
                del job  # and the guest's buffers with it
        finally:
            alive.release()

    def _do(self, job: Job) -> None:
        try:
            job()
        except Exception as error:
            self._bug(error)
