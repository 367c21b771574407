"""Messages to bytes and back: dbus-next's `Message`, with what its reader and writer lack.

What dbus-next 0.2.3 does, and what is done here instead:

* it unpacks every body, whatever its size (in Python, a second for a few megabytes), and keeps each signature that it has ever
  seen: here a message is unpacked only if it is small and of a signature that its reader knows;
* it reads and writes a header as it does any argument, type by type: here the few types that header fields have are read and
  written directly, in a fifth of the time;
* it gives up a connection on a message that it cannot unpack: here that message is passed over.

Bodies are dbus-next's to read and to write.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

from dbus_next._private.constants import LITTLE_ENDIAN, PROTOCOL_VERSION
from dbus_next._private.marshaller import Marshaller
from dbus_next._private.unmarshaller import Unmarshaller
from dbus_next.constants import MessageFlag, MessageType
from dbus_next.message import Message
from dbus_next.signature import SignatureTree

from vmservice.errors import HostError

BODY_LIMIT_BYTES = 64 * 1024
HEADER_LIMIT_BYTES = 16 * 1024
FIXED_BYTES = 16  # of each message: byte order, type, flags, version, and the lengths

# D-Bus specification, header fields.
PATH, INTERFACE, MEMBER, ERROR_NAME, REPLY_SERIAL, DESTINATION, SENDER, SIGNATURE, UNIX_FDS = range(1, 10)

_STRINGS = b"os"
_UINT32 = ord("u")
_SIGNATURE = ord("g")
_FIXED = {b"l": struct.Struct("<BBBBIII"), b"B": struct.Struct(">BBBBIII")}
_LENGTH = {b"l": struct.Struct("<I"), b"B": struct.Struct(">I")}
_NO_MORE = io.BytesIO()  # for a body that claims to be longer than its message

# The signatures of calls whose body is unpacked, and how much of it. Set's value is not looked at: no property is writable.
_OF_CALLS = {"": "", "y": "y", "s": "s", "ss": "ss", "ssv": "ss"}
_OF_REPLIES = ("s", "u", "h", "(bba{ss})")  # of the bus itself, errors, logind's Inhibit and polkit's CheckAuthorization
_OF_SIGNALS = ("sss", "b")  # NameOwnerChanged, and logind's PrepareForSleep


class MessageReader:
    """Makes messages of bytes, as a VM needs them."""

    def read(self, data: bytes) -> Message:
        """The whole message `data`, with its `size_bytes`. If a part is over its limit, it is `too_large`, with an empty body.

        What dbus-next will not have, a type of message from the future, say, is a signal that nobody listens to.
        """
        order, unpack = data[:1], _FIXED[data[:1]].unpack_from
        _, kind, flags, _, body_bytes, serial, fields_bytes = unpack(data)
        body_start = _body_start(fields_bytes)
        try:
            fields = _read_fields(data, FIXED_BYTES + fields_bytes, _LENGTH[order].unpack_from)
            message = self._message(MessageType(kind), MessageFlag(flags), serial, fields, data, body_start)
        except (ValueError, TypeError, IndexError, EOFError, struct.error):
            message = Message.new_signal("/", "org.vmservice.Ignored", "Ignored")
            message.serial = serial
            message.too_large = False
            fields = {}
        message.descriptors = fields.get(UNIX_FDS, 0)
        message.unix_fds = []
        message.size_bytes = fields_bytes + body_bytes
        return message

    def _message(
        self, kind: MessageType, flags: MessageFlag, serial: int, fields: dict[int, str | int], data: bytes, body_start: int
    ) -> Message:
        signature = str(fields.get(SIGNATURE, ""))
        body_limit = self._body_limit_bytes(kind, signature)
        too_large = len(data) - body_start > body_limit or body_start > HEADER_LIMIT_BYTES
        unpacked = SignatureTree._get("" if too_large else self._unpacked_part(kind, signature))
        message = Message(
            destination=fields.get(DESTINATION),
            path="/" if too_large else fields.get(PATH),
            interface=fields.get(INTERFACE),
            member=fields.get(MEMBER),
            message_type=kind,
            flags=flags,
            error_name=fields.get(ERROR_NAME),
            reply_serial=fields.get(REPLY_SERIAL),
            sender=fields.get(SENDER),
            signature=unpacked,
            body=_read_body(data, body_start, unpacked) if unpacked.types else [],
            serial=serial,
        )
        message.signature = signature
        message.too_large = too_large
        return message

    def _body_limit_bytes(self, _kind: MessageType, _signature: str) -> int:
        return BODY_LIMIT_BYTES

    def _unpacked_part(self, kind: MessageType, signature: str) -> str:
        """The part of a body of this signature that is looked at."""
        if kind is MessageType.METHOD_CALL:
            return _OF_CALLS.get(signature, "")
        return signature if signature in (_OF_SIGNALS if kind is MessageType.SIGNAL else _OF_REPLIES) else ""


def message_bytes(data: bytes | bytearray) -> int:
    """How long the message is that begins with `data`, FIXED_BYTES at least. HostError if that is no message."""
    order = bytes(data[:1])
    if order not in _FIXED:
        raise HostError("the bus sent a message of unknown byte order")
    _, _, _, version, body_bytes, _, fields_bytes = _FIXED[order].unpack_from(data)
    if version != PROTOCOL_VERSION:
        raise HostError(f"the bus speaks protocol version {version}, not {PROTOCOL_VERSION}")
    return int(_body_start(fields_bytes) + body_bytes)


def with_serial(message: bytes, serial: int) -> bytes:
    """The same message of ours under another serial."""
    return b"%b%b%b" % (message[:8], serial.to_bytes(4, "little"), message[12:])


def packed(message: Message, body: bytes | None = None) -> bytes:
    """`message`, which brings no descriptors, as it goes over the wire; with a `body` of `packed_body`, if given."""
    fields = b""
    for code, kind, text in (
        (PATH, b"o", message.path),
        (INTERFACE, b"s", message.interface),
        (MEMBER, b"s", message.member),
        (ERROR_NAME, b"s", message.error_name),
        (DESTINATION, b"s", message.destination),
    ):
        if text:
            value = text.encode()
            fields = b"%b%c\1%b\0%b%b\0" % (_padded(fields), code, kind, len(value).to_bytes(4, "little"), value)
    if message.reply_serial:
        fields = b"%b%c\1u\0%b" % (_padded(fields), REPLY_SERIAL, message.reply_serial.to_bytes(4, "little"))
    if message.signature:
        signature = message.signature.encode()
        fields = b"%b%c\1g\0%c%b\0" % (_padded(fields), SIGNATURE, len(signature), signature)
    if body is None:
        body = packed_body(message.signature, message.body) if message.signature else b""
    fixed = _FIXED[b"l"].pack(
        LITTLE_ENDIAN, message.message_type.value, message.flags.value, PROTOCOL_VERSION, len(body), message.serial, len(fields)
    )
    return b"%b%b%b" % (fixed, _padded(fields), body)


def packed_body(signature: str, values: list[object]) -> bytes:
    """A body of this signature, which has no descriptors in it."""
    marshaller = Marshaller(signature, values)
    marshaller.marshall()
    return bytes(marshaller.buffer)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def _body_start(fields_bytes: int) -> int:
    return FIXED_BYTES + fields_bytes + (-fields_bytes % 8)


def _read_fields(data: bytes, end: int, unpack_length: Callable[[bytes, int], tuple[int]]) -> dict[int, str | int]:
    """Header field → value: an array, up to `end`, of a byte and a variant each. ValueError for a type that no field has."""
    fields: dict[int, str | int] = {}
    at = FIXED_BYTES
    while at < end:
        code, signature_chars, kind = data[at : at + 3]
        at += 4  # with the NUL of the variant's signature
        if signature_chars != 1:
            raise ValueError("a header field of a type that is none of theirs")
        if kind in _STRINGS:
            start = at + 4
            at = start + unpack_length(data, at)[0] + 1
            fields[code] = data[start : at - 1].decode()
        elif kind == _SIGNATURE:
            start = at + 1
            at = start + data[at] + 1
            fields[code] = data[start : at - 1].decode()
        elif kind == _UINT32:
            (fields[code],) = unpack_length(data, at)
            at += 4
        else:
            raise ValueError("a header field of a type that is none of theirs")
        at += -at % 8
    return fields


def _read_body(data: bytes, start: int, tree: SignatureTree) -> list[object]:
    unmarshaller = Unmarshaller(_NO_MORE)
    unmarshaller.buf = bytearray(data)
    unmarshaller.offset = start
    unmarshaller.endian = data[0]
    return [unmarshaller.read_argument(kind) for kind in tree.types]
