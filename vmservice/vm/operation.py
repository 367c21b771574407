"""A verb that waits for the guest: what was asked for, until when it waits, and how it ends."""

from __future__ import annotations

from vmservice.errors import GuestNotResponding, VmmError, seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.board.timers import Timer

    CallLater = Callable[[float, Callable[[], None]], Timer]


class Operation:
    """One verb under way, from its constructor on; it ends once, and tells `on_end` None or what went wrong.

    `name` is the verb, `asked` what was asked of the guest ("a Resize to 3 vCPUs"). `is_done` says whether the guest has done
    its part. `withdraw` takes back what it has not done, and answers what then holds ("it has 2"). All in the main thread.
    """

    def __init__(
        self,
        name: str,
        asked: str,
        timeout_sec: float,
        *,
        call_later: CallLater,
        is_done: Callable[[], bool],
        withdraw: Callable[[], str],
    ) -> None:
        self.name = name
        self.asked = asked
        self.is_over = False
        self.on_end: Callable[[VmmError | None], None] = lambda _error: None
        self._timeout_sec = timeout_sec
        self._is_done = is_done
        self._withdraw = withdraw
        self._deadline = call_later(timeout_sec, self._expire)

    def check(self) -> None:
        """The guest has done something: that may have been the last of it."""
        if not self.is_over and self._is_done():
            self.end(None)

    def cancel(self, why: str) -> None:
        """End it, with what it asked for taken back; `why` begins the sentence ("the VM was paused")."""
        if not self.is_over:
            self._give_up(self._before(why))

    def abandon(self, why: str) -> None:
        """End it where there is nothing left to take anything back from; `why` begins the sentence."""
        if not self.is_over:
            self.end(GuestNotResponding(self._before(why)))

    def end(self, error: VmmError | None) -> None:
        """It is over: with None when it is done, else with what went wrong."""
        if not self.is_over:
            self.is_over = True
            self._deadline.cancel()
            self.on_end(error)

    def _before(self, why: str) -> str:
        return f"{why} before the guest had answered {self.asked}"

    def _expire(self) -> None:
        self._give_up(f"the guest did not answer {self.asked} within {seconds(self._timeout_sec)}")

    def _give_up(self, why: str) -> None:
        try:
            error: VmmError = GuestNotResponding(f"{why}; {self._withdraw()}")
        except VmmError as failure:
            error = failure
        self.end(error)
