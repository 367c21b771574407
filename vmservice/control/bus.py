"""The VM's place on the bus: a connection that is made again for as long as the VM lives.

The VM never waits for the bus and never ends with it: the bus may be absent at the start, be restarted, or be stopped in the
middle of a call.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

from dbus_next.constants import MessageFlag, MessageType, NameFlag, RequestNameReply
from dbus_next.message import Message

from vmservice.control.authority import Authority
from vmservice.control.dbus_address import checked_address
from vmservice.control.dbus_message import BODY_LIMIT_BYTES, packed
from vmservice.control.dbus_object import VmObject
from vmservice.control.dbus_transport import UNSENT_LIMIT, Transport, daemon_call, failure_reason
from vmservice.control.errors import ACCESS_DENIED, LIMITS_EXCEEDED, BusFault, describe
from vmservice.control.names import INTERFACE, OBJECT_PATH, PROPERTIES_INTERFACE, bus_name
from vmservice.control.turns import Turns
from vmservice.errors import HostError, HostFacilityMissing, NotPermitted, VmmError, seconds
from vmservice.vm.operation import Operation
from vmservice.vm.vm import Vm

FIRST_RETRY_SEC = 0.1
LAST_RETRY_SEC = 5.0
CONNECT_TIMEOUT_SEC = 5.0
FAREWELL_TIMEOUT_SEC = 1.0


class BusNameTaken(HostFacilityMissing):
    """Another process owns the VM's bus name."""


