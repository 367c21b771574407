"""Who may use a verb: the bus says who calls, and polkit decides about everybody who is not trusted anyway.

A check never holds up the loop or another caller, and leaves nothing behind: it ends with polkit's answer, with a timeout, with
the caller, or with the connection. How many are under way at once is bounded, for all callers and for each account. Whatever
goes wrong on the way, the answer is no.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dbus_next.constants import MessageFlag, MessageType
from dbus_next.message import Message
from dbus_next.signature import Variant

from vmservice.control.api import BY_MEMBER
from vmservice.control.caller import GROUP, Caller
from vmservice.control.dbus_transport import Transport, daemon_call, failure_reason
from vmservice.control.errors import ACCESS_DENIED, INTERACTION_REQUIRED, LIMITS_EXCEEDED, BusFault, wire_text
from vmservice.control.names import DAEMON
from vmservice.errors import seconds

POLKIT = "org.freedesktop.PolicyKit1"
_POLKIT_PATH = "/org/freedesktop/PolicyKit1/Authority"
_POLKIT_INTERFACE = f"{POLKIT}.Authority"
_ALLOW_USER_INTERACTION = 1  # CheckAuthorizationFlags

IDENTIFY_TIMEOUT_SEC = 5.0
CHECK_TIMEOUT_SEC = 30.0
INTERACTIVE_TIMEOUT_SEC = 600.0  # a person looks for the window, and for the password; it ends with the caller, too

CHECKS_LIMIT = 32
CHECKS_LIMIT_AN_ACCOUNT = 4
_KNOWN_LIMIT = 256


class Authority:
    """Decides for the calls that come over one connection, on behalf of the VM called `vm_name`.

    `on_gone(sender)` is called when a caller goes while polkit is asked about it.
    """

    def __init__(self, transport: Transport, vm_name: str, log: Callable[[str], None]) -> None:
        self._transport = transport
        self._vm_name = vm_name
        self._log = log
        self._known: dict[str, Caller] = {}
        self._checks: dict[str, Caller] = {}  # by unique bus name
        self.on_gone: Callable[[str], None] = _ignore
        self._next_cancellation = 0
        self._told = False
        transport.add_message_handler(self._on_message)

    def known(self, sender: str) -> Caller | None:
        """The caller behind the unique bus name `sender`, if the bus has said that already."""
        return self._known.get(sender)

    async def identify(self, sender: str) -> Caller | None:
        """Who `sender` is; None for one that is gone. Raises BusFault, TimeoutError or OSError where the bus does not say."""
        caller = await self._caller(sender)
        if caller is not None:
            while len(self._known) >= _KNOWN_LIMIT:
                del self._known[next(iter(self._known))]
            self._known[sender] = caller
        return caller

    async def _caller(self, sender: str) -> Caller | None:
        """None for a sender that is gone. The kernel told the bus who connected; the sender has no say in it."""
        reply = await self._transport.ask(daemon_call("GetConnectionUnixUser", "s", [sender]), IDENTIFY_TIMEOUT_SEC)
        if reply.message_type is MessageType.ERROR and reply.error_name == "org.freedesktop.DBus.Error.NameHasNoOwner":
            return None
        if reply.message_type is MessageType.ERROR or reply.sender != DAEMON or reply.signature != "u" or not reply.body:
            raise BusFault(ACCESS_DENIED, reply.error_name or "it gave an answer that makes no sense")
        return Caller(sender, reply.body[0])

    # Whether it may

    async def check(self, caller: Caller, call: Message) -> BusFault | None:
        """Ask polkit about a verb that `caller`, who is not trusted, has called: None when it may be done, else why not.

        A task that is cancelled in here takes its question back. One check at a time for each caller.
        """
        account_checks = sum(1 for other in self._checks.values() if other.uid == caller.uid)
        if account_checks >= CHECKS_LIMIT_AN_ACCOUNT or len(self._checks) >= CHECKS_LIMIT:
            return BusFault(LIMITS_EXCEEDED, "too many authorizations are under way; try again when they have ended")
        self._checks[caller.sender] = caller
        self._transport.send(_watch("AddMatch", caller.sender))
        try:
            if await self._caller(caller.sender) is None:  # it went before the bus was to tell of that
                self.on_gone(caller.sender)
                return BusFault(ACCESS_DENIED, "the caller is gone")
            return await self._ask_polkit(caller, call)
        except (OSError, TimeoutError, BusFault) as error:
            return BusFault(ACCESS_DENIED, f"the bus does not say whether the caller is still there: {failure_reason(error)}")
        finally:
            del self._checks[caller.sender]
            if self._transport.connected:
                self._transport.send(_watch("RemoveMatch", caller.sender))

    async def _ask_polkit(self, caller: Caller, call: Message) -> BusFault | None:
        action = BY_MEMBER[call.member].action
        interactive = bool(call.flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION)
        timeout_sec = INTERACTIVE_TIMEOUT_SEC if interactive else CHECK_TIMEOUT_SEC
        self._next_cancellation += 1
        cancellation = str(self._next_cancellation)
        subject = ["system-bus-name", {"name": Variant("s", caller.sender)}]
        flags = _ALLOW_USER_INTERACTION if interactive else 0
        question = _polkit_call(
            "CheckAuthorization", "(sa{sv})sa{ss}us", [subject, action, {"vm": self._vm_name}, flags, cancellation]
        )
        try:
            reply = await self._transport.ask(question, timeout_sec)
        except TimeoutError:
            self._cancel(cancellation)
            return self._cannot_ask(action, f"it did not answer within {seconds(timeout_sec)}")
        except asyncio.CancelledError:
            self._cancel(cancellation)
            raise
        except OSError as error:
            return self._cannot_ask(action, failure_reason(error))
        return self._answer(action, interactive, reply)

    def _answer(self, action: str, interactive: bool, reply: Message) -> BusFault | None:
        if reply.message_type is MessageType.ERROR:
            words = f"{reply.error_name}: {reply.body[0]}" if reply.body else str(reply.error_name)
            return self._cannot_ask(action, wire_text(words))
        if reply.signature != "(bba{ss})" or not reply.body:
            return self._cannot_ask(action, "it gave an answer that makes no sense")
        self._told = False
        authorized, challenge, _details = reply.body[0]
        if authorized:
            return None
        if challenge and not interactive:
            return BusFault(INTERACTION_REQUIRED, f"{action} needs interactive authentication, which the call does not allow")
        return BusFault(ACCESS_DENIED, f"{action} is not authorized")

    def _cannot_ask(self, action: str, why: str) -> BusFault:
        """The refusal for an action that polkit says nothing about; the journal has the reason once an outage."""
        if not self._told:
            self._told = True
            self._log(f"polkit cannot be asked: {why}; until it can, only root and members of group {GROUP} may control the VM")
        return BusFault(ACCESS_DENIED, f"{action} is not authorized: polkit cannot be asked")

    def _cancel(self, cancellation: str) -> None:
        """An agent's window closes, and polkit forgets the check too."""
        if self._transport.connected:
            call = _polkit_call("CancelCheckAuthorization", "s", [cancellation])
            call.flags = MessageFlag.NO_REPLY_EXPECTED | MessageFlag.NO_AUTOSTART
            self._transport.send(call)

    def _on_message(self, message: Message) -> None:
        """The bus tells of a caller that is gone: what it asked for is not done. Others may send such a signal too."""
        if message.member != "NameOwnerChanged" or message.sender != DAEMON or message.signature != "sss":
            return
        name, _old, new = message.body
        if new == "" and name in self._checks:
            self.on_gone(name)


def _ignore(_sender: str) -> None:
    """Until somebody wants to know."""


def _polkit_call(member: str, signature: str, body: list[object]) -> Message:
    return Message(
        destination=POLKIT, path=_POLKIT_PATH, interface=_POLKIT_INTERFACE, member=member, signature=signature, body=body
    )


def _watch(member: str, name: str) -> Message:
    rule = f"type='signal',sender='{DAEMON}',interface='{DAEMON}',member='NameOwnerChanged',arg0='{name}'"
    call = daemon_call(member, "s", [rule])
    call.flags = MessageFlag.NO_REPLY_EXPECTED
    return call
