"""The service manager's watchdog: a sign of life only while the event loop, every vCPU's thread and the devices give one.

On a thread of its own, so that somebody is left to say who does not answer when it is the loop. Whatever a guest does, its
vCPUs' threads answer: a signal takes them out of it. A VM that is paused or shut down has nothing that would not answer.
"""

from __future__ import annotations

import _thread
import asyncio
import time
from typing import TYPE_CHECKING

from vmservice.errors import seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.service.journal import Log
    from vmservice.service.sd_notify import Notifier
    from vmservice.vm.vm import Vm

# Of the manager's patience. What is asked has one such period for its answer, on a busy host too, and is killed only when it
# has given none in three of them.
_PERIODS = 4


class Watchdog:
    """Tells the manager, which kills the VM when it has heard nothing for `timeout_sec`, that `vm` and the loop are well.

    `trouble` is what is not well, as words for `systemctl status`, or empty; `on_well` is called in the loop when it is over.
    `dump` writes where the vCPUs are, when trouble begins.
    """

    def __init__(
        self,
        vm: Vm,
        log: Log,
        notifier: Notifier,
        timeout_sec: float,
        on_well: Callable[[], None],
        dump: Callable[[str], None],
    ) -> None:
        self.trouble = ""
        self._vm = vm
        self._log = log
        self._notifier = notifier
        self._period_sec = timeout_sec / _PERIODS
        self._on_well = on_well
        self._dump = dump
        self._loop: asyncio.AbstractEventLoop
        self._loop_asked = False
        self._stop = _thread.allocate_lock()  # released to end the thread
        self._ended = _thread.allocate_lock()  # held by the thread for as long as it lives

    def start(self) -> None:
        """From the loop, which counts as alive with that."""
        self._loop = asyncio.get_running_loop()
        self._notifier.watchdog()
        self._stop.acquire()
        self._ended.acquire()
        _thread.start_new_thread(self._main, ())

    def stop(self) -> None:
        """Before the loop is closed."""
        self._stop.release()
        self._ended.acquire(timeout=self._period_sec)

    def _main(self) -> None:
        try:
            while not self._stop.acquire(timeout=self._period_sec):
                self._look()
        except Exception as error:
            self._report(error)
        finally:
            self._ended.release()

    def _look(self) -> None:
        silent = self._vm.silent(self._period_sec / 2)
        if not self._loop_asked:
            self._loop_asked = True
            self._loop.call_soon_threadsafe(self._loop_answers)
        elif time.monotonic() > self._vm.building_until:
            silent.insert(0, "the event loop")
        if not silent:
            self._notifier.watchdog()
        trouble = f"no answer from {', '.join(silent)}" if silent else ""
        if trouble == self.trouble:
            return
        self.trouble = trouble
        if trouble:
            lasting = f"for {seconds(round(self._period_sec, 2))}; if that lasts, the service manager's watchdog ends the VM"
            self._log.error(f"{trouble} {lasting}")
            self._notifier.status(trouble)
            self._dump(f"as there is {trouble}")
        else:
            self._log.info("everything answers again")
            self._loop.call_soon_threadsafe(self._on_well)

    def _loop_answers(self) -> None:
        self._loop_asked = False

    def _report(self, error: Exception) -> None:
        """Our bug, for the loop to act on, unless that is being closed."""
        if self._stop.locked():
            context = {"message": "the watchdog failed", "exception": error}
            self._loop.call_soon_threadsafe(self._loop.call_exception_handler, context)
