"""One short-lived connection to the bus: each call has a limit in time, and each failure is a sentence with an exit status."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from dbus_next.constants import MessageFlag, MessageType
from dbus_next.message import Message

from vmservice.client.agent import PasswordAgent
from vmservice.control.bus import bus_address
from vmservice.control.dbus_message import MessageReader
from vmservice.control.dbus_transport import Transport, failure_reason
from vmservice.control.names import DAEMON, DAEMON_PATH, PROPERTIES_INTERFACE
from vmservice.errors import HostFacilityMissing, VmmError, quoted, seconds

CONNECT_TIMEOUT_SEC = 5.0
# What the bus itself is asked, it answers from its own tables.
DAEMON_TIMEOUT_SEC = 5.0
# ListNames of a bus with tens of thousands of names, or systemd's list of thousands of units.
NAMES_LIMIT_BYTES = 1 << 20
TEXT_LIMIT_CHARS = 2048
# The system bus lets a connection wait for 128 answers, and refuses what more it asks: max_replies_per_connection of
# dbus-daemon(1). Those that nobody waits for any more are counted, too.
CALLS_AT_A_TIME = 100

_LISTS = ("as", "a(ssssssouso)")
_UNPACKED_REPLIES = ("s", "u", "v", "a{sv}", *_LISTS)
_UNPACKED_SIGNALS = ("sss", "sa{sv}as")  # NameOwnerChanged, PropertiesChanged


# The name of what is made here of an answer of another type than the method has.
WRONG_TYPE = "org.vmservice.Client.Error.WrongType"


class CallFailed(Exception):
    """The answer to a call was the D-Bus error `name`; `by_bus` where the bus itself gave it, in the callee's place."""

    def __init__(self, name: str, text: str, *, by_bus: bool) -> None:
        super().__init__(text)
        self.name = name
        self.text = text
        self.by_bus = by_bus


class NotInTime(VmmError):
    """What was waited for did not come: EX_TEMPFAIL of sysexits(3)."""

    exit_status = 75


class ClientReader(MessageReader):
    """Unpacks what is answered to a client, and no call: nobody has anything to call here."""

    def _body_limit_bytes(self, kind: MessageType, signature: str) -> int:
        if kind is MessageType.METHOD_RETURN and signature in _LISTS:
            return NAMES_LIMIT_BYTES
        return super()._body_limit_bytes(kind, signature)

    def _unpacked_part(self, kind: MessageType, signature: str) -> str:
        if kind is MessageType.METHOD_CALL:
            return ""
        known = _UNPACKED_SIGNALS if kind is MessageType.SIGNAL else _UNPACKED_REPLIES
        return signature if signature in known else ""


class ClientTransport(Transport):
    """The transport that a VM uses, reading as a client."""

    reader = ClientReader()


