"""What devices know of time that is to come: a call later, which can be taken back. `board/timers.py` has the real ones."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Timer(Protocol):
        def cancel(self) -> None:
            """The call is not made any more. Nothing happens when it has been made."""

    CallLater = Callable[[float, Callable[[], None]], Timer]
    """`call_later(delay_sec, callback)`: the callback is called then, once, with the device's lock held."""
