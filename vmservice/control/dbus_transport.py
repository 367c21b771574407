"""A connection to the bus, made for a process that must not hang, leak or be talked to death.

dbus-next has the messages (see `dbus_message.py`) and the authentication. Its `MessageBus` is not used; what version 0.2.3
does, and what is done here instead:

* it connects with a blocking connect(2), which waits for ever when a stopped daemon's backlog is full: here it never blocks;
* it spins without end when the daemon closes the connection during authentication: here that is an error;
* it reads for as long as there is something to read, so that a flood of calls starves timers and signals: here it takes turns;
* it takes a full socket for a broken one and drops the connection: here the rest waits until there is room;
* it sends each message a turn of the event loop later, and by itself: here what a call leads to, signals and the reply, goes
  out at once, in one piece and in its order;
* it never closes its socket: `close` does;
* it brings along what a VM never uses, readers of XML and of GLib's main loop among them.

File descriptors are negotiated only where `descriptors` says so (see `login.py`); else the bus refuses a message that carries
one. What nobody takes of those that came is closed in a thread: to close one may wait for the file system that it belongs to.
"""

from __future__ import annotations

import array
import asyncio
import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from itertools import islice

from dbus_next.auth import AuthExternal
from dbus_next.constants import MessageFlag, MessageType
from dbus_next.message import Message

from vmservice.control.dbus_address import socket_names
from vmservice.control.dbus_message import FIXED_BYTES, MessageReader, message_bytes, packed, with_serial
from vmservice.control.names import DAEMON, DAEMON_PATH
from vmservice.errors import HostError, HostFacilityMissing

MESSAGES_A_TURN = 32
UNSENT_LIMIT = 1024
UNWANTED_LIMIT = 8  # messages with descriptors that nobody takes
_RETRY_READING_SEC = 0.02
_AUTH_LINE_LIMIT_BYTES = 512
_CHUNK_BYTES = 64 * 1024
_PIECES_A_SEND = 64
_DESCRIPTORS_A_MESSAGE = 16  # of dbus-daemon's default limits: max_message_unix_fds