class Bus:
    """The system bus, or the user's own (`user`), while `connected_bus` lasts."""

    def __init__(self, transport: ClientTransport, *, user: bool, agent: PasswordAgent | None = None) -> None:
        self.transport = transport
        self.agent = agent or PasswordAgent(allowed=False)
        self.user = user
        self._turn = asyncio.Semaphore(CALLS_AT_A_TIME)

    async def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        arguments: list[Any] | None = None,
        *,
        timeout_sec: float,
        interactive: bool = False,
        on_reply: Callable[[Message], None] | None = None,
        returns: str | None = None,
    ) -> list[Any]:
        """What the method returns. No service is started for it; `interactive` lets polkit ask the caller for a password.

        With CALLS_AT_A_TIME under way it waits for its turn, and its time begins then.

        `on_reply` has the reply before the next message is read; the caller goes on a little later. Whoever looks at what is
        returned says in `returns` of which signature it has to be: who answers may be anybody.

        Raises CallFailed for an error and for an answer of another signature, TimeoutError, and HostFacilityMissing when the
        connection is lost.
        """
        flags = MessageFlag.NO_AUTOSTART | (MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION if interactive else MessageFlag.NONE)
        message = Message(
            destination=destination,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=arguments or [],
            flags=flags,
        )
        try:
            # What the bus is asked itself has its answer at once, and is not counted.
            async with contextlib.nullcontext() if destination == DAEMON else self._turn:
                reply = await self.transport.ask(message, timeout_sec, on_reply)
        except ConnectionError:
            raise self.lost() from None
        if reply.message_type is MessageType.ERROR:
            text = printable(str(reply.body[0])) if reply.body else ""
            raise CallFailed(str(reply.error_name), text, by_bus=reply.sender == DAEMON)
        if reply.too_large:
            raise HostFacilityMissing(f"the answer of {destination} to {member} is too large")
        if returns not in (None, reply.signature):
            text = f"the answer to {member} is of type {quoted(reply.signature)} and not {quoted(str(returns))}"
            raise CallFailed(WRONG_TYPE, text, by_bus=False)
        body: list[Any] = reply.body
        return body

    async def ask_daemon(
        self,
        member: str,
        signature: str = "",
        arguments: list[Any] | None = None,
        on_reply: Callable[[Message], None] | None = None,
    ) -> list[Any]:
        """A method of the bus itself; as `call`, but for the timeout, which is NotInTime."""
        daemon = (DAEMON, DAEMON_PATH, DAEMON)
        try:
            return await self.call(*daemon, member, signature, arguments, timeout_sec=DAEMON_TIMEOUT_SEC, on_reply=on_reply)
        except TimeoutError:
            raise NotInTime(f"the {self.kind} bus did not answer within {seconds(DAEMON_TIMEOUT_SEC)}") from None

    async def get(self, destination: str, path: str, interface: str, name: str, *, timeout_sec: float) -> object:
        """The value of a property, of whatever type."""
        target = (destination, path, PROPERTIES_INTERFACE)
        (variant,) = await self.call(*target, "Get", "ss", [interface, name], timeout_sec=timeout_sec, returns="v")
        value: object = variant.value
        return value

    @property
    def kind(self) -> str:
        return _kind(self.user)

    def lost(self) -> HostFacilityMissing:
        return HostFacilityMissing(f"the connection to the {self.kind} bus was lost")


@contextlib.asynccontextmanager
async def connected_bus(*, user: bool, ask_password: bool = False) -> AsyncIterator[Bus]:
    """A connection to the system bus or, with `user`, to the session bus; HostFacilityMissing where there is none.

    With `ask_password` polkit may ask the person for a password, which `Bus.agent` then does.
    """
    try:
        address = bus_address("session" if user else "system")
    except HostFacilityMissing as error:  # no session; what `run` may do about that is no advice here
        raise HostFacilityMissing(str(error).partition("; use --bus")[0]) from None
    try:
        transport = ClientTransport(address)
    except HostFacilityMissing as error:
        raise HostFacilityMissing(f"there is no {_kind(user)} bus: {error}") from None
    try:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SEC):
                await transport.connect()
        except TimeoutError:
            raise HostFacilityMissing(f"the {_kind(user)} bus did not answer within {seconds(CONNECT_TIMEOUT_SEC)}") from None
        except Exception as error:  # dbus-next's own kinds, and whatever its parser makes of a broken peer
            raise HostFacilityMissing(f"cannot join the {_kind(user)} bus: {failure_reason(error)}") from None
        agent = PasswordAgent(allowed=ask_password)
        try:
            yield Bus(transport, user=user, agent=agent)
        finally:
            agent.end()
    finally:
        transport.close()


def printable(text: str) -> str:
    """`text` of somebody else as a terminal may be given it: bounded, and without control characters."""
    return "".join(char if char.isprintable() else "?" for char in text[:TEXT_LIMIT_CHARS])


def _kind(user: bool) -> str:
    return "session" if user else "system"
