"""The manager on the bus: one connection at a time, on which all that it knows is read anew. It keeps nothing.

So what a client is told after a restart, of the manager, of the bus or of systemd, is what it would have been told without.
"""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import Callable

from dbus_next.constants import MessageFlag, MessageType, NameFlag, RequestNameReply
from dbus_next.message import Message

from vmservice.client.bus import Bus, CallFailed
from vmservice.config.names import DROP_INS_SUFFIX
from vmservice.control.bus import BusNameTaken, bus_address
from vmservice.control.dbus_message import BODY_LIMIT_BYTES, packed
from vmservice.control.dbus_transport import UNSENT_LIMIT, daemon_call, failure_reason
from vmservice.control.errors import ACCESS_DENIED, LIMITS_EXCEEDED, OUR_BUG, BusFault, wire_text
from vmservice.control.names import PROPERTIES_INTERFACE
from vmservice.errors import HostError, NotPermitted, VmmError, seconds
from vmservice.host.folder_watch import FolderWatch
from vmservice.manager import running, units
from vmservice.manager.callers import Callers
from vmservice.manager.configured import Configured
from vmservice.manager.model import Model, Vm
from vmservice.manager.names import FAILED, INTERFACE, OBJECT_MANAGER, OBJECT_PATH, VM_INTERFACE, vm_path
from vmservice.manager.objects import MANAGED_OBJECTS, Objects, changed_variants, interfaces_of
from vmservice.manager.reader import ManagerTransport

FIRST_RETRY_SEC = 0.1
LAST_RETRY_SEC = 5.0
CONNECT_TIMEOUT_SEC = 10.0
# How long the name waits for all VMs and systemd to answer. Whoever has activated the manager waits too, for 25 seconds.
LOOK_PATIENCE_SEC = 5.0
IDLE_SEC = 60.0
FAREWELL_TIMEOUT_SEC = 5.0
# Replies to GetManagedObjects that may wait for the bus: each may be a megabyte.
LONG_REPLIES_LIMIT = 8


