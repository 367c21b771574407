"""What a guest did that the service must act on, carried from any thread to the event loop.

The first vCPU runs before asyncio is even imported, so the queue is a list and an eventfd that a loop can watch later.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class EventKind:
    """What there is to act on; POWEROFF, RESET, ERROR and BUG end the guest's run."""

    POWEROFF = "poweroff"  # ACPI S5
    RESET = "reset"  # reset register, keyboard controller, triple fault
    ERROR = "error"  # KVM failed; the detail says how
    PANIC = "panic"  # its kernel says so, by pvpanic; it runs on until something is done about it
    PANIC_LINE = "panic line"  # its console says that its kernel has panicked, for the reason in the detail
    WATCHDOG = "watchdog"  # it did not feed its watchdog in time; it runs on likewise
    VCPUS = "vcpus"  # the guest took a new vCPU, or gave one back
    CALL = "call"  # a device has something to do that the guest's own threads are not to wait for: `call` does it
    BUG = "bug"  # we failed; the detail is a traceback, for the journal only


class GuestEvent:
    """One event; `source` is the machine that it came from, so that an event of a machine long gone is known as such.

    `call` is what an event of kind CALL is about; whoever posts that kind has one on its way at a time.
    """

    __slots__ = ("call", "detail", "kind", "source")

    def __init__(self, source: object, kind: str, detail: str = "", call: Callable[[], None] | None = None) -> None:
        self.source = source
        self.kind = kind
        self.detail = detail
        self.call = call


class EventQueue:
    """Posts from any thread, drained by one; `fd` is readable while there is something to drain."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._events: list[GuestEvent] = []

    def post(self, event: GuestEvent) -> None:
        self._events.append(event)
        os.eventfd_write(self.fd, 1)

    def drain(self) -> list[GuestEvent]:
        """All events posted so far, oldest first."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return []
        events = []
        while self._events:
            events.append(self._events.pop(0))
        return events

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
