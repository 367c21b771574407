"""The VMs that are on the bus: who has a VM's name, and the state that it says it is in."""

from __future__ import annotations

import asyncio

from dbus_next.message import Message

from vmservice.client.bus import Bus, CallFailed, NotInTime, printable
from vmservice.client.vms import LOOKS_AT_A_TIME
from vmservice.control.errors import wire_text
from vmservice.control.names import DAEMON, INTERFACE, OBJECT_PATH, PROPERTIES_INTERFACE, bus_name
from vmservice.errors import HostError, HostFacilityMissing
from vmservice.manager.looks import Looks
from vmservice.manager.model import Model
from vmservice.manager.whose import vm_of_bus_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

RULES = (
    f"type='signal',sender='{DAEMON}',interface='{DAEMON}',member='NameOwnerChanged',arg0namespace='{INTERFACE}'",
    f"type='signal',path='{OBJECT_PATH}',interface='{PROPERTIES_INTERFACE}',member='PropertiesChanged',arg0='{INTERFACE}'",
)

# A VM answers from its own tables. One that does not is asked again later, and holds up no other for longer than this.
LOOK_TIMEOUT_SEC = 2.0
STATE_LIMIT_CHARS = 64


class RunningVms:
    """Keeps `model` told. `start` once the connection of `bus` is made and its RULES are set; then every message."""

    def __init__(self, bus: Bus, model: Model, log: Callable[[str], None]) -> None:
        self._bus = bus
        self._model = model
        self._owners: dict[str, str] = {}  # VM → the connection that has its name
        self._owned: dict[str, set[str]] = {}  # and the other way round
        self._looks = Looks(self._look, most=LOOKS_AT_A_TIME, names_a_look=1, log=log)

    async def start(self, patience_sec: float) -> None:
        """Returns when all VMs have been looked at, or after so long. HostError where the bus does not tell its names."""
        try:
            (owned,) = await self._bus.ask_daemon("ListNames")
        except CallFailed as failed:
            raise HostError(f"the {self._bus.kind} bus does not list its names: {failed.text}") from None
        vms = {vm: name for name in owned if (vm := vm_of_bus_name(name)) is not None}
        turn = asyncio.Semaphore(LOOKS_AT_A_TIME)

        async def find(vm: str, name: str) -> None:
            async with turn:
                await self._find_owner(vm, name)

        async with asyncio.TaskGroup() as group:
            for vm, name in vms.items():
                group.create_task(find(vm, name))
        await self._looks.settled(patience_sec)

    async def _find_owner(self, vm: str, name: str) -> None:
        """A signal that came before the answer is older than that, and one that comes later is acted on later."""

        def on_reply(reply: Message) -> None:
            if not reply.error_name and reply.signature == "s":
                self._on_owner(vm, reply.body[0])

        try:
            await self._bus.ask_daemon("GetNameOwner", "s", [name], on_reply)
        except CallFailed:  # it has gone
            return

    async def close(self) -> None:
        await self._looks.close()

    def on_message(self, message: Message) -> None:
        """Anybody may send a signal of any name: what counts is who did."""
        if message.member == "PropertiesChanged" and message.path == OBJECT_PATH:
            self._looks.want(*self._owned.get(message.sender, ()))
        elif message.sender == DAEMON and message.member == "NameOwnerChanged" and message.signature == "sss":
            name, _old, new = message.body
            vm = vm_of_bus_name(name)
            if vm is not None:
                self._on_owner(vm, new)

    def _on_owner(self, vm: str, owner: str) -> None:
        """A VM has come, or with an empty `owner` gone; another owner is another process."""
        former = self._owners.pop(vm, "")
        if former == owner and owner:
            self._owners[vm] = owner
            return
        if former:
            self._owned[former].discard(vm)
            if not self._owned[former]:
                del self._owned[former]
        self._model.set_on_bus(vm, bool(owner))
        if not owner or vm not in self._model.vms:
            self._looks.forget(vm)
            return
        self._owners[vm] = owner
        self._owned.setdefault(owner, set()).add(vm)
        self._looks.want(vm)

    async def _look(self, vms: list[str]) -> set[str]:
        (vm,) = vms
        owner = self._owners.get(vm)
        state = ""
        try:
            said = await self._bus.get(bus_name(vm), OBJECT_PATH, INTERFACE, "State", timeout_sec=LOOK_TIMEOUT_SEC)
            state = wire_text(printable(said))[:STATE_LIMIT_CHARS] if isinstance(said, str) else ""
        except (CallFailed, TimeoutError, NotInTime, HostFacilityMissing):
            pass  # there is none to be shown until it answers
        if owner is None or self._owners.get(vm) != owner:
            return set()  # what comes behind it is looked at by itself
        self._model.set_state(vm, state)
        return set() if state else {vm}
