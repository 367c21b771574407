"""What a guest does to its whole machine: power off, reset, panic. Devices and vCPU threads say it, the main thread acts."""

from __future__ import annotations

from vmservice.errors import VmmError
from vmservice.vm.events import EventKind, GuestEvent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.vm.events import EventQueue


class GuestRequests:
    """Posts events to `events`, as those of `source`: the machine, once that is whole.

    `has_left` is true when the guest is to run no further. `explain` adds to the text of a fault what the host knows about it.
    """

    def __init__(self, events: EventQueue, explain: Callable[[], str]) -> None:
        self.source: object = self
        self.has_left = False
        self._events = events
        self._explain = explain

    def poweroff(self) -> None:
        self._leave(EventKind.POWEROFF)

    def reset(self, how: str) -> None:
        """`how` is a clause for the journal: who asked, and by what."""
        self._leave(EventKind.RESET, how)

    def panic(self) -> None:
        """The guest runs on: whether it is to go on later is for the policy to say."""
        if not self.has_left:
            self._post(EventKind.PANIC)

    def panic_line(self, reason: str) -> None:
        self._post(EventKind.PANIC_LINE, reason)

    def watchdog(self) -> None:
        if not self.has_left:
            self._post(EventKind.WATCHDOG)

    def vcpus_changed(self) -> None:
        self._post(EventKind.VCPUS)

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Have the main thread call `callback`, once the machine is not paused: what a device has to do besides."""
        self._events.post(GuestEvent(self.source, EventKind.CALL, call=callback))

    def fault(self, detail: str) -> None:
        """Neither the guest nor the machine can go on."""
        self._leave(EventKind.ERROR, detail + self._explain())

    def failed(self, error: Exception) -> None:
        """Whatever ended a vCPU's loop ends this guest, not the process."""
        if isinstance(error, VmmError):
            self.fault(str(error))
            return
        import traceback

        self._leave(EventKind.BUG, "".join(traceback.format_exception(error)))

    def _leave(self, kind: str, detail: str = "") -> None:
        """The first word counts: what other vCPUs do until they are stopped changes nothing any more."""
        if not self.has_left:
            self.has_left = True
            self._post(kind, detail)

    def _post(self, kind: str, detail: str = "") -> None:
        self._events.post(GuestEvent(self.source, kind, detail))
