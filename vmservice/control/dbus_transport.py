"""dbus-next's connection, made fit for a process that must not hang, leak or be talked to death.

What dbus-next 0.2.3 does, and what is done here instead:

* it connects with a blocking connect(2), which waits for ever when a stopped daemon's backlog is full: here it never blocks;
* it spins without end when the daemon closes the connection during authentication: here that is an error;
* it reads for as long as there is something to read, so that a flood of calls starves timers and signals: here it takes turns;
* it unpacks every body, whatever its size (in Python, a second for a few megabytes), and keeps each signature that it has ever
  seen: here a call is unpacked only if it is small and of a signature that the object knows;
* it takes a full socket for a broken one and drops the connection: here the rest waits until there is room;
* it drops the connection on a message that it cannot unpack: here that message is passed over;
* it never closes its socket: `close` does.

File descriptors are negotiated only where `descriptors` says so (see `login.py`); else the bus refuses a message that carries
one. What nobody takes of those that came is closed in a thread: to close one may wait for the file system that it belongs to.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

from dbus_next import Message
from dbus_next._private.address import parse_address
from dbus_next._private.constants import BIG_ENDIAN, LITTLE_ENDIAN, PROTOCOL_VERSION, HeaderField
from dbus_next._private.unmarshaller import Unmarshaller
from dbus_next.aio import MessageBus
from dbus_next.aio.message_bus import _MessageWriter
from dbus_next.constants import MessageFlag, MessageType
from dbus_next.errors import InvalidAddressError, InvalidMessageError
from dbus_next.signature import SignatureTree

from vmservice.control.names import DAEMON, DAEMON_PATH
from vmservice.errors import HostError, HostFacilityMissing, UsageError

BODY_LIMIT_BYTES = 64 * 1024
HEADER_LIMIT_BYTES = 16 * 1024
MESSAGES_A_TURN = 32
UNSENT_LIMIT = 1024
UNWANTED_LIMIT = 8  # messages with descriptors that nobody takes
_RETRY_READING_SEC = 0.02
_AUTH_LINE_LIMIT_BYTES = 512

# The signatures of calls whose body is unpacked, and how much of it. Set's value is not looked at: no property is writable.
_UNPACKED = {"": "", "y": "y", "s": "s", "ss": "ss", "ssv": "ss"}
_UNPACKED_REPLIES = ("s", "u", "h", "(bba{ss})")  # of the bus itself, errors, logind's Inhibit and polkit's CheckAuthorization
_UNPACKED_SIGNALS = ("sss", "b")  # NameOwnerChanged, which dbus-next itself looks at, and logind's PrepareForSleep


class BoundedUnmarshaller(Unmarshaller):  # type: ignore[misc]
    """Reads one message, with its `size_bytes`; `too_large` is set if either part is over the limit; the body is then empty."""

    def _unmarshall(self) -> None:
        self.offset = 0
        self.read(16, prefetch=True)
        self.endian = self.read_byte()
        if self.endian not in (LITTLE_ENDIAN, BIG_ENDIAN):
            raise InvalidMessageError("the bus sent a message of unknown byte order")
        kind = self.read_byte()
        flags = MessageFlag(self.read_byte())
        version = self.read_byte()
        if version != PROTOCOL_VERSION:
            raise InvalidMessageError(f"the bus speaks protocol version {version}, not {PROTOCOL_VERSION}")
        body_length = self.read_uint32()
        serial = self.read_uint32()
        header_length = self.read_uint32()
        self.read(header_length + self._padding(header_length, 8) + body_length, prefetch=True)
        self.offset -= 4  # the array's length is part of the array
        fields = {code: value.value for code, value in self.read_argument(SignatureTree._get("a(yv)").types[0])}
        self.align(8)
        too_large = body_length > BODY_LIMIT_BYTES or header_length > HEADER_LIMIT_BYTES
        try:
            self.message = self._message(MessageType(kind), flags, serial, fields, too_large)
        except (ValueError, TypeError):  # a type of message from the future, or a name that dbus-next will not have
            self.message = Message.new_signal("/", "org.vmservice.Ignored", "Ignored")
            self.message.serial = serial
        self.message.unix_fds = self.unix_fds
        self.message.size_bytes = header_length + body_length

    def _message(self, kind: MessageType, flags: MessageFlag, serial: int, header: dict[int, Any], too_large: bool) -> Message:
        fields = {field: header.get(field.value) for field in HeaderField}
        signature = fields[HeaderField.SIGNATURE] or ""
        unpacked = self._unpacked_part(kind, signature)
        if too_large:
            unpacked, fields[HeaderField.PATH] = "", "/"
        tree = SignatureTree._get(unpacked)
        message = Message(
            destination=fields[HeaderField.DESTINATION],
            path=fields[HeaderField.PATH],
            interface=fields[HeaderField.INTERFACE],
            member=fields[HeaderField.MEMBER],
            message_type=kind,
            flags=flags,
            error_name=fields[HeaderField.ERROR_NAME],
            reply_serial=fields[HeaderField.REPLY_SERIAL],
            sender=fields[HeaderField.SENDER],
            signature=tree,
            body=[self.read_argument(type_) for type_ in tree.types],
            serial=serial,
        )
        message.signature = signature
        message.too_large = too_large
        return message

    @staticmethod
    def _unpacked_part(kind: MessageType, signature: str) -> str:
        if kind is MessageType.METHOD_CALL:
            return _UNPACKED.get(signature, "")
        known = _UNPACKED_SIGNALS if kind is MessageType.SIGNAL else _UNPACKED_REPLIES
        return signature if signature in known else ""


class PatientWriter(_MessageWriter):  # type: ignore[misc]
    """Sends what is queued, as far as the socket takes it; called whenever that has room."""

    def __init__(self, bus: MessageBus) -> None:
        super().__init__(bus)
        self.buf: memoryview | None = None

    def write_callback(self) -> None:
        try:
            while self.buf or not self.messages.empty():
                if not self.buf:
                    data, _fds, self.fut = self.messages.get_nowait()
                    self.buf = memoryview(data)
                self.buf = self.buf[self.sock.send(self.buf) :]
                if not self.buf and not self.fut.done():
                    self.fut.set_result(None)
            self.loop.remove_writer(self.fd)
        except BlockingIOError:
            return
        except OSError as error:
            self.bus._finalize(error)


class Transport(MessageBus):  # type: ignore[misc]
    """One connection to the bus at one of the addresses in `address`; `connect` makes it usable, `close` gives it back.

    With `descriptors` messages may bring some; a handler that wants one takes it out of the message's `unix_fds`.
    """

    def __init__(self, address: str, *, descriptors: bool = False) -> None:
        self._unmarshaller: Unmarshaller
        self._unwanted = 0
        super().__init__(bus_address=address, negotiate_unix_fd=descriptors)
        self._writer = PatientWriter(self)

    def answer_calls(self, handler: Callable[[Message], Message | None]) -> None:
        """`handler` gives the reply to every method call, or None where it is sent later.

        It must not raise: dbus-next would send the caller a traceback.
        """

        def handle(message: Message) -> Message | bool | None:
            if message.message_type is not MessageType.METHOD_CALL:
                return None
            reply = handler(message)
            return True if reply is None or message.flags & MessageFlag.NO_REPLY_EXPECTED else reply

        self.add_message_handler(handle)

    def send(self, message: Message) -> asyncio.Future[None]:
        future: asyncio.Future[None] = super().send(message)
        future.add_done_callback(_retrieve)
        return future

    async def ask(self, call: Message, timeout_sec: float, on_reply: Callable[[Message], None] | None = None) -> Message:
        """The reply to `call`, an error message included; `on_reply` has it first, and while its descriptors are open.

        Raises TimeoutError, or ConnectionError when the connection is lost. A reply that comes later is not missed by anybody.
        """
        future: asyncio.Future[Message | None] = self._loop.create_future()

        def handle(reply: Message | None, _error: Exception | None) -> None:
            if not future.done():
                if reply is not None and on_reply is not None:
                    on_reply(reply)
                future.set_result(reply)

        self._call(call, handle)
        try:
            async with asyncio.timeout(timeout_sec):
                reply = await future
        finally:
            self._method_return_handlers.pop(call.serial, None)
        if reply is None:
            raise ConnectionError("the connection to the bus was lost")
        return reply

    @property
    def unsent(self) -> int:
        """Messages that the bus has not taken yet."""
        return int(self._writer.messages.qsize())

    @property
    def disconnected(self) -> asyncio.Future[None]:
        """Done, with or without an exception, when the connection is gone."""
        future: asyncio.Future[None] = self._disconnect_future
        return future

    def close(self) -> None:
        self._finalize(ConnectionError("the connection to the bus was closed"))
        _retrieve(self._disconnect_future)
        _close_apart(self._unmarshaller.unix_fds)  # of a message that has come in half
        with contextlib.suppress(OSError):  # what was still to be written has no reader any more
            self._stream.close()
        self._sock.close()

    # What is replaced in dbus-next

    def _setup_socket(self) -> None:
        refusal = HostFacilityMissing("the bus address names no unix socket")
        for transport, options in self._bus_address:
            if transport != "unix":
                continue
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            try:
                sock.connect(_socket_name(options))
            except OSError as error:
                sock.close()
                refusal = HostFacilityMissing(f"nothing answers at {_spelled(options)}: {error.strerror or error}")
            else:
                self._sock, self._stream, self._fd = sock, sock.makefile("rwb"), sock.fileno()
                return
        raise refusal

    async def _auth_readline(self) -> str:
        line = b""
        while not line.endswith(b"\r\n"):
            byte = await self._loop.sock_recv(self._sock, 1)
            if not byte or len(line) > _AUTH_LINE_LIMIT_BYTES:
                raise HostError("the bus broke off the authentication")
            line += byte
        return line[:-2].decode("ascii", "replace")

    def _create_unmarshaller(self) -> Unmarshaller:
        return BoundedUnmarshaller(self._stream, self._sock if self._negotiate_unix_fd else None)

    def _on_message(self, message: Message) -> None:
        super()._on_message(message)
        if message.unix_fds:
            _close_apart(message.unix_fds)
            self._unwanted += 1
            if self._unwanted > UNWANTED_LIMIT:
                self._finalize(ConnectionError("strangers send descriptors"))

    def _message_reader(self) -> None:
        """One turn. What is left when it is over may lie in the stream's buffer, which no poll sees, so the next is queued."""
        if self._disconnected:
            return
        try:
            for _ in range(MESSAGES_A_TURN):
                if self.unsent > UNSENT_LIMIT:
                    self._loop.remove_reader(self._fd)
                    self._loop.call_later(_RETRY_READING_SEC, self._resume_reading)
                    return
                if not self._unmarshaller.unmarshall():
                    return
                message, self._unmarshaller = self._unmarshaller.message, self._create_unmarshaller()
                self._on_message(message)
                if self._disconnected:
                    return
        except Exception as error:
            self._finalize(error)
            return
        self._loop.call_soon(self._message_reader)

    def _resume_reading(self) -> None:
        if not self._disconnected:
            self._loop.add_reader(self._fd, self._message_reader)
            self._message_reader()


