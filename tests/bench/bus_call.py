"""Calls over the system bus, as cheap as they can be in Python: the bench measures the VM, not its client."""

from __future__ import annotations

import os
import socket
import struct
import time

_ADDRESS = "/run/dbus/system_bus_socket"
_PATH = "/org/vmservice/VM1"
_INTERFACE = "org.vmservice.VM1"
_DAEMON = "org.freedesktop.DBus"
# A hundred VMs that start at once take their time.
_TIMEOUT_SEC = 90.0

# D-Bus specification, message format: types and header fields.
_METHOD_CALL, _METHOD_RETURN, _ERROR = 1, 2, 3
_FIELD_PATH, _FIELD_INTERFACE, _FIELD_MEMBER, _FIELD_REPLY_SERIAL, _FIELD_DESTINATION, _FIELD_SIGNATURE = 1, 2, 3, 5, 6, 8


class CallFailed(Exception):
    """The VM refused, or is not there."""


class BusCaller:
    """One connection that calls the VM with the bus name `destination`."""

    def __init__(self, destination: str) -> None:
        self._destination = destination
        self._serial = 0
        self._pending = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_TIMEOUT_SEC)
        self._socket.connect(_ADDRESS)
        self._socket.sendall(b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\n")
        while not self._pending.endswith(b"\r\n"):
            self._pending += self._socket.recv(4096)
        self._pending = b""
        self._socket.sendall(b"BEGIN\r\n")
        self._call(_DAEMON, "/org/freedesktop/DBus", _DAEMON, "Hello")

    def call(self, member: str, number: int | None = None) -> None:
        """Returns when it is answered; `number` goes along as a byte."""
        argument = None if number is None else (b"y", bytes((number,)))
        kind, body = self._call(self._destination, _PATH, _INTERFACE, member, argument)
        if kind == _ERROR:
            raise CallFailed(f"{member} failed: {body!r}")

    def wait_for_name(self) -> None:
        deadline = time.monotonic() + _TIMEOUT_SEC
        while time.monotonic() < deadline:
            kind, _ = self._call(_DAEMON, "/org/freedesktop/DBus", _DAEMON, "GetNameOwner", (b"s", _string(self._destination)))
            if kind == _METHOD_RETURN:
                return
            time.sleep(0.005)
        raise CallFailed(f"{self._destination} did not come")

    def _call(
        self, destination: str, path: str, interface: str, member: str, argument: tuple[bytes, bytes] | None = None
    ) -> tuple[int, bytes]:
        """`argument` is its signature, one character, and how it lies in the body."""
        self._serial += 1
        signature, body = argument or (b"", b"")
        fields = [(_FIELD_PATH, b"o", path), (_FIELD_INTERFACE, b"s", interface), (_FIELD_MEMBER, b"s", member)]
        fields.append((_FIELD_DESTINATION, b"s", destination))
        array = b""
        for code, kind, value in fields:
            array = _padded(array) + bytes((code, 1)) + kind + b"\0" + _string(value)
        if signature:
            array = _padded(array) + bytes((_FIELD_SIGNATURE, 1)) + b"g\0" + b"\1" + signature + b"\0"
        head = struct.pack("<cBBBIII", b"l", _METHOD_CALL, 0, 1, len(body), self._serial, len(array))
        self._socket.sendall(_padded(head + array) + body)
        while True:
            kind_of_message, reply_serial, reply_body = self._receive()
            if reply_serial == self._serial and kind_of_message in (_METHOD_RETURN, _ERROR):
                return kind_of_message, reply_body

    def _receive(self) -> tuple[int, int, bytes]:
        while len(self._pending) < 16:
            self._pending += self._socket.recv(65536)
        _, kind, _, _, body_bytes, _, array_bytes = struct.unpack_from("<cBBBIII", self._pending)
        body_start = 16 + (array_bytes + 7 & ~7)
        while len(self._pending) < body_start + body_bytes:
            self._pending += self._socket.recv(65536)
        message, self._pending = self._pending[: body_start + body_bytes], self._pending[body_start + body_bytes :]
        marker = message.find(bytes((_FIELD_REPLY_SERIAL, 1)) + b"u\0", 16, 16 + array_bytes)
        reply_serial = struct.unpack_from("<I", message, marker + 4)[0] if marker >= 0 else 0
        return kind, reply_serial, message[body_start:]


def _string(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<I", len(data)) + data + b"\0"


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)
