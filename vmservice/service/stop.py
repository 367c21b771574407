"""A stop that asks the guest first: SIGTERM, as the operator and systemd mean it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from vmservice.errors import VmmError, seconds
from vmservice.vm.state import LastExit, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.service.journal import Log
    from vmservice.service.sd_notify import Notifier
    from vmservice.vm.vm import Vm

# How often systemd hears that we are at work, and for how long it then leaves us alone.
_REPORT_PERIOD_SEC = 1.0
_EXTEND_SEC = 15

# A guest that is still starting has no driver for the button yet; one that knows it takes a second press for the same wish.
_PRESS_PERIOD_SEC = 10.0


class GracefulStop:
    """Presses the power button and waits for the guest, up to `timeout_sec`; `finish` is called when the VM is down by then.

    The guest's own power-off reaches the service as an event; it must call `cancel` then. `guest_status` is a clause that the
    guest says of itself, or empty.
    """

    _DOING = "stopping"
    _HELD = "the VM is being stopped"
    _ASKED = "asked the guest to power off"

    def __init__(
        self,
        vm: Vm,
        log: Log,
        notifier: Notifier,
        timeout_sec: int,
        finish: Callable[[], None],
        guest_status: Callable[[], str] = str,
    ) -> None:
        self._vm = vm
        self._log = log
        self._notifier = notifier
        self._timeout_sec = timeout_sec
        self._finish = finish
        self._guest_status = guest_status
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._announce()
        if self._vm.paused_by == LastExit.PANIC:
            self._force("the guest has panicked")
            return
        try:
            self._vm.hold(self._HELD)
        except VmmError as error:
            self._force(f"it cannot go on to power off: {error}")
            return
        if self._vm.state != State.RUNNING:  # or it did not run on: what it had done before it was paused was its end
            self._finish()
        elif self._timeout_sec == 0:
            self._force("shutdown_timeout is 0")
        else:
            self._log.info(f"{self._ASKED}; it has {seconds(self._timeout_sec)}")
            self._task = asyncio.get_running_loop().create_task(self._wait())
            self._task.add_done_callback(_show_bug)

    def force(self) -> None:
        """The second request: no more patience."""
        self._force("it was asked for a second time")

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _wait(self) -> None:
        begin = time.monotonic()
        next_press = begin
        while (elapsed := time.monotonic() - begin) < self._timeout_sec:
            if begin + elapsed >= next_press:
                self._press()
                next_press += _PRESS_PERIOD_SEC
            waiting = f"{self._DOING}: waiting for the guest to power off ({elapsed:.0f} of {self._timeout_sec} s)"
            self._report("; ".join(clause for clause in (waiting, self._guest_status()) if clause))
            await asyncio.sleep(min(_REPORT_PERIOD_SEC, self._timeout_sec - elapsed))
        self._force(f"the guest did not power off within {seconds(self._timeout_sec)}")

    def _press(self) -> None:
        try:
            self._vm.power_button()
        except VmmError as error:
            self._log.warning(f"the power button cannot be pressed: {error}")

    def _announce(self) -> None:
        self._notifier.stopping()

    def _report(self, text: str) -> None:
        self._notifier.status(text)
        self._notifier.extend_timeout(_EXTEND_SEC)

    def _force(self, why: str) -> None:
        self.cancel()
        self._notifier.status(f"forced to stop: {why}")
        self._vm.force_stop(why)
        self._finish()


class GracefulReboot(GracefulStop):
    """As a stop, and the unit stays: `finish` starts the guest again. What machined means by SIGINT (`machinectl reboot`)."""

    _DOING = "rebooting"
    _HELD = "the VM is being rebooted"
    _ASKED = "asked the guest to power off, to be started again"

    def _announce(self) -> None:
        """The unit does not stop."""

    def _report(self, text: str) -> None:
        self._notifier.status(text)


def _show_bug(task: asyncio.Task[None]) -> None:
    """An exception that a callback raises is for the loop's handler, which ends the process: nobody would force the stop."""
    if not task.cancelled():
        task.result()
