"""org.freedesktop.systemd1 on a private bus, with as much of it as is asked: units of VMs, and their properties."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from dbus_next import Message, Variant
from dbus_next.constants import MessageType
from support.bus_client import client

from vmservice.client.units import MANAGER_INTERFACE, SERVICE_INTERFACE, UNIT_INTERFACE, unit_path

_TYPES = {
    "LoadState": "s",
    "ActiveState": "s",
    "SubState": "s",
    "MainPID": "u",
    "ControlGroup": "s",
    "Result": "s",
    "ExecMainCode": "i",
    "ExecMainStatus": "i",
    "StatusText": "s",
}
NOT_LOADED: dict[str, object] = {"LoadState": "not-found", "ActiveState": "inactive", "SubState": "dead"}
INACTIVE: dict[str, object] = {"LoadState": "loaded", "ActiveState": "inactive", "SubState": "dead", "Result": "success"}
RUNNING: dict[str, object] = {"LoadState": "loaded", "ActiveState": "active", "SubState": "running", "Result": "success"}
FAILED: dict[str, object] = {
    "LoadState": "loaded",
    "ActiveState": "failed",
    "SubState": "failed",
    "Result": "exit-code",
    "ExecMainCode": 1,
}


@asynccontextmanager
async def systemd(address: str, units: Mapping[str, Mapping[str, object]]) -> AsyncIterator[None]:
    """A manager on the bus at `address` that has these units, by the names of their VMs. Any other is not loaded."""
    by_path = {unit_path(f"vm@{vm}.service"): values for vm, values in units.items()}

    def answer(call: Message) -> Message:
        if call.member == "ListUnitsByPatterns":
            assert (call.interface, call.body) == (MANAGER_INTERFACE, [[], ["vm@*.service"]])
            listed = [_listed(vm, values) for vm, values in units.items()]
            return Message.new_method_return(call, "a(ssssssouso)", [listed])
        assert call.member == "Get", call.member
        interface, name = call.body
        assert interface == (UNIT_INTERFACE if name in NOT_LOADED else SERVICE_INTERFACE)
        kind = _TYPES[name]
        value = by_path.get(call.path, NOT_LOADED).get(name, "" if kind == "s" else 0)
        return Message.new_method_return(call, "v", [Variant(kind, value)])

    async with client(address) as peer:
        peer.bus.add_message_handler(
            lambda message: answer(message) if message.message_type is MessageType.METHOD_CALL else None
        )
        await peer.bus.request_name("org.freedesktop.systemd1")
        yield


def _listed(vm: str, values: Mapping[str, object]) -> list[object]:
    unit = f"vm@{vm}.service"
    states = [values["LoadState"], values["ActiveState"], values["SubState"]]
    return [unit, f"Virtual machine {vm}", *states, "", unit_path(unit), 0, "", "/"]