class Transport:
    """One connection to the bus at one of the addresses in `address`; `connect` makes it usable, `close` gives it back.

    Made inside the running event loop. With `descriptors` messages may bring some; a handler that wants one takes it out of the
    message's `unix_fds`. `disconnected` is done when the connection is gone.
    """

    reader = MessageReader()

    def __init__(self, address: str, *, descriptors: bool = False) -> None:
        self._loop = asyncio.get_running_loop()
        self.disconnected: asyncio.Future[None] = self._loop.create_future()
        self.unique_name = ""
        self._descriptors = descriptors
        self._on_call: Callable[[Message], Message | None] | None = None
        self._handlers: list[Callable[[Message], None]] = []
        self._awaited: dict[int, Callable[[Message | None], None]] = {}  # by the serial of the call
        self._serial = 0
        self._received = bytearray()
        self._received_fds: list[int] = []
        self._unwanted = 0
        self._unsent: deque[bytes] = deque()
        self._is_full = False  # the socket: what is unsent waits for room
        self._will_flush = False
        self._sock = _connected(address)
        self._fd = self._sock.fileno()

    async def connect(self) -> None:
        """Raises HostError, OSError, or what dbus-next makes of a peer that is no bus."""
        auth = AuthExternal()
        line = auth._authentication_start(negotiate_unix_fd=self._descriptors)
        await self._loop.sock_sendall(self._sock, b"\0" + auth._format_line(line))
        while line != "BEGIN":
            line = auth._receive_line(await self._auth_line())
            await self._loop.sock_sendall(self._sock, auth._format_line(line))
        self._loop.add_reader(self._fd, self._turn)
        reply = await self.ask(daemon_call("Hello", "", []), None)
        if reply.message_type is not MessageType.METHOD_RETURN or reply.signature != "s":
            raise HostError(f"the bus takes no more connections: {reply.error_name}")
        self.unique_name = reply.body[0]

    def add_message_handler(self, handler: Callable[[Message], None]) -> None:
        """`handler` sees every message, before anybody acts on it."""
        self._handlers.append(handler)

    def remove_message_handler(self, handler: Callable[[Message], None]) -> None:
        if handler in self._handlers:
            self._handlers.remove(handler)

    def answer_calls(self, handler: Callable[[Message], Message | None]) -> None:
        """`handler` gives the reply to every method call, or None where it is sent later."""
        self._on_call = handler

    def send(self, message: Message) -> None:
        """In its turn, and as soon as the bus takes it: a connection that is gone takes nothing."""
        self._serial += 1
        message.serial = self._serial
        self._queue(packed(message))

    def send_packed(self, message: bytes) -> None:
        """As `send`, what `packed` has made of a message; its serial is put in here."""
        self._serial += 1
        self._queue(with_serial(message, self._serial))

    def _queue(self, data: bytes) -> None:
        if self._is_gone:
            return
        self._unsent.append(data)
        if not self._will_flush:
            self._will_flush = True
            self._loop.call_soon(self._flush)

    async def ask(self, call: Message, timeout_sec: float | None, on_reply: Callable[[Message], None] | None = None) -> Message:
        """The reply to `call`, an error message included; `on_reply` has it first, and while its descriptors are open.

        Raises TimeoutError, or ConnectionError when the connection is lost. A reply that comes later is not missed by anybody.
        """
        future: asyncio.Future[Message | None] = self._loop.create_future()

        def handle(reply: Message | None) -> None:
            if not future.done():
                if reply is not None and on_reply is not None:
                    on_reply(reply)
                future.set_result(reply)

        self.send(call)
        if self._is_gone:
            raise ConnectionError("the connection to the bus was lost")
        self._awaited[call.serial] = handle
        try:
            async with asyncio.timeout(timeout_sec):
                reply = await future
        finally:
            self._awaited.pop(call.serial, None)
        if reply is None:
            raise ConnectionError("the connection to the bus was lost")
        return reply

    @property
    def connected(self) -> bool:
        return bool(self.unique_name) and not self._is_gone

    @property
    def unsent(self) -> int:
        """Messages that the bus has not taken yet."""
        return len(self._unsent)

    def disconnect(self) -> None:
        """Nothing is sent or received any more; who waits for a reply is told."""
        if self._is_gone:
            return
        self.disconnected.set_result(None)
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        awaited, self._awaited = self._awaited, {}
        for handle in awaited.values():
            handle(None)
        self._handlers.clear()
        self._on_call = None

    def close(self) -> None:
        self.disconnect()
        _close_apart(self._received_fds)  # of a message that has come in half
        self._received_fds = []
        self._sock.close()

    @property
    def _is_gone(self) -> bool:
        return self.disconnected.done()

    async def _auth_line(self) -> str:
        line = b""
        while not line.endswith(b"\r\n"):
            byte = await self._loop.sock_recv(self._sock, 1)
            if not byte or len(line) > _AUTH_LINE_LIMIT_BYTES:
                raise HostError("the bus broke off the authentication")
            line += byte
        return line[:-2].decode("ascii", "replace")

    # Reading

    def _turn(self) -> None:
        """Act on what has come, in part if it is much: the socket's readiness, or a turn of its own, leads to the rest."""
        try:
            for _ in range(MESSAGES_A_TURN):
                if self._is_gone:
                    return
                if self.unsent > UNSENT_LIMIT:
                    self._loop.remove_reader(self._fd)
                    self._loop.call_later(_RETRY_READING_SEC, self._resume_reading)
                    return
                message = self._next_message()
                if message is None:
                    return
                self._act_on(message)
        except (OSError, EOFError, HostError):
            self.disconnect()
            return
        self._loop.call_soon(self._turn)

    def _resume_reading(self) -> None:
        if not self._is_gone:
            self._loop.add_reader(self._fd, self._turn)
            self._turn()

    def _next_message(self) -> Message | None:
        """None if it is not there yet."""
        while True:
            received = self._received
            if len(received) >= FIXED_BYTES and len(received) >= (size_bytes := message_bytes(received)):
                message = self.reader.read(bytes(received[:size_bytes]))
                del received[:size_bytes]
                message.unix_fds = self._received_fds[: message.descriptors]
                del self._received_fds[: message.descriptors]
                return message
            try:
                data = self._receive()
            except BlockingIOError:
                return None
            if not data:
                raise EOFError
            self._received += data

    def _receive(self) -> bytes:
        if not self._descriptors:
            return self._sock.recv(_CHUNK_BYTES)
        descriptors = array.array("i")
        space = socket.CMSG_SPACE(_DESCRIPTORS_A_MESSAGE * descriptors.itemsize)
        data, ancillary, _, _ = self._sock.recvmsg(_CHUNK_BYTES, space, socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
        self._received_fds += descriptors
        return data

    def _act_on(self, message: Message) -> None:
        """A handler that fails is our bug, and costs one message: neither the connection nor the VM."""
        self._will_flush = True
        try:
            for handler in tuple(self._handlers):
                handler(message)
            if message.message_type is MessageType.METHOD_CALL:
                reply = self._on_call(message) if self._on_call is not None else None
                if reply is not None and not message.flags & MessageFlag.NO_REPLY_EXPECTED:
                    self.send(reply)
            elif message.reply_serial in self._awaited:
                self._awaited.pop(message.reply_serial)(message)
        except Exception:
            logging.exception("a message from %s could not be acted on", message.sender)
        self._flush()
        if message.unix_fds:
            _close_apart(message.unix_fds)
            self._unwanted += 1
            if self._unwanted > UNWANTED_LIMIT:
                self.disconnect()

    # Writing

    def _flush(self) -> None:
        """Send what waits, in one piece, as far as the socket takes it."""
        self._will_flush = False
        if not self._is_full:
            self._write()

    def _write(self) -> None:
        unsent = self._unsent
        try:
            while unsent and not self._is_gone:
                sent_bytes = self._sock.sendmsg(islice(unsent, _PIECES_A_SEND))
                while unsent and sent_bytes >= len(unsent[0]):
                    sent_bytes -= len(unsent.popleft())
                if sent_bytes:
                    unsent[0] = unsent[0][sent_bytes:]
        except BlockingIOError:
            if not self._is_full:
                self._is_full = True
                self._loop.add_writer(self._fd, self._write)
            return
        except OSError:
            self.disconnect()
            return
        if self._is_full and not self._is_gone:
            self._is_full = False
            self._loop.remove_writer(self._fd)


def daemon_call(member: str, signature: str, body: list[object]) -> Message:
    """A call of the bus itself."""
    return Message(destination=DAEMON, path=DAEMON_PATH, interface=DAEMON, member=member, signature=signature, body=body)


def failure_reason(error: Exception) -> str:
    """Why a connection could not be made or a call had no answer, in words: asyncio and dbus-next raise some without a text."""
    if isinstance(error, TimeoutError):
        return "there was no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or "the connection was closed"


def _connected(address: str) -> socket.socket:
    """A socket that never blocks, at the first of the addresses where somebody answers."""
    refusal = HostFacilityMissing("the bus address names no unix socket")
    for name in socket_names(address):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.connect(name)
        except OSError as error:
            sock.close()
            refusal = HostFacilityMissing(f"nothing answers at {name.replace(chr(0), '@')}: {error.strerror or error}")
        else:
            return sock
    raise refusal


def _close_apart(fds: list[int]) -> None:
    """Close `fds` in a thread that nobody waits for."""
    if fds:
        threading.Thread(target=_close_all, args=(list(fds),), name="closer", daemon=True).start()


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
