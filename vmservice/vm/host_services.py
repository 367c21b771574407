"""What the process has for its machines, and keeps when one of them goes."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmservice.board.timers import Timers
    from vmservice.kvm.system import Kvm
    from vmservice.plug.backend import Backends
    from vmservice.vm.events import EventQueue


class HostServices:
    """`on_input_room` is told, in the event loop's thread, the console that has room for typed bytes again. `info` and `warn`
    take messages for the log, from any thread. `credentials`, by name, are for each guest; they are secret."""

    __slots__ = (
        "_watchdog_fired",
        "backends",
        "credentials",
        "events",
        "info",
        "kvm",
        "on_input_room",
        "progress",
        "timers",
        "warn",
    )

    def __init__(
        self,
        kvm: Kvm,
        events: EventQueue,
        timers: Timers,
        backends: Backends,
        *,
        on_input_room: Callable[[str], None],
        info: Callable[[str], None],
        warn: Callable[[str], None],
        credentials: Mapping[str, bytes] | None = None,
    ) -> None:
        self.kvm = kvm
        self.events = events
        self.timers = timers
        self.backends = backends
        self.on_input_room = on_input_room
        self.info = info
        self.warn = warn
        self.credentials = credentials or {}
        self.progress: Callable[[], None] | None = None  # called while something takes long, as long as it goes on
        self._watchdog_fired = False

    def note_watchdog(self) -> None:
        """The next machine is to know that the watchdog ended the guest of this one."""
        self._watchdog_fired = True

    def take_watchdog_fired(self) -> bool:
        fired, self._watchdog_fired = self._watchdog_fired, False
        return fired
