"""Something that one thread has another one do, and waits for."""

from __future__ import annotations

import _thread

from vmservice.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

ANSWER_SEC = 10.0


class Task:
    """`run` is for the other thread; a HostError of `call` is raised by `wait`, where `who` reads as what is waited for."""

    __slots__ = ("_call", "_done", "_error")

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._error: HostError | None = None
        self._done = _thread.allocate_lock()
        self._done.acquire()

    def run(self) -> None:
        try:
            self._call()
        except HostError as error:
            self._error = error
        finally:
            self._done.release()

    def wait(self, who: str) -> None:
        if not self._done.acquire(timeout=ANSWER_SEC):
            raise HostError(f"{who} does not answer, nor does it learn of changes of the guest's memory")
        if self._error is not None:
            raise self._error
