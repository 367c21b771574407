"""Time from the service manager for what takes long and goes on: memory that is made present, or given back."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.service.outbox import Outbox
    from vmservice.service.sd_notify import Notifier

# What takes less is not worth a word, and the thread that says it is started early for it.
_PERIOD_SEC = 2.0
_EXTEND_SEC = 30.0


class Progress:
    """Called after each piece of the work, in the main thread: the start or the stop may then last half a minute longer.

    Nothing is said for work that stands still, so that systemd ends it. `status` is what `systemctl status` shows meanwhile.
    """

    def __init__(self, notifier: Notifier, outbox: Outbox) -> None:
        self.status = "starting: the guest's memory is being made"
        self._notifier = notifier
        self._outbox = outbox
        self._due = time.monotonic() + _PERIOD_SEC

    def __call__(self) -> None:
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + _PERIOD_SEC
        self._notifier.extend_timeout(_EXTEND_SEC)
        if self.status:
            self._notifier.status(self.status)
        self._outbox.start()
