"""Runs in the container, with the package's own libraries: a client of org.vmservice.Manager1 as a desktop is one.

It asks for all objects once and then follows the signals. Each VM that comes or goes is a line, and each value; those that come
together are written together.
"""

from __future__ import annotations

import asyncio
from typing import Any

from dbus_next import Message
from dbus_next.aio import MessageBus
from dbus_next.constants import BusType, MessageType

NAME = "org.vmservice.Manager1"
VM = f"{NAME}.VM"
PATH = "/org/vmservice/Manager1"
DAEMON = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")

names: dict[str, str] = {}


def say(*words: object) -> None:
    print(*words, flush=True)


def say_values(name: str, values: dict[str, Any]) -> None:
    say("\n".join(f"{name}.{key}={variant.value}" for key, variant in values.items()))


def come(path: str, interfaces: dict[str, dict[str, Any]]) -> None:
    names[path] = interfaces[VM]["Name"].value
    say("+", names[path])
    say_values(names[path], interfaces[VM])


def on_message(message: Message) -> None:
    if message.message_type is not MessageType.SIGNAL or not message.path.startswith(PATH):
        return
    if message.member == "InterfacesAdded":
        come(*message.body)
    elif message.member == "InterfacesRemoved":
        say("-", names.pop(message.body[0]))
    elif message.member == "PropertiesChanged":
        say_values(names[message.path], message.body[1])


async def main() -> None:
    bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
    bus.add_message_handler(on_message)

    async def call(destination: str, path: str, interface: str, member: str, signature: str, body: list[Any]) -> Any:
        reply = await bus.call(
            Message(destination=destination, path=path, interface=interface, member=member, signature=signature, body=body)
        )
        assert reply.message_type is MessageType.METHOD_RETURN, reply.body
        return reply.body[0] if reply.body else None

    await call(*DAEMON, "AddMatch", "s", [f"type='signal',sender='{NAME}'"])
    objects = await call(NAME, PATH, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects", "", [])
    for path, interfaces in objects.items():
        come(path, interfaces)
    say("watching")
    await bus.wait_for_disconnect()


asyncio.run(main())
