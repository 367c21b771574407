"""What the guest's own service manager says of it, with `[service] ready = "guest"`: that it is ready, and how it does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from vmservice.errors import seconds
from vmservice.service.guest_link import GuestLink
from vmservice.service.journal import INFO
from vmservice.vm.state import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.host.guest_listener import GuestListener
    from vmservice.service.guest_notify import GuestMessage
    from vmservice.service.journal import Log
    from vmservice.service.sd_notify import Notifier
    from vmservice.vm.vm import Vm

# While the guest boots, the service manager is asked for that much more time, that often.
_EXTEND_PERIOD_SEC = 5.0
_EXTEND_SEC = 30.0

# systemd in a guest says every third of a second what it waits for, and any guest may do so more often.
_STATUS_PERIOD_SEC = 0.25
# How many lines in the journal its messages may be; a boot of Debian is some thirty.
_LINES_MAX = 100
_LINES_PERIOD_SEC = 30.0


class GuestReady:
    """The guest of `vm` as it says itself. `status` is a clause for `systemctl status`, empty where there is nothing to say.

    `changed` is told when it is another one, `give_up` once, with a sentence, when the guest has run for `timeout_sec`
    without being ready. `exit_status` is what its last message asks for, None where it does not.
    """

    def __init__(
        self,
        vm: Vm,
        listener: GuestListener,
        log: Log,
        notifier: Notifier,
        timeout_sec: int,
        *,
        changed: Callable[[], None],
        give_up: Callable[[str], None],
    ) -> None:
        self.status = ""
        self.exit_status: int | None = None
        self._goes_down = False
        self._said = ""
        self._vm = vm
        self._log = log
        self._notifier = notifier
        self._timeout_sec = timeout_sec
        self._waited_sec = 0.0
        self._changed = changed
        self._give_up = give_up
        self._link = GuestLink(listener, self._on_message)
        self._next_wait: asyncio.TimerHandle | None = None
        self._next_status: asyncio.TimerHandle | None = None
        self._lines = self._unsaid_lines = 0
        self._lines_since = 0.0

    def start(self) -> None:
        """Within the running loop."""
        self._loop = asyncio.get_running_loop()
        self._link.start()
        self._wait(0.0)

    def close(self) -> None:
        self.stop_waiting()
        if self._next_status is not None:
            self._next_status.cancel()
        self._link.close()

    def stop_waiting(self) -> None:
        """It is ready, or is not to become so any more."""
        if self._next_wait is not None:
            self._next_wait.cancel()
            self._next_wait = None

    def forget(self) -> None:
        """The guest is another one now, or none: what the last one said is of no meaning."""
        self._goes_down, self._said, self.exit_status = False, "", None
        self._link.hang_up()
        self._tell()

    def _wait(self, passed_sec: float) -> None:
        """Every few seconds until the guest is ready. Time in which it is paused, or does not run yet, does not count."""
        self._next_wait = None
        if self._vm.state == State.RUNNING:
            self._waited_sec += passed_sec
        left_sec = self._timeout_sec - self._waited_sec
        if left_sec <= 0:
            self._give_up(f"the guest has not said READY=1 within {seconds(self._timeout_sec)}")
            return
        self._notifier.extend_timeout(_EXTEND_SEC)
        period_sec = min(_EXTEND_PERIOD_SEC, left_sec)
        self._next_wait = self._loop.call_later(period_sec, self._wait, period_sec)

    def _on_message(self, message: GuestMessage) -> None:
        if message.fields:
            self._say(", ".join(f"{name}={value}" for name, value in message.fields.items()), message.fields)
        if message.exit_status is not None:
            self.exit_status = message.exit_status
        if message.goes_down and not self._goes_down:
            self._goes_down = True
            self._log.info("the guest goes down")
        if message.status is not None:
            self._said = message.status
        if message.is_ready and not self._vm.guest_ready and self._vm.state in (State.RUNNING, State.PAUSED):
            self._log.info("the guest is ready")
            self.stop_waiting()
            self._vm.note_guest_ready()
        if self._next_status is None:
            self._tell()
            self._next_status = self._loop.call_later(_STATUS_PERIOD_SEC, self._tell_later)

    def _tell_later(self) -> None:
        self._next_status = None
        self._tell()

    def _tell(self) -> None:
        parts = ["goes down"] if self._goes_down else []
        parts += [self._said] if self._said else []
        status = f"guest: {': '.join(parts)}" if parts else ""
        if status != self.status:
            self.status = status
            self._changed()

    def _say(self, text: str, fields: dict[str, str]) -> None:
        """A line in the journal, with what the guest said as fields; only so many in a while."""
        now = self._loop.time()
        if now - self._lines_since >= _LINES_PERIOD_SEC:
            self._lines, self._lines_since = 0, now
        self._lines += 1
        if self._lines > _LINES_MAX:
            self._unsaid_lines += 1
            return
        before = f" ({self._unsaid_lines} messages before without a line here)" if self._unsaid_lines else ""
        self._unsaid_lines = 0
        self._log.message(INFO, f"the guest says {text}{before}", **fields)
