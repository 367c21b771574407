"""The manager on a private bus, a client of it that hears all its signals, and a systemd that a test plays."""

from __future__ import annotations

import asyncio
import fnmatch
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from dbus_next import Message, Variant
from dbus_next.constants import MessageType
from support.bus_client import PROPERTIES, TIMEOUT_SEC, Client, client
from support.clock import Clock
from support.mock_service import MockService, mock_service

from vmservice.client.units import SYSTEMD, UNIT_INTERFACE, unit_path
from vmservice.manager.manager import IDLE_SEC, Manager
from vmservice.manager.names import INTERFACE, OBJECT_MANAGER, OBJECT_PATH, VM_INTERFACE, vm_path

SYSTEMD_PATH = "/org/freedesktop/systemd1"


class Managing:
    """A manager that runs in this process."""

    def __init__(self, address: str, folder: Path) -> None:
        self.clock = Clock()
        self.log: list[str] = []
        self.acquired = asyncio.Event()
        self.leaving = 0
        self.manager = Manager(
            address,
            str(folder),
            "1.2.3",
            on_acquired=self.acquired.set,
            on_leaving=self._on_leaving,
            log=self.log.append,
            call_later=self.clock.call_later,
        )

    def _on_leaving(self) -> None:
        self.leaving += 1

    def idle_for_a_minute(self) -> None:
        self.clock.advance(IDLE_SEC)


@asynccontextmanager
async def managing(address: str, folder: Path) -> AsyncIterator[Managing]:
    made = Managing(address, folder)
    run = asyncio.ensure_future(made.manager.run())
    try:
        async with asyncio.timeout(TIMEOUT_SEC):
            acquired = asyncio.ensure_future(made.acquired.wait())
            await asyncio.wait({run, acquired}, return_when=asyncio.FIRST_COMPLETED)
            acquired.cancel()
        yield made
    finally:
        made.manager.close()
        await run


class Desktop:
    """A client as a desktop is one: it asks for all objects once, and then follows the signals."""

    def __init__(self, caller: Client) -> None:
        self.caller = caller
        self.objects: dict[str, dict[str, object]] = {}
        self.heard: list[tuple[str, str]] = []  # the signal and whose object it is about
        self._news = asyncio.Event()
        caller.bus.add_message_handler(self._on_message)

    async def look(self) -> None:
        header = {"destination": "org.freedesktop.DBus", "path": "/org/freedesktop/DBus", "interface": "org.freedesktop.DBus"}
        rule = f"type='signal',sender='{INTERFACE}',path_namespace='{OBJECT_PATH}'"
        await self.caller.call("", "AddMatch", "s", [rule], **header)
        managed = await self.call("GetManagedObjects", interface=OBJECT_MANAGER)
        self.objects = {path: _plain(interfaces[VM_INTERFACE]) for path, interfaces in managed.items()}

    async def call(self, member: str, signature: str = "", body: list[Any] | None = None, **header: Any) -> Any:
        fields = {"destination": INTERFACE, "path": OBJECT_PATH, "interface": INTERFACE, **header}
        return await self.caller.call("", member, signature, body, **fields)

    async def get_all(self, name: str) -> dict[str, object]:
        return _plain(await self.call("GetAll", "s", [VM_INTERFACE], path=vm_path(name), interface=PROPERTIES))

    def names(self) -> set[object]:
        return {values["Name"] for values in self.objects.values()}

    def get(self, name: str, key: str) -> object:
        return self.objects.get(vm_path(name), {}).get(key)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Returns when `condition` holds; it is looked at after each signal."""
        async with asyncio.timeout(TIMEOUT_SEC):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def _on_message(self, message: Message) -> None:
        if message.message_type is not MessageType.SIGNAL or not message.path.startswith(OBJECT_PATH):
            return
        if message.member == "InterfacesAdded":
            path, interfaces = message.body
            assert path not in self.objects
            self.objects[path] = _plain(interfaces[VM_INTERFACE])
        elif message.member == "InterfacesRemoved":
            path, interfaces = message.body
            assert interfaces == [VM_INTERFACE]
            del self.objects[path]
        elif message.member == "PropertiesChanged":
            path = message.path
            assert message.body[0] == VM_INTERFACE
            assert message.body[2] == []
            self.objects[path].update(_plain(message.body[1]))
        else:  # a mock tells of its calls
            return
        self.heard.append((message.member, path.rpartition("/")[2]))
        self._news.set()


def _plain(values: dict[str, Variant]) -> dict[str, object]:
    return {key: variant.value for key, variant in values.items()}


@asynccontextmanager
async def desktop(address: str) -> AsyncIterator[Desktop]:
    async with client(address) as caller:
        made = Desktop(caller)
        await made.look()
        yield made


class Systemd:
    """`units` are those that it has loaded: load, active and sub state by name. `said` is what a unit's service shows."""

    def __init__(self) -> None:
        self.service: MockService
        self.units: dict[str, tuple[str, str, str]] = {}
        self.said: dict[str, tuple[str, str, int]] = {}  # StatusText, Result, ExecMainStatus

    def answer(self, call: Message) -> Message | None:
        if call.member == "Subscribe":
            return Message.new_method_return(call)
        if call.member == "ListUnitsByPatterns":
            states, patterns = call.body
            assert states == []
            found = [name for name in self.units if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
            entries = [[name, "A VM", *self.units[name], "", unit_path(name), 0, "", "/"] for name in found]
            return Message.new_method_return(call, "a(ssssssouso)", [entries])
        name = next(name for name in self.units if unit_path(name) == call.path)  # a look at any other would load it
        text, result, status = self.said[name]
        values: dict[str, Variant] = {
            "StatusText": Variant("s", text),
            "Result": Variant("s", result),
            "ExecMainStatus": Variant("i", status),
            "ExecMainCode": Variant("i", {"exit-code": 1, "signal": 2}.get(result, 0)),  # CLD_EXITED, CLD_KILLED
            "MainPID": Variant("u", 0),
            "ControlGroup": Variant("s", ""),
        }
        return Message.new_method_return(call, "v", [values[call.body[1]]])

    def set(self, name: str, active: str, sub: str, said: tuple[str, str, int] = ("", "success", 0)) -> None:
        """A unit changes, and systemd says so as it does: UnitNew for one that it has not loaded before."""
        is_new = name not in self.units
        self.units[name] = ("loaded", active, sub)
        self.said[name] = said
        if is_new:
            self._say(SYSTEMD_PATH, f"{SYSTEMD}.Manager", "UnitNew", "so", [name, unit_path(name)])
        changes = {"ActiveState": Variant("s", active), "SubState": Variant("s", sub)}
        self._say(unit_path(name), PROPERTIES, "PropertiesChanged", "sa{sv}as", [UNIT_INTERFACE, changes, []])

    def unload(self, name: str) -> None:
        del self.units[name]
        self._say(SYSTEMD_PATH, f"{SYSTEMD}.Manager", "UnitRemoved", "so", [name, unit_path(name)])

    def reloaded(self) -> None:
        self._say(SYSTEMD_PATH, f"{SYSTEMD}.Manager", "Reloading", "b", [False])

    def _say(self, path: str, interface: str, member: str, signature: str, body: list[Any]) -> None:
        self.service.bus.send(Message.new_signal(path, interface, member, signature, body))


@asynccontextmanager
async def systemd(address: str) -> AsyncIterator[Systemd]:
    mock = Systemd()
    async with mock_service(address, SYSTEMD, mock.answer) as mock.service:
        yield mock
