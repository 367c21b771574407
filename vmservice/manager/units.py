"""The units of VMs as systemd has them: org.freedesktop.systemd1(5).

systemd's signals say which unit is to be looked at, and ListUnitsByPatterns is how: unlike a look at the unit's own object it
loads no unit, which would be the next signal.
"""

from __future__ import annotations

from typing import Any

from dbus_next.message import Message

from vmservice.client.bus import Bus, CallFailed, printable
from vmservice.client.units import (
    FAILED,
    MANAGER_INTERFACE,
    SYSTEMD,
    SYSTEMD_PATH,
    UNIT_INTERFACE,
    UNITS_SIGNATURE,
    UnitState,
    why_failed,
    with_process,
)
from vmservice.client.vms import GONE, NOBODY_THERE
from vmservice.control.errors import wire_text
from vmservice.control.names import DAEMON, PROPERTIES_INTERFACE
from vmservice.errors import HostFacilityMissing
from vmservice.manager.looks import Looks
from vmservice.manager.model import Model, UnitFacts
from vmservice.manager.names import unit_of
from vmservice.manager.whose import vm_of_unit, vm_of_unit_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_UNITS_PATH = f"{SYSTEMD_PATH}/unit"

RULES = (
    *(
        f"type='signal',sender='{SYSTEMD}',path='{SYSTEMD_PATH}',interface='{MANAGER_INTERFACE}',member='{member}'"
        for member in ("UnitNew", "UnitRemoved", "Reloading")
    ),
    f"type='signal',sender='{SYSTEMD}',path_namespace='{_UNITS_PATH}',interface='{PROPERTIES_INTERFACE}',"
    f"member='PropertiesChanged',arg0='{UNIT_INTERFACE}'",
    f"type='signal',sender='{DAEMON}',interface='{DAEMON}',member='NameOwnerChanged',arg0='{SYSTEMD}'",
)

# A systemd that reads all its units anew answers when it is done.
TIMEOUT_SEC = 20.0
UNITS_A_LOOK = 128
_EVERY_VM = "vm@*.service"


class Units:
    """Keeps `model` told. `start` once the connection of `bus` is made and its RULES are set; then every message."""

    def __init__(self, bus: Bus, model: Model, log: Callable[[str], None]) -> None:
        self._bus = bus
        self._model = model
        self._log = log
        self._owner = ""
        self._shown: set[str] = set()  # the VMs whose units systemd has shown
        self._looks = Looks(self._look, most=1, names_a_look=UNITS_A_LOOK, log=log)
        self._told = False

    async def start(self, patience_sec: float) -> None:
        """Returns when all units have been looked at, or after so long."""
        try:
            await self._bus.ask_daemon("GetNameOwner", "s", [SYSTEMD], self._on_owner)
        except CallFailed:
            self._tell("systemd is not on this bus: the states of units are not known")
            return
        await self._looks.settled(patience_sec)

    async def close(self) -> None:
        await self._looks.close()

    def on_message(self, message: Message) -> None:
        """Anybody may send a signal of any name: what counts is who did."""
        if message.sender == DAEMON and message.member == "NameOwnerChanged" and message.signature == "sss":
            name, _old, new = message.body
            if name == SYSTEMD:
                self._on_systemd(new)
        elif message.sender != self._owner or not self._owner:
            return
        elif message.member in ("UnitNew", "UnitRemoved") and message.signature == "so":
            self._want(vm_of_unit(message.body[0]))
        elif message.member == "PropertiesChanged":
            self._want(vm_of_unit_path(message.path))
        elif message.member == "Reloading" and message.signature == "b" and not message.body[0]:
            self._looks.want(_EVERY_VM)

    def _want(self, vm: str | None) -> None:
        if vm is not None:
            self._looks.want(unit_of(vm))

    def _on_owner(self, reply: Message) -> None:
        if reply.signature == "s" and reply.body and not reply.error_name:
            self._on_systemd(reply.body[0])

    def _on_systemd(self, owner: str) -> None:
        """It is there, or with an empty `owner` gone. One that executes itself anew (daemon-reexec) goes and comes, and keeps
        its units: what is known of them stands until it can be asked again."""
        self._owner = owner
        if owner:
            self._model.systemd_is_there()
            self._looks.want(_EVERY_VM)

    # Looking

    async def _look(self, names: list[str]) -> set[str]:
        """What systemd has loaded of these units. It subscribes first, since a systemd that is new knows no subscriber."""
        owner = self._owner
        if not owner:
            return set()
        patterns = [_EVERY_VM] if _EVERY_VM in names else names
        try:
            if patterns == [_EVERY_VM]:
                await self._call("Subscribe")
            (listed,) = await self._call("ListUnitsByPatterns", "asas", [[], patterns], returns=UNITS_SIGNATURE)
        except (CallFailed, TimeoutError, HostFacilityMissing) as error:
            is_gone = isinstance(error, CallFailed) and error.name in (GONE, *NOBODY_THERE)
            if self._bus.transport.connected and not is_gone:
                self._tell(f"systemd does not say how units are: {wire_text(str(error)) or 'it gave no answer in time'}")
            return set(names)
        if owner != self._owner:
            return set()  # the next one is asked by itself
        self._told = False
        return await self._show(owner, patterns, listed)

    async def _show(self, owner: str, patterns: list[str], listed: list[list[str]]) -> set[str]:
        """Tells the model; returns the units that are to be looked at again, since systemd did not say why they have failed."""
        loaded: dict[str, UnitFacts] = {}
        again = set()
        for name, _description, _load, active, sub, *_ in listed:
            vm = vm_of_unit(name)
            if vm is None:
                continue
            unit = UnitState(name, printable(active), printable(sub), 0)
            if unit.active_state == FAILED or unit.restarts:  # it is loaded: a look loads none
                unit = await self._with_process(unit)
                if not unit.result:
                    again.add(name)
            reason = why_failed(unit) if unit.result else ""
            loaded[vm] = UnitFacts(unit.active_state, unit.sub_state, wire_text(reason))
        if owner != self._owner:
            return set()
        asked = self._shown if patterns == [_EVERY_VM] else {vm for vm in map(vm_of_unit, patterns) if vm is not None}
        for vm in sorted(asked | set(loaded)):
            self._model.set_unit(vm, loaded.get(vm))
        self._shown = (self._shown - asked) | set(loaded)
        return again

    async def _with_process(self, unit: UnitState) -> UnitState:
        try:
            return await with_process(self._bus, unit)
        except HostFacilityMissing:  # the connection is lost
            return unit

    async def _call(
        self, member: str, signature: str = "", arguments: list[object] | None = None, *, returns: str | None = None
    ) -> list[Any]:
        target = (SYSTEMD, SYSTEMD_PATH, MANAGER_INTERFACE)
        return await self._bus.call(*target, member, signature, arguments, timeout_sec=TIMEOUT_SEC, returns=returns)

    def _tell(self, sentence: str) -> None:
        if not self._told:
            self._told = True
            self._log(sentence)
