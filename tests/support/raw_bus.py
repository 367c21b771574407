"""A caller that writes its calls at a stretch and reads what comes in the order in which it comes, without an event loop."""

from __future__ import annotations

import os
import socket
from typing import Any

from dbus_next import Message
from dbus_next._private.unmarshaller import Unmarshaller
from dbus_next.constants import MessageType

from vmservice.control.names import DAEMON, DAEMON_PATH, INTERFACE, OBJECT_PATH, PROPERTIES_INTERFACE, bus_name

TIMEOUT_SEC = 60.0


class RawCaller:
    """One connection to the bus at a unix:path= address."""

    def __init__(self, address: str) -> None:
        self._serial = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(TIMEOUT_SEC)
        self._socket.connect(address.removeprefix("unix:path="))
        self._stream = self._socket.makefile("rb")
        self._socket.sendall(b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\n")
        self._stream.readline()
        self._socket.sendall(b"BEGIN\r\n")
        hello = Message(destination=DAEMON, path=DAEMON_PATH, interface=DAEMON, member="Hello")
        (self.unique_name,) = self.ask(hello)[0].body

    def ask(self, *calls: Message) -> list[Message]:
        """Writes the calls in one piece; the replies to them in the order in which they come, which need not be the calls'."""
        serials = []
        data = b""
        for call in calls:
            self._serial += 1
            call.serial = self._serial
            serials.append(call.serial)
            data += call._marshall()
        self._socket.sendall(data)
        replies: list[Message] = []
        while len(replies) < len(serials):
            message = Unmarshaller(self._stream).unmarshall()
            if message.message_type in (MessageType.METHOD_RETURN, MessageType.ERROR) and message.reply_serial in serials:
                replies.append(message)
        self.serials = serials
        return replies

    def answers(self, *calls: Message) -> list[tuple[int, Any]]:
        """What came, in the order of coming: (index of the call, its value, None, or its error's name)."""
        replies = self.ask(*calls)
        return [(self.serials.index(reply.reply_serial), _value(reply)) for reply in replies]

    def close(self) -> None:
        self._stream.close()
        self._socket.close()

    def __enter__(self) -> RawCaller:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def verb(member: str, name: str = "demo", **header: Any) -> Message:
    return Message(**{"destination": bus_name(name), "path": OBJECT_PATH, "interface": INTERFACE, "member": member, **header})


def get(property_name: str = "State", name: str = "demo") -> Message:
    body = [INTERFACE, property_name]
    return verb("Get", name, interface=PROPERTIES_INTERFACE, signature="ss", body=body)


def get_all(name: str = "demo") -> Message:
    return verb("GetAll", name, interface=PROPERTIES_INTERFACE, signature="s", body=[INTERFACE])


def _value(reply: Message) -> Any:
    if reply.message_type is MessageType.ERROR:
        return str(reply.error_name).rpartition(".")[2]
    if not reply.body:
        return None
    value = reply.body[0]
    return {key: variant.value for key, variant in value.items()} if isinstance(value, dict) else getattr(value, "value", value)
