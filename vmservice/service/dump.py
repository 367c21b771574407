"""Where each vCPU is, for the journal: when somebody asks by SIGQUIT, and when a VM or its guest gives no sign of life."""

from __future__ import annotations

import _thread
import time
import traceback
from typing import TYPE_CHECKING

from vmservice.service import message_ids
from vmservice.service.journal import NOTICE

if TYPE_CHECKING:
    from vmservice.service.journal import Log
    from vmservice.vm.vm import Vm

# One message holds no more, and a line of it is never cut.
_ENTRY_LIMIT_CHARS = 12 * 1024

# A guest may leave its watchdog unfed every second. Who asks gets an answer each time.
_UNASKED_PERIOD_SEC = 60.0


class Dump:
    """Of `vm`, to `log`. The vCPUs have some seconds to come out of the guest, for which the caller waits or does not."""

    def __init__(self, vm: Vm, log: Log) -> None:
        self._vm = vm
        self._log = log
        self._mutex = _thread.allocate_lock()
        self._unasked_at = float("-inf")

    def ask(self) -> None:
        """SIGQUIT: a thread does it."""
        self._begin("asked for by SIGQUIT")

    def soon(self, why: str) -> None:
        """As `ask`, but not again within a minute. From any thread."""
        if self._is_due():
            self._begin(why)

    def now(self, why: str) -> None:
        """As `soon`, and the caller waits for it: what it does next may take the vCPUs away."""
        if self._is_due() and self._mutex.acquire(blocking=False):
            self._write(why)

    def wait(self) -> None:
        """Until none is under way: before the event loop ends."""
        with self._mutex:
            return

    def _is_due(self) -> bool:
        now = time.monotonic()
        if now - self._unasked_at < _UNASKED_PERIOD_SEC:
            return False
        self._unasked_at = now
        return True

    def _begin(self, why: str) -> None:
        if self._mutex.acquire(blocking=False):  # else one is under way
            _thread.start_new_thread(self._write, (why,))

    def _write(self, why: str) -> None:
        """With the mutex, which it gives back."""
        try:
            lines = self._vm.describe() or ["there is no guest"]
            entry, chars = [f"the vCPUs, {why}:"], 0
            for line in lines:
                if chars + len(line) > _ENTRY_LIMIT_CHARS:
                    self._say(entry)
                    entry, chars = ["the vCPUs, continued:"], 0
                entry.append(line)
                chars += len(line) + 1
            self._say(entry)
        except Exception:  # a VM that cannot be looked at goes on all the same
            self._log.error(f"internal error: the vCPUs cannot be described: {traceback.format_exc()}")
        finally:
            self._mutex.release()

    def _say(self, entry: list[str]) -> None:
        self._log.message(NOTICE, "\n".join(entry), message_ids.VM_DUMP)
