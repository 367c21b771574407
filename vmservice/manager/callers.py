"""Who uses the manager: programs that have called it once, for as long as they are on the bus.

Nobody can see whether a program listens to our signals, but a program that does has asked first what there is to listen to. So
the manager stays while one that has called it is there, and for a while after the last one has gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dbus_next.constants import MessageFlag
from dbus_next.message import Message

from vmservice.client.bus import Bus, CallFailed, NotInTime
from vmservice.control.dbus_transport import daemon_call
from vmservice.control.names import DAEMON
from vmservice.errors import HostFacilityMissing

# Each is a rule at the bus, of which dbus-daemon's system bus lets a connection have 512.
CALLERS_LIMIT = 256


class Callers:
    """`on_idle()` is called when no caller has been there for `idle_sec`, from the beginning on.

    `call_later(seconds, callback)` gives what can be cancelled. With more callers than can be watched, it is never idle again.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        idle_sec: float,
        call_later: Callable[[float, Callable[[], None]], object],
        on_idle: Callable[[], None],
    ) -> None:
        self._bus = bus
        self._idle_sec = idle_sec
        self._call_later = call_later
        self._on_idle = on_idle
        self._callers: set[str] = set()
        self._checks: set[asyncio.Task[None]] = set()
        self._too_many = False
        self._timer: object = None
        self._wait()

    def saw(self, sender: str) -> None:
        """It has called."""
        if sender in self._callers:
            return
        if len(self._callers) >= CALLERS_LIMIT:
            self._too_many = True
            self._stop_waiting()
            return
        self._callers.add(sender)
        self._stop_waiting()
        self._send("AddMatch", sender)
        check = asyncio.get_running_loop().create_task(self._check(sender))
        self._checks.add(check)
        check.add_done_callback(self._checks.discard)

    def on_message(self, message: Message) -> None:
        if message.sender == DAEMON and message.member == "NameOwnerChanged" and message.signature == "sss":
            name, _old, new = message.body
            if not new:
                self._gone(name)

    async def close(self) -> None:
        self._stop_waiting()
        for check in self._checks:
            check.cancel()
        if self._checks:
            await asyncio.wait(self._checks)

    async def _check(self, sender: str) -> None:
        """It may have gone before the bus was to tell of that."""
        try:
            await self._bus.ask_daemon("GetNameOwner", "s", [sender])
        except CallFailed:
            self._gone(sender)
        except (NotInTime, HostFacilityMissing):
            return

    def _gone(self, sender: str) -> None:
        if sender in self._callers:
            self._callers.discard(sender)
            self._send("RemoveMatch", sender)
            if not self._callers:
                self._wait()

    def _wait(self) -> None:
        self._stop_waiting()
        if not self._too_many:
            self._timer = self._call_later(self._idle_sec, self._on_idle)

    def _stop_waiting(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()  # type: ignore[attr-defined]

    def _send(self, member: str, sender: str) -> None:
        rule = f"type='signal',sender='{DAEMON}',interface='{DAEMON}',member='NameOwnerChanged',arg0='{sender}'"
        call = daemon_call(member, "s", [rule])
        call.flags = MessageFlag.NO_REPLY_EXPECTED
        self._bus.transport.send(call)