def bus_address(bus: str) -> str:
    """The D-Bus address that `bus` stands for: "system", "session", or an address as it is.

    Raises UsageError where it is malformed, HostFacilityMissing where this process has no session.
    """
    if bus == "system":
        return checked_address(os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/run/dbus/system_bus_socket"))
    if bus != "session":
        return checked_address(bus)
    address = os.environ.get("DBUS_SESSION_BUS_ADDRESS")
    if address:
        return checked_address(address)
    if "XDG_RUNTIME_DIR" in os.environ:
        return "unix:runtime=yes"
    raise HostFacilityMissing(
        "there is no session bus: neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR is set; use --bus system or --bus none"
    )


class BusConnection:
    """Keeps `vm` on the bus, under the name that follows from its own. Made inside the running event loop.

    `run` lasts until `close`. `on_acquired()` is called each time the name is owned; `on_lost(reason)` once at the beginning of
    each outage, the absence of a bus at the start included: one of the two always comes first. `log` takes what an operator
    should read: tracebacks of our own bugs, and why the name was not taken again.
    """

    def __init__(
        self,
        vm: Vm,
        bus: str,
        *,
        on_acquired: Callable[[], None],
        on_lost: Callable[[str], None],
        log: Callable[[str], None],
        connect_timeout_sec: float = CONNECT_TIMEOUT_SEC,
    ) -> None:
        self.name = bus_name(vm.name)
        self.owned = False
        self._address = bus_address(bus)
        # The session bus is its owner's alone, and there is no polkit on it.
        self._guarded = bus != "session"
        self._vm_name = vm.name
        self._object = VmObject(vm)
        self._on_acquired = on_acquired
        self._on_lost = on_lost
        self._log = log
        self._connect_timeout_sec = connect_timeout_sec
        self._transport: Transport | None = None
        self._turns: Turns | None = None  # on a bus where everybody may do everything, nobody waits
        self._closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended = asyncio.Event()
        self._ended.set()
        vm.subscribe(self._emit_changes)

    async def run(self) -> None:
        """Be on the bus until `close`.

        Raises BusNameTaken or NotPermitted if that is what the first attempt meets: another process runs this VM, or the bus
        policy forbids. Afterwards every failure is retried.
        """
        self._ended.clear()
        try:
            await self._stay()
        finally:
            self.owned = False
            self._drop()
            self._ended.set()

    async def close(self) -> None:
        """Leave the bus, and `run` with it. What was sent so far reaches the bus first, if that takes it within a second."""
        if self.owned and self._transport is not None:
            # The bus works through a connection's messages in order: its answer to this one means that it has all before it.
            with contextlib.suppress(Exception):
                await self._transport.ask(daemon_call("ReleaseName", "s", [self.name]), FAREWELL_TIMEOUT_SEC)
        if not self._closing.done():
            self._closing.set_result(None)
        await self._ended.wait()

    # Coming and going

    async def _stay(self) -> None:
        delay_sec = FIRST_RETRY_SEC
        first, outage, told = True, False, ""
        while not self._closing.done():
            try:
                reason = await self._one_connection()
                outage, told, delay_sec = False, "", FIRST_RETRY_SEC
            except (BusNameTaken, NotPermitted) as error:
                if first:
                    raise
                reason = str(error)
                if outage and reason != told:
                    self._log(f"{reason}; it will be tried again")
                told = reason
            except HostError as error:
                reason = str(error)
            first = False
            if self._closing.done():
                return
            if not outage:
                outage = True
                told = told or reason
                self._on_lost(reason)
            await asyncio.wait({self._closing}, timeout=delay_sec)
            delay_sec = min(delay_sec * 2, LAST_RETRY_SEC)

    async def _one_connection(self) -> str:
        """Connect, own the name, and stay until the connection is gone or we leave; returns why it went."""
        joining = asyncio.ensure_future(self._connect())
        try:
            either: list[asyncio.Future[Any]] = [joining, self._closing]
            await asyncio.wait(either, timeout=self._connect_timeout_sec, return_when=asyncio.FIRST_COMPLETED)
            if not joining.done():
                raise HostError(f"the bus at {self._address} did not answer within {seconds(self._connect_timeout_sec)}")
            transport = joining.result()
            self.owned = True
            self._on_acquired()
            await asyncio.wait({transport.disconnected, self._closing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.owned = False
            joining.cancel()
            await asyncio.wait({joining})
            self._drop()
        return f"the connection to the bus at {self._address} was lost"

    async def _connect(self) -> Transport:
        transport = self._transport = Transport(self._address)
        if self._guarded:
            # Well before the connection is taken for dead: each call may have a signal and a reply.
            self._turns = Turns(
                Authority(transport, self._vm_name, self._log), is_full=lambda: transport.unsent > UNSENT_LIMIT // 2
            )
        try:
            transport.answer_calls(self._answer)
            await transport.connect()
            reply = await transport.ask(daemon_call("RequestName", "su", [self.name, NameFlag.DO_NOT_QUEUE.value]), None)
        except HostError:
            raise
        except Exception as error:  # dbus-next's own kinds, and whatever its parser makes of a broken peer
            raise HostError(f"cannot join the bus at {self._address}: {failure_reason(error)}") from None
        if reply.message_type is MessageType.ERROR:
            if reply.error_name == ACCESS_DENIED:
                raise NotPermitted(
                    f"the bus does not let this account own {self.name}; its policy allows root and members of group vmservice"
                )
            raise HostError(f"the bus at {self._address} refused {self.name}: {_said(reply)}")
        if reply.body != [RequestNameReply.PRIMARY_OWNER.value]:
            owner = await self._owner_of(transport)
            raise BusNameTaken(f"the bus name {self.name} is already owned{owner}: is this VM running already?")
        return transport

    async def _owner_of(self, transport: Transport) -> str:
        """` by process 123`, or nothing where the bus does not say."""
        with contextlib.suppress(Exception):
            reply = await transport.ask(daemon_call("GetConnectionUnixProcessID", "s", [self.name]), None)
            if reply.message_type is MessageType.METHOD_RETURN:
                return f" by process {reply.body[0]}"
        return ""

    def _drop(self) -> None:
        if self._turns is not None:
            self._turns.close()
            self._turns = None
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    # Traffic

    def _answer(self, call: Message) -> Message | None:
        """None: the reply is sent when the call has had its turn, or when the guest has answered."""
        interface, fault = "", None
        try:
            if call.too_large:
                raise BusFault(LIMITS_EXCEEDED, f"the call is too large; its arguments may take {BODY_LIMIT_BYTES} bytes")
            interface = self._object.check(call.path, call.interface, call.member, call.signature)
        except BusFault as misfit:
            fault = misfit
        act = partial(self._act, call, interface, self._transport, fault)
        if self._turns is not None:
            self._turns.take(call, act, free=interface != INTERFACE)
        else:
            act(None)
        return None

    def _act(
        self, call: Message, interface: str, transport: Transport | None, fault: BusFault | None, refusal: BusFault | None
    ) -> None:
        """Do what is asked, unless it fits no member, there is a `refusal`, or the connection was lost in the meantime."""
        if transport is None or transport is not self._transport:
            return
        try:
            if fault is not None or refusal is not None:
                raise refusal or fault  # type: ignore[misc]  # one of them is there
            answer = self._object.answer(call.path, interface, call.member, call.body)
            if isinstance(answer, Operation):
                answer.on_end = partial(self._send_late, call, transport)
                return
            reply = Message.new_method_return(call, *answer)
        except Exception as error:
            reply = self._error(call, error)
        if not call.flags & MessageFlag.NO_REPLY_EXPECTED:
            transport.send(reply)

    def _error(self, call: Message, error: Exception) -> Message:
        name, text = describe(error, self._log)
        return Message.new_error(call, name, text)

    def _send_late(self, call: Message, transport: Transport | None, error: VmmError | None) -> None:
        """The reply to a call whose work is done now; a caller whose connection is gone gets none."""
        if transport is not None and transport is self._transport and not call.flags & MessageFlag.NO_REPLY_EXPECTED:
            transport.send(Message.new_method_return(call) if error is None else self._error(call, error))

    def _emit_changes(self, changes: dict[str, object]) -> None:
        """A listener of the VM: it runs within the verb, so the signal goes out before the verb's reply."""
        transport = self._transport
        if transport is None or not self.owned:
            return
        if transport.unsent > UNSENT_LIMIT:
            transport.disconnect()  # a bus that takes nothing for so long is gone for us; the next connection starts afresh
            return
        is_state_alone = changes.keys() == {"State"}
        transport.send_packed(_state_signal(str(changes["State"])) if is_state_alone else _signal(changes))


@lru_cache
def _state_signal(state: str) -> bytes:
    """The signal of a new State, which is kept: the same few come again and again."""
    return _signal({"State": state})


def _signal(changes: dict[str, object]) -> bytes:
    """The signal of these new values."""
    signature, body = VmObject.changed(changes)
    return packed(Message.new_signal(OBJECT_PATH, PROPERTIES_INTERFACE, "PropertiesChanged", signature, body))


def _said(error: Message) -> str:
    """The sentence of an error reply, or its name where it has none."""
    return str(error.body[0]) if error.body else str(error.error_name)
