"""Runs in the container: a process that has a VM's name on the bus, and of which nothing is as a VM has it.

`lying_vm.py NAME TEXT`, where TEXT is a text that a careless reader would take for something else.
"""

from __future__ import annotations

import asyncio
import sys

from dbus_next import Message, MessageType, Variant
from dbus_next.aio import MessageBus
from dbus_next.constants import BusType

NAME, TEXT = sys.argv[1:]
VM = "org.vmservice.VM1"

# JavaScript asks an object's toString for its text.
NO_TEXT = Variant("a{sv}", {"toString": Variant("s", TEXT)})

LIES = {
    "Name": Variant("s", NAME),
    "State": Variant("s", "constructor"),
    "VCPUs": Variant("s", TEXT),
    "MaxVCPUs": Variant("y", 9),
    "Memory": Variant("a{sv}", {"toString": Variant("s", TEXT)}),
    "LastExit": Variant("s", TEXT),
    "GuestReady": Variant("as", []),
    "Devices": Variant(
        "a(ssa{sv})",
        [
            ["console", "--config=/etc/shadow", {"mode": Variant("s", "socket")}],
            ["console", "serial", {"mode": NO_TEXT}],
            [TEXT, TEXT, {TEXT: NO_TEXT, "__proto__": Variant("s", TEXT)}],
        ],
    ),
    "constructor": Variant("s", TEXT),
}


async def main() -> None:
    bus = await MessageBus(bus_type=BusType.SYSTEM).connect()

    def on_message(message: Message) -> Message | None:
        if message.message_type is not MessageType.METHOD_CALL:
            return None
        if message.member == "GetAll":
            return Message.new_method_return(message, "a{sv}", [LIES])
        if message.member == "Get":
            return Message.new_method_return(message, "v", [LIES[message.body[1]]])
        return Message.new_error(message, f"{VM}.Error.Failed", TEXT)

    bus.add_message_handler(on_message)
    await bus.request_name(f"{VM}.{NAME}")
    await bus.wait_for_disconnect()


asyncio.run(main())