class Manager:
    """The manager on `bus`, "system", "session" or an address, of the VMs with configuration files in `folder`.

    Made inside the running event loop. `on_acquired()` is called each time its name is owned.
    """

    def __init__(
        self,
        bus: str,
        folder: str,
        version: str,
        *,
        on_acquired: Callable[[], None],
        on_leaving: Callable[[], None],
        log: Callable[[str], None],
        idle_sec: float = IDLE_SEC,
        call_later: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        self._address = bus_address(bus)
        self._user = bus == "session"
        self._folder = folder
        self._version = version
        self._on_acquired = on_acquired
        self._on_leaving = on_leaving
        self._log = log
        self._idle_sec = idle_sec
        self._call_later = call_later or asyncio.get_running_loop().call_later
        self._closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def close(self) -> None:
        """`run` leaves the bus and returns."""
        if not self._closing.done():
            self._closing.set_result(None)

    async def run(self) -> None:
        """Be on the bus until `close`, or until nobody uses the manager.

        Raises HostError if the first attempt fails: whoever wanted the manager is told. Afterwards every failure is retried.
        """
        delay_sec = FIRST_RETRY_SEC
        first, told = True, ""
        while not self._closing.done():
            try:
                reason = await self._one_connection()
                delay_sec = FIRST_RETRY_SEC
            except HostError as error:
                if first:
                    raise
                reason = str(error)
            first = False
            if self._closing.done():
                return
            if reason != told:
                self._log(f"{reason}; it will be tried again")
                told = reason
            await asyncio.wait({self._closing}, timeout=delay_sec)
            delay_sec = min(delay_sec * 2, LAST_RETRY_SEC)

    async def _one_connection(self) -> str:
        """Connect, own the name, and stay until the connection is gone or we leave; returns why it went."""
        async with contextlib.AsyncExitStack() as held:
            transport = ManagerTransport(self._address)
            held.callback(transport.close)
            presence = Presence(transport, self._version, user=self._user, log=self._log)
            held.push_async_callback(presence.close)
            joining = asyncio.ensure_future(self._join(transport, presence))
            held.push_async_callback(_end, joining)
            await asyncio.wait({joining, self._closing}, return_when=asyncio.FIRST_COMPLETED)
            if not joining.done():
                return ""
            joining.result()
            self._on_acquired()
            await asyncio.wait({transport.disconnected, self._closing}, return_when=asyncio.FIRST_COMPLETED)
            if self._closing.done():
                self._on_leaving()
                # What was called before the bus has this is read before its answer, and is answered. What comes later starts
                # the manager anew.
                with contextlib.suppress(Exception):
                    await transport.ask(daemon_call("ReleaseName", "s", [INTERFACE]), FAREWELL_TIMEOUT_SEC)
        return f"the connection to the bus at {self._address} was lost"

    async def _join(self, transport: ManagerTransport, presence: Presence) -> None:
        """Owns the name when it returns. Raises HostError."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SEC + LOOK_PATIENCE_SEC):
                await transport.connect()
                await presence.look(self._folder)
                presence.appear(self._idle_sec, self._call_later, on_idle=self.close)
                await _own_name(transport)
        except TimeoutError:
            raise HostError(f"the bus at {self._address} did not answer within {seconds(CONNECT_TIMEOUT_SEC)}") from None
        except VmmError as error:
            raise error if isinstance(error, HostError) else HostError(str(error)) from None
        except Exception as error:  # dbus-next's own kinds, and whatever its parser makes of a broken peer
            raise HostError(f"cannot join the bus at {self._address}: {failure_reason(error)}") from None


class Presence:
    """What the manager knows and says while one connection lasts."""

    def __init__(self, transport: ManagerTransport, version: str, *, user: bool, log: Callable[[str], None]) -> None:
        self._transport = transport
        self._log = log
        self._bus = Bus(transport, user=user)
        self._model = Model(on_added=self._on_added, on_removed=self._on_removed, on_changed=self._on_changed, log=log)
        self._objects = Objects(self._model, version)
        self._units = units.Units(self._bus, self._model, log)
        self._running = running.RunningVms(self._bus, self._model, log)
        self._configured: Configured | None = None
        self._callers: Callers | None = None
        self._tells = False  # of changes: not while it is finding out what there is
        transport.answer_calls(self._answer)
        transport.add_message_handler(self._on_message)

    async def look(self, folder: str) -> None:
        """Read everything, and hear of each change from now on."""
        for rule in (*units.RULES, *running.RULES):
            try:
                await self._bus.ask_daemon("AddMatch", "s", [rule])
            except CallFailed as failed:
                raise HostError(f"the bus does not tell what happens: {failed.text}") from None
        try:
            self._configured = Configured(FolderWatch(folder, DROP_INS_SUFFIX), self._model, self._log)
        except HostError as error:
            self._log(f"{error}; VMs are not shown by their configuration files")
        await asyncio.gather(self._units.start(LOOK_PATIENCE_SEC), self._running.start(LOOK_PATIENCE_SEC))

    def appear(
        self, idle_sec: float, call_later: Callable[[float, Callable[[], None]], object], *, on_idle: Callable[[], None]
    ) -> None:
        """The name is about to be owned: calls come, and changes are told."""
        self._tells = True
        self._callers = Callers(self._bus, idle_sec=idle_sec, call_later=call_later, on_idle=on_idle)

    async def close(self) -> None:
        if self._configured is not None:
            self._configured.close()
        if self._callers is not None:
            await self._callers.close()
        await self._units.close()
        await self._running.close()

    # What comes in

    def _on_message(self, message: Message) -> None:
        if message.message_type is MessageType.METHOD_CALL:
            if self._callers is not None:
                self._callers.saw(message.sender)
        elif message.message_type is MessageType.SIGNAL:
            self._units.on_message(message)
            self._running.on_message(message)
            if self._callers is not None:
                self._callers.on_message(message)

    def _answer(self, call: Message) -> Message | None:
        try:
            if call.too_large:
                raise BusFault(LIMITS_EXCEEDED, f"the call is too large; its arguments may take {BODY_LIMIT_BYTES} bytes")
            interface = self._objects.check(call.path, call.interface, call.member, call.signature)
            if interface == OBJECT_MANAGER:
                self._answer_managed(call)
                return None
            return Message.new_method_return(call, *self._objects.answer(call.path, interface, call.member, call.body))
        except BusFault as fault:
            return Message.new_error(call, fault.name, wire_text(str(fault)))
        except VmmError as error:
            return Message.new_error(call, FAILED, wire_text(str(error)))
        except Exception as error:
            self._log("".join(traceback.format_exception(error)).rstrip())
            return Message.new_error(call, FAILED, OUR_BUG)

    def _answer_managed(self, call: Message) -> None:
        if self._transport.unsent > LONG_REPLIES_LIMIT:
            raise BusFault(LIMITS_EXCEEDED, "the bus has not taken earlier answers yet; try again later")
        if not call.flags & MessageFlag.NO_REPLY_EXPECTED:
            reply = Message.new_method_return(call, MANAGED_OBJECTS, [])
            self._transport.send_packed(packed(reply, self._objects.managed_objects()))

    # What goes out

    def _on_added(self, vm: Vm) -> None:
        self._signal(OBJECT_PATH, OBJECT_MANAGER, "InterfacesAdded", "oa{sa{sv}}", [vm_path(vm.name), interfaces_of(vm)])

    def _on_removed(self, vm: Vm) -> None:
        self._signal(OBJECT_PATH, OBJECT_MANAGER, "InterfacesRemoved", "oas", [vm_path(vm.name), [VM_INTERFACE]])

    def _on_changed(self, vm: Vm, changes: dict[str, str | bool]) -> None:
        body: list[object] = [VM_INTERFACE, changed_variants(changes), []]
        self._signal(vm_path(vm.name), PROPERTIES_INTERFACE, "PropertiesChanged", "sa{sv}as", body)

    def _signal(self, path: str, interface: str, member: str, signature: str, body: list[object]) -> None:
        self._objects.forget_managed()
        if not self._tells:
            return
        if self._transport.unsent > UNSENT_LIMIT:
            self._transport.disconnect()  # a bus that takes nothing for so long is gone for us
            return
        self._transport.send(Message.new_signal(path, interface, member, signature, body))


async def _end(task: asyncio.Future[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


async def _own_name(transport: ManagerTransport) -> None:
    reply = await transport.ask(daemon_call("RequestName", "su", [INTERFACE, NameFlag.DO_NOT_QUEUE.value]), None)
    if reply.message_type is MessageType.ERROR:
        if reply.error_name == ACCESS_DENIED:
            raise NotPermitted(
                f"the bus does not let this account own {INTERFACE}; its policy allows root and vmservice-manager"
            )
        raise HostError(f"the bus refused {INTERFACE}: {reply.error_name}")
    if reply.body != [RequestNameReply.PRIMARY_OWNER.value]:
        raise BusNameTaken(f"the bus name {INTERFACE} is already owned: is a manager running already?")
