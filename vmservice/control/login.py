"""systemd-logind: word that the host is about to sleep, and the lock that makes it wait until that word has been acted upon.

https://systemd.io/INHIBITOR_LOCKS/. The word comes over a connection that takes no descriptors. The lock is a descriptor; for
it there is a second connection, for as long as one call takes: on the system bus everybody may send us descriptors.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from dbus_next.constants import MessageFlag, MessageType
from dbus_next.message import Message

from vmservice.control.dbus_transport import Transport, daemon_call, failure_reason
from vmservice.control.errors import ACCESS_DENIED, wire_text
from vmservice.control.names import DAEMON
from vmservice.errors import HostError, seconds

LOGIN = "org.freedesktop.login1"
PATH = "/org/freedesktop/login1"
MANAGER = f"{LOGIN}.Manager"

TIMEOUT_SEC = 5.0
FIRST_RETRY_SEC = 0.5
LAST_RETRY_SEC = 30.0

_RULES = (
    f"type='signal',sender='{LOGIN}',path='{PATH}',interface='{MANAGER}',member='PrepareForSleep'",
    f"type='signal',sender='{DAEMON}',interface='{DAEMON}',member='NameOwnerChanged',arg0='{LOGIN}'",
)


class Login:
    """logind on the bus at `address`, on behalf of the VM called `vm_name`.

    `on_sleep(True)` is called before the host sleeps, `on_sleep(False)` when it is awake again. What does not work costs the VM
    nothing; `log` gets one sentence about it.
    """

    def __init__(self, address: str, vm_name: str, on_sleep: Callable[[bool], None], log: Callable[[str], None]) -> None:
        self._address = address
        self._vm_name = vm_name
        self._on_sleep = on_sleep
        self._log = log
        self._owner = ""
        self._lock = -1
        self._wanted = True
        self._taking: asyncio.Task[None] | None = None
        self._told = False

    @property
    def locked(self) -> bool:
        """Whether the host's sleep waits for us."""
        return self._lock >= 0

    async def run(self) -> None:
        """Listen until cancelled; the connection is made again whenever it is lost."""
        delay_sec = FIRST_RETRY_SEC
        try:
            while True:
                try:
                    await self._one_connection()
                    delay_sec = FIRST_RETRY_SEC
                except (HostError, OSError) as error:
                    self._tell(f"cannot join the bus to hear of the host's sleep: {failure_reason(error)}")
                await asyncio.sleep(delay_sec)
                delay_sec = min(delay_sec * 2, LAST_RETRY_SEC)
        finally:
            if self._taking is not None:
                self._taking.cancel()
                await asyncio.wait({self._taking})
            self.release()

    def hold(self) -> None:
        """Take the lock, unless it is held or being taken; as soon as logind is there."""
        self._wanted = True
        under_way = self._taking is not None and not self._taking.done() and not self._taking.cancelling()
        if self._owner and not self.locked and not under_way:
            self._taking = asyncio.get_running_loop().create_task(self._take_lock())

    def release(self) -> None:
        """Let the host sleep. A lock that is still being taken is given back when it comes."""
        self._wanted = False
        if self._taking is not None:
            self._taking.cancel()
        if self.locked:
            os.close(self._lock)
            self._lock = -1

    # Hearing

    async def _one_connection(self) -> None:
        transport = Transport(self._address)
        try:
            transport.answer_calls(_refuse)
            transport.add_message_handler(self._on_message)
            await _connect(transport)
            for rule in _RULES:
                await transport.ask(daemon_call("AddMatch", "s", [rule]), TIMEOUT_SEC)
            await transport.ask(daemon_call("GetNameOwner", "s", [LOGIN]), TIMEOUT_SEC, self._on_owner)
            if not self._owner:
                self._tell("systemd-logind is not there: the VM is not paused when the host sleeps")
            await asyncio.wait({transport.disconnected})
        finally:
            self._owner = ""
            transport.close()

    def _on_owner(self, reply: Message) -> None:
        if reply.message_type is MessageType.METHOD_RETURN and reply.signature == "s":
            self._on_logind(reply.body[0])

    def _on_logind(self, owner: str) -> None:
        """logind is there, or with an empty `owner` gone. The lock that a former one gave may be worth nothing to this one."""
        self._owner = owner
        wanted = self._wanted
        self.release()
        if wanted:
            self.hold()

    def _on_message(self, message: Message) -> None:
        """Anybody may send us a signal of any name: what counts is who did."""
        if message.message_type is not MessageType.SIGNAL:
            return
        if message.sender == DAEMON and message.member == "NameOwnerChanged" and message.signature == "sss":
            name, _old, new = message.body
            if name == LOGIN:
                self._on_logind(new)
        elif message.member == "PrepareForSleep" and message.sender == self._owner and message.signature == "b":
            self._on_sleep(message.body[0])

    # Delaying

    async def _take_lock(self) -> None:
        transport = Transport(self._address, descriptors=True)
        try:
            transport.answer_calls(_refuse)
            await _connect(transport)
            why = "the virtual machine is paused before the host sleeps"
            call = Message(
                destination=LOGIN,
                path=PATH,
                interface=MANAGER,
                member="Inhibit",
                signature="ssss",
                body=["sleep", f"vmservice {self._vm_name}", why, "delay"],
                flags=MessageFlag.NO_AUTOSTART,
            )
            reply = await transport.ask(call, TIMEOUT_SEC, self._on_lock)
        except (HostError, OSError) as error:
            self._tell(f"systemd-logind gives no sleep lock: {failure_reason(error)}; {_ALL_THE_SAME}")
        else:
            if self.locked:
                self._told = False
            else:
                reason = str(reply.body[0]) if reply.body and reply.signature == "s" else str(reply.error_name)
                if reply.error_name == ACCESS_DENIED:
                    reason = "it does not let this account"
                self._tell(f"systemd-logind gives no sleep lock: {wire_text(reason)}; {_ALL_THE_SAME}")
        finally:
            transport.close()

    def _on_lock(self, reply: Message) -> None:
        """The only descriptor that is ever taken: the one in logind's answer."""
        if reply.signature == "h" and reply.sender == self._owner and len(reply.unix_fds) == 1 and not self.locked:
            self._lock = reply.unix_fds.pop()
            os.set_inheritable(self._lock, False)

    def _tell(self, sentence: str) -> None:
        if not self._told:
            self._told = True
            self._log(sentence)


_ALL_THE_SAME = "the VM is paused all the same, if there is time, when the host sleeps"


async def _connect(transport: Transport) -> None:
    try:
        async with asyncio.timeout(TIMEOUT_SEC):
            await transport.connect()
    except TimeoutError:
        raise HostError(f"the bus did not answer within {seconds(TIMEOUT_SEC)}") from None
    except (HostError, OSError):
        raise
    except Exception as error:  # what dbus-next's parser makes of a broken peer
        raise HostError(failure_reason(error)) from None


def _refuse(call: Message) -> Message:
    return Message.new_error(call, "org.freedesktop.DBus.Error.UnknownObject", "there is no object here")
