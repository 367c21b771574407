"""Runs on the host under test, where dbus-next is: bus_flood.py KIND BUS_NAME SECONDS is a client that nobody wants.

It sends calls to the VM as fast as the bus takes them, says `begun`, and ends with a line of what it sent and what came
back: `sent 123`, and for each error name how often. KIND is one of

* calls: reads of a property, all replies read;
* deaf: the same, no reply ever read;
* verbs: Pause, by whoever runs this, no reply wanted;
* toggles: Pause and Resume in turn, no reply wanted;
* descriptors: reads of a property with an open file in each.
"""

from __future__ import annotations

import array
import os
import select
import socket
import struct
import sys
import time
from collections import Counter

from dbus_next import Message
from dbus_next.constants import MessageFlag

OBJECT = "/org/vmservice/VM1"
INTERFACE = "org.vmservice.VM1"
A_TIME = 64
_SERIAL = struct.Struct("<I")


def connect() -> socket.socket:
    """An authenticated connection, with descriptors negotiated, that has said Hello."""
    bus = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bus.settimeout(5)
    bus.connect("/run/dbus/system_bus_socket")
    identity = str(os.getuid()).encode().hex()
    bus.sendall(f"\0AUTH EXTERNAL {identity}\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n".encode())
    told = b""
    while told.count(b"\r\n") < 2:
        told += bus.recv(1)
    daemon = "org.freedesktop.DBus"
    bus.sendall(Message(destination=daemon, path="/", interface=daemon, member="Hello", serial=1)._marshall())
    bus.recv(4096)
    return bus


def templates(kind: str, name: str) -> list[bytearray]:
    """The calls to send in turn."""
    verbs = {"verbs": ["Pause"], "toggles": ["Pause", "Resume"]}.get(kind, [])
    calls = [
        Message(destination=name, path=OBJECT, interface=INTERFACE, member=verb, flags=MessageFlag.NO_REPLY_EXPECTED, serial=2)
        for verb in verbs
    ]
    if not calls:
        call = Message(
            destination=name,
            path=OBJECT,
            interface="org.freedesktop.DBus.Properties",
            member="Get",
            signature="ss",
            body=[INTERFACE, "State"],
            unix_fds=[0] if kind == "descriptors" else [],
            serial=2,
        )
        calls.append(call)
    return [bytearray(call._marshall(negotiate_unix_fd=kind == "descriptors")) for call in calls]


def take(bus: socket.socket, errors: Counter[str]) -> None:
    """Read what there is; error names are looked for in the bytes as they are."""
    if not select.select([bus], [], [], 0)[0]:
        return
    data = bus.recv(1 << 20)
    for error in ("LimitsExceeded", "NotSupported", "AccessDenied"):
        errors[error] += data.count(b"org.freedesktop.DBus.Error." + error.encode())


def main(kind: str, name: str, seconds: float) -> None:
    bus = connect()
    calls = templates(kind, name)
    descriptor = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))] if kind == "descriptors" else []
    errors: Counter[str] = Counter()
    sent = 0
    print("begun", flush=True)
    end = time.monotonic() + seconds
    bus.settimeout(0.2)
    while time.monotonic() < end:
        bundle = bytearray()
        for _ in range(1 if descriptor else A_TIME):
            call = calls[sent % len(calls)]
            sent += 1
            _SERIAL.pack_into(call, 8, sent + 1)
            bundle += call
        try:
            if descriptor:
                bus.sendmsg([bundle], descriptor)
            else:
                bus.sendall(bundle)
        except TimeoutError:  # the bus takes no more of this client
            if kind != "deaf":
                take(bus, errors)
            break
        except OSError:
            errors["disconnected"] += 1
            break
        if kind != "deaf":
            take(bus, errors)
    while time.monotonic() < end:
        time.sleep(0.1)
    print(f"sent {sent}", *(f"{error} {count}" for error, count in sorted(errors.items()) if count))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
