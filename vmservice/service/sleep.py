"""The host sleeps: a running VM is paused before, and goes on afterwards, so that its guest's watchdogs see no gap.

Only what was paused here is resumed here: a VM that its operator paused, or touched in the meantime, stays as it is.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from vmservice.control.bus import bus_address
from vmservice.control.login import Login
from vmservice.errors import VmmError
from vmservice.vm.state import State

if TYPE_CHECKING:
    from vmservice.service.journal import Log
    from vmservice.vm.vm import Vm


class HostSleep:
    """Pauses `vm` while the host sleeps, as the logind on `bus` tells, for a VM on the session bus the system's."""

    def __init__(self, vm: Vm, bus: str, log: Log) -> None:
        self._vm = vm
        self._log = log
        self._login = Login(bus_address("system" if bus == "session" else bus), vm.name, self._on_sleep, log.info)
        self._asleep = False
        self._queued = False
        self._acting = False
        self._paused = False
        vm.subscribe(self._on_change)

    async def run(self) -> None:
        """Until cancelled."""
        await self._login.run()

    def _on_sleep(self, asleep: bool) -> None:
        """Words that came in together are one: the last."""
        self._asleep = asleep
        if not self._queued:
            self._queued = True
            asyncio.get_running_loop().call_soon(self._act)

    def _act(self) -> None:
        self._queued = False
        if self._asleep:
            self._pause()
            self._login.release()
        else:
            self._resume()
            self._login.hold()

    def _pause(self) -> None:
        if self._vm.state != State.RUNNING:
            return
        self._acting = True
        try:
            self._vm.pause()
            self._paused = True
            self._log.info("the host is about to sleep; the VM resumes when it is awake again")
        except VmmError as error:
            self._log.warning(f"the host is about to sleep, and the VM cannot be paused: {error}")
        finally:
            self._acting = False

    def _resume(self) -> None:
        if not self._paused:
            return
        self._paused = False
        try:
            self._vm.resume()
        except VmmError as error:
            self._log.error(f"the host is awake again, and the VM cannot go on: {error}")

    def _on_change(self, changes: dict[str, object]) -> None:
        if "State" in changes and not self._acting:
            self._paused = False