def daemon_call(member: str, signature: str, body: list[object]) -> Message:
    """A call of the bus itself."""
    return Message(destination=DAEMON, path=DAEMON_PATH, interface=DAEMON, member=member, signature=signature, body=body)


def failure_reason(error: Exception) -> str:
    """Why a connection could not be made or a call had no answer, in words: asyncio and dbus-next raise some without a text."""
    if isinstance(error, TimeoutError):
        return "there was no answer in time"
    return str(error) or "the connection was closed"


def checked_address(address: str) -> str:
    """`address`, or UsageError where it is not a D-Bus address with a unix socket in it."""
    try:
        transports = parse_address(address)
        names = [_socket_name(options) for transport, options in transports if transport == "unix"]
    except (InvalidAddressError, HostError) as error:
        raise UsageError(f"bus address {address!r} is malformed: {error}") from None
    if not names:
        raise UsageError(f"bus address {address!r} has no unix socket; unix:path=/… is what is understood")
    return address


def _socket_name(options: dict[str, str]) -> str:
    if "path" in options:
        return options["path"]
    if "abstract" in options:
        return f"\0{options['abstract']}"
    if "runtime" in options:  # D-Bus specification, Unix domain sockets: runtime=yes
        return f"{os.environ.get('XDG_RUNTIME_DIR', '/run')}/bus"
    raise HostFacilityMissing("a unix address needs path=, abstract= or runtime=yes")


def _spelled(options: dict[str, str]) -> str:
    return _socket_name(options).replace("\0", "@")


def _retrieve(future: asyncio.Future[None]) -> None:
    """Look at the exception, lest asyncio report it as never retrieved; `disconnected` tells of a lost connection."""
    if not future.cancelled():
        future.exception()


def _close_apart(fds: list[int]) -> None:
    """Close `fds` in a thread that nobody waits for."""
    if fds:
        threading.Thread(target=_close_all, args=(list(fds),), name="closer", daemon=True).start()


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
