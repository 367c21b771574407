"""Waiting for a VM's state: told by signals, never by asking again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from dbus_next.constants import MessageType
from dbus_next.message import Message

from vmservice.client.bus import Bus, CallFailed, NotInTime, printable
from vmservice.client.vms import GONE, NOBODY_THERE, failure
from vmservice.control.names import DAEMON, DAEMON_PATH, INTERFACE, OBJECT_PATH, PROPERTIES_INTERFACE, bus_name
from vmservice.errors import HostError
from vmservice.vm.state import State

# What nothing but the timeout of the whole wait ends.
FOREVER = float("inf")
# No state of a VM, but that nobody has its name.
NO_PROCESS = ""


class StateWatch:
    """Follows one VM, through ends and new starts of its process, until it is or has been in state `wanted`.

    A VM without a process is shut down, and NO_PROCESS. For any other state its start is waited for, which `say` tells once.
    """

    def __init__(self, bus: Bus, name: str, wanted: str, say: Callable[[str], None] = lambda _text: None) -> None:
        self._bus = bus
        self._name = name
        self._bus_name = bus_name(name)
        self._wanted = wanted
        self._say = say
        self._owner = ""  # the connection whose word counts; the name has no owner while this is empty
        self._last_seen = ""
        self._told = False
        self._limit = asyncio.timeout(None)
        self._given_sec = 0.0
        self.watching = asyncio.Event()  # nothing that happens from then on is missed
        self._reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._looks: set[asyncio.Task[None]] = set()

    async def wait(self, timeout_sec: float | None) -> None:
        """Returns when the state is reached. Raises NotInTime, or HostFacilityMissing when the bus goes."""
        self._bus.transport.add_message_handler(self._on_message)
        disconnected = self._bus.transport.disconnected
        try:
            async with asyncio.timeout(timeout_sec) as self._limit:
                await self._begin()
                self.watching.set()
                await asyncio.wait({self._reached, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            limit = f"{timeout_sec or self._given_sec:g} s"
            raise NotInTime(f"the VM {self._name} did not reach state {self._wanted} within {limit}; {self._now()}") from None
        finally:
            for look in self._looks:
                look.cancel()
            await asyncio.gather(*self._looks, return_exceptions=True)
            self._bus.transport.remove_message_handler(self._on_message)
        if not self._reached.done():
            raise self._bus.lost()
        self._reached.result()

    def give(self, timeout_sec: float) -> None:
        """So many seconds from now are left to a `wait` without a timeout."""
        if self._reached.done() or self._bus.transport.disconnected.done():
            return
        self._given_sec = timeout_sec
        self._limit.reschedule(asyncio.get_running_loop().time() + timeout_sec)

    async def _begin(self) -> None:
        """First the signals, then the look: nothing can happen unseen between the two."""
        await self._add_match(f"sender='{DAEMON}',path='{DAEMON_PATH}',member='NameOwnerChanged',arg0='{self._bus_name}'")
        await self._add_match(
            f"sender='{self._bus_name}',path='{OBJECT_PATH}',interface='{PROPERTIES_INTERFACE}',"
            f"member='PropertiesChanged',arg0='{INTERFACE}'"
        )
        with contextlib.suppress(CallFailed):  # nobody has the name
            await self._bus.ask_daemon("GetNameOwner", "s", [self._bus_name], self._on_first_owner)

    async def _add_match(self, rule: str) -> None:
        try:
            await self._bus.ask_daemon("AddMatch", "s", [f"type='signal',{rule}"])
        except CallFailed as failed:
            raise HostError(f"the {self._bus.kind} bus does not deliver the signals of VMs: {failed.text}") from None

    def _now(self) -> str:
        if not self._owner:
            return "it is not running"
        return f"it is {self._last_seen}" if self._last_seen else "it does not answer"

    def _on_message(self, message: Message) -> None:
        """A signal may be sent straight to us by anybody, whatever the match rules say: the sender is looked at."""
        if message.message_type is not MessageType.SIGNAL:
            return
        if message.sender == DAEMON and message.member == "NameOwnerChanged" and message.signature == "sss":
            name, _before, owner = message.body
            if name == self._bus_name:
                self._on_owner(owner)
        elif message.sender == self._owner and message.path == OBJECT_PATH and message.member == "PropertiesChanged":
            interface, changed = message.body[:2] if message.signature == "sa{sv}as" and message.body else ("", {})
            if interface == INTERFACE and "State" in changed:
                self._on_state(changed["State"].value)

    def _on_first_owner(self, reply: Message) -> None:
        self._on_owner(reply.body[0] if reply.message_type is MessageType.METHOD_RETURN else "")

    def _on_owner(self, owner: str) -> None:
        self._owner = owner
        self._last_seen = ""
        if owner:
            look = asyncio.ensure_future(self._look(owner))
            self._looks.add(look)
            look.add_done_callback(self._looks.discard)
        elif self._wanted in (State.SHUTDOWN, NO_PROCESS):
            self._end(None)
        elif not self._told:
            self._told = True
            self._say(f"the VM {self._name} is not running; waiting for it to start")

    async def _look(self, owner: str) -> None:
        """The state that the VM came to the bus with. It has the time that the whole wait has."""
        try:
            state = await self._bus.get(self._bus_name, OBJECT_PATH, INTERFACE, "State", timeout_sec=FOREVER)
        except CallFailed as failed:
            if not (failed.by_bus and failed.name in (*NOBODY_THERE, GONE)):  # of its end NameOwnerChanged tells
                self._end(failure(self._bus, self._name, "look at", failed))
            return
        except HostError as error:
            self._end(error)
            return
        if owner == self._owner:
            self._on_state(state)

    def _on_state(self, state: object) -> None:
        self._last_seen = printable(str(state))
        if state == self._wanted:
            self._end(None)

    def _end(self, error: Exception | None) -> None:
        if self._reached.done():
            return
        if error is None:
            self._reached.set_result(None)
        else:
            self._reached.set_exception(error)
