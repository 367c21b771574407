"""Bytes on the wire are what dbus-next would write and read, and no peer's bytes end more than their own message."""

from __future__ import annotations

import io
import struct
from typing import Any

import pytest
from dbus_next import Message, Variant
from dbus_next._private.unmarshaller import Unmarshaller
from dbus_next.constants import MessageFlag, MessageType

from vmservice.control.dbus_message import BODY_LIMIT_BYTES, MessageReader, message_bytes, packed, with_serial
from vmservice.errors import HostError

CALL = Message(destination="a.b", path="/a", interface="a.b", member="M", signature="ss", body=["x", "é"], serial=5)
SENT = [
    CALL,
    Message(destination="a.b", path="/", member="M", serial=1, flags=MessageFlag.NO_AUTOSTART),
    Message(message_type=MessageType.METHOD_RETURN, reply_serial=7, destination=":1.5", serial=2),
    Message(message_type=MessageType.ERROR, reply_serial=7, error_name="a.b", signature="s", body=["no"], serial=3),
    Message.new_signal("/a/b", "a.b", "S", "sa{sv}as", ["a.b", {"x": Variant("t", 1 << 40), "y": Variant("s", "z")}, []]),
]
FIELDS = (
    "destination",
    "path",
    "interface",
    "member",
    "error_name",
    "reply_serial",
    "message_type",
    "flags",
    "signature",
    "body",
)


@pytest.mark.parametrize("message", SENT, ids=lambda message: message.message_type.name)
def test_dbus_next_reads_what_is_packed(message: Message) -> None:
    message.serial = message.serial or 9
    read = Unmarshaller(io.BytesIO(packed(message))).unmarshall()
    assert [getattr(read, field) for field in FIELDS] == [getattr(message, field) for field in FIELDS]
    assert read.serial == message.serial


@pytest.mark.parametrize("message", SENT, ids=lambda message: message.message_type.name)
def test_what_dbus_next_packs_is_read(message: Message) -> None:
    message.serial = message.serial or 9
    data = bytes(message._marshall())
    assert message_bytes(data + b"more") == len(data)
    read = MessageReader().read(data)
    assert [getattr(read, field) for field in FIELDS[:-1]] == [getattr(message, field) for field in FIELDS[:-1]]
    assert read.body == (message.body if message.signature != "sa{sv}as" else [])
    assert (read.serial, read.too_large, read.unix_fds) == (message.serial, False, [])


def test_a_caller_of_the_other_byte_order() -> None:
    body = struct.pack(">I", 3) + b"abc\0"
    fields = b""
    for code, kind, value in ((1, b"o", b"/a"), (3, b"s", b"M"), (8, b"g", b"s")):
        length = bytes([len(value)]) if kind == b"g" else struct.pack(">I", len(value))
        fields += bytes(-len(fields) % 8) + bytes([code, 1]) + kind + b"\0" + length + value + b"\0"
    fields += bytes(-len(fields) % 8) + bytes([9, 1]) + b"u\0" + struct.pack(">I", 2)
    fixed = struct.pack(">cBBBIII", b"B", 1, 0, 1, len(body), 77, len(fields))
    data = fixed + fields + bytes(-len(fields) % 8) + body
    assert message_bytes(data) == len(data)
    read = MessageReader().read(data)
    assert (read.path, read.member, read.serial, read.body, read.descriptors) == ("/a", "M", 77, ["abc"], 2)


def test_a_body_over_the_limit_stays_packed() -> None:
    large = Message(destination="a.b", path="/a", member="M", signature="s", body=["x" * BODY_LIMIT_BYTES], serial=5)
    read = MessageReader().read(packed(large))
    assert (read.too_large, read.body, read.serial) == (True, [], 5)


def test_a_packed_message_goes_out_under_any_serial() -> None:
    read = MessageReader().read(with_serial(packed(CALL), 1 << 31))
    assert (read.serial, read.member, read.body) == (1 << 31, "M", ["x", "é"])


def _changed(at: int, *values: int) -> bytes:
    data = bytearray(packed(CALL))
    data[at : at + len(values)] = bytes(values)
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(_changed(17, 2), id="a header field of two types"),
        pytest.param(_changed(18, ord("v")), id="a header field of a type that none has"),
        pytest.param(_changed(20, 0xFF, 0xFF, 0xFF, 0xFF), id="a header field beyond the message"),
        pytest.param(_changed(24, 0xFF), id="a path that is not UTF-8"),
        pytest.param(_changed(len(packed(CALL)) - 7, 0xFF, 0xFF), id="a string that is longer than its message"),
    ],
)
def test_a_message_that_makes_no_sense_is_nobodys(data: bytes) -> None:
    assert message_bytes(data) == len(data)
    read = MessageReader().read(data)
    assert (read.message_type, read.member, read.serial) == (MessageType.SIGNAL, "Ignored", 5)


@pytest.mark.parametrize(("at", "value", "why"), [(0, ord("x"), "byte order"), (3, 2, "version 2, not 1")])
def test_a_peer_that_speaks_another_language(at: int, value: int, why: str) -> None:
    with pytest.raises(HostError, match=why):
        message_bytes(_changed(at, value))


def test_every_cut_of_a_message_is_survived() -> None:
    """A length that lies leaves the reader with a part: it may make nothing of it, and does no more than that."""
    data = packed(CALL)
    read: list[Any] = [MessageReader().read(data[:end]) for end in range(16, len(data))]
    assert {message.serial for message in read} == {5}
