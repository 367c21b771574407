"""The virtqueues of a network that another process serves.

A back end that ends takes frames along, which no network promises. So no end of the back end is the end of the device: its
virtqueues go on behind the last buffer that was given back, and the driver sees its link go down, and up when there is a back
end again. One that ends soon after its start, as the driver's broken rings can make it, is connected to more and more slowly.
"""

from __future__ import annotations

import os
import time

from vmservice.board.vhost_user_rings import WARNING_INTERVAL_SEC, VhostUserRings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.board.handed_over import HandedOver
    from vmservice.errors import HostError
    from vmservice.host.vhost_user_link import BackEndLink
    from vmservice.memory.guest_memory import GuestMemory

# One that has served for so long is connected to at once when it ends; any other after 1 second, 2, 4 and so on.
SETTLED_SEC = 10.0
LONGEST_PAUSE_SEC = 60.0


class VhostUserNetRings(VhostUserRings):
    """As VhostUserRings. `on_link` gets, in this owner's thread, whether the driver's frames go anywhere, whenever that has
    changed. The first pause between two connections is `first_pause_sec`.
    """

    def __init__(
        self,
        name: str,
        queues: int,
        link: BackEndLink,
        memory: GuestMemory,
        *,
        on_link: Callable[[bool], None],
        warn: Callable[[str], None],
        bug: Callable[[Exception], None],
        first_pause_sec: float = 1.0,
    ) -> None:
        super().__init__(name, queues, link, memory, is_volatile=False, on_config=lambda config: None, warn=warn, bug=bug)
        self._on_link = on_link
        self._first_pause_sec = first_pause_sec
        self._failures = 0  # since one has served for SETTLED_SEC
        self._served_since = float("inf")
        self._is_down = self._has_said_so = False

    def hold(self, is_held: bool) -> None:
        """Whether the virtqueues stay here, though there is a back end: nothing is sent, and nothing received."""
        self._is_held = is_held
        os.eventfd_write(self._eventfds.wake, 1)

    def look_again(self) -> None:
        """Do not wait any longer for a back end that may be there again."""
        self._not_before = float("-inf")
        os.eventfd_write(self._eventfds.wake, 1)

    def _hand_over(self, session: HandedOver) -> None:
        super()._hand_over(session)
        if self._busy is not session:
            return
        self._served_since = time.monotonic()
        if self._is_down:
            self._is_down = False
            self._on_link(True)
            if self._has_said_so:
                self._has_said_so = False
                self._warn(f"{self._link.name} is there again")

    def _died(self, session: HandedOver, why: HostError) -> None:
        """Single-threaded and in order, it has done what it has given back, and perhaps sent a few frames more."""
        self._link.close()
        session.rewind()
        session.save()
        self._release()
        self._go_down(why)

    def _unreachable(self, session: HandedOver, error: HostError) -> None:
        """The session stays wanted."""
        self._go_down(error)

    def _go_down(self, why: HostError) -> None:
        now = time.monotonic()
        if now - self._served_since >= SETTLED_SEC:
            self._failures = 0
        self._served_since = float("inf")
        doublings = min(self._failures - 1, 16)
        pause_sec = min(self._first_pause_sec * 2**doublings, LONGEST_PAUSE_SEC) if self._failures else 0.0
        self._failures += 1
        self._not_before = now + pause_sec
        if not self._is_down:
            self._is_down = True
            self._on_link(False)
        if now - self._warned_at >= WARNING_INTERVAL_SEC:
            self._warned_at = now
            self._has_said_so = True
            self._warn(f"{why}; the guest's link is down until it is there again")
