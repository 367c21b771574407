"""What is known of all VMs, and who is told when it changes. Three sources write to it: files, systemd's units, and the bus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from vmservice.control.names import bus_name
from vmservice.manager.names import unit_of

# Property of a VM's object → its type.
PROPERTIES = {
    "Name": "s",
    "BusName": "s",
    "State": "s",
    "Unit": "s",
    "ActiveState": "s",
    "SubState": "s",
    "Reason": "s",
    "HasConfiguration": "b",
}

# VMs that a file or a unit is there for: only root, or the user, makes those.
VMS_LIMIT = 4096
# VMs that are nothing but a name on the bus. An account that VMs run as could take any number of them.
STRANGERS_LIMIT = 256


@dataclass(frozen=True)
class UnitFacts:
    """`reason` says why a unit that has failed did so, else it is empty."""

    active_state: str
    sub_state: str
    reason: str = ""


INACTIVE = UnitFacts("inactive", "dead")
UNKNOWN = UnitFacts("", "")  # no systemd answers


@dataclass(frozen=True)
class Vm:
    """One VM. `state` is what it says of itself, empty unless it is on the bus and has answered."""

    name: str
    has_configuration: bool = False
    on_bus: bool = False
    state: str = ""
    unit: UnitFacts = UNKNOWN

    @property
    def is_backed(self) -> bool:
        """Whether a file or a unit is there for it; a unit that is merely loaded is not, for a look at it loads it."""
        return self.has_configuration or self.unit.active_state not in (UNKNOWN.active_state, INACTIVE.active_state)

    def properties(self) -> dict[str, str | bool]:
        return {
            "Name": self.name,
            "BusName": bus_name(self.name) if self.on_bus else "",
            "State": self.state if self.on_bus else "",
            "Unit": unit_of(self.name),
            "ActiveState": self.unit.active_state,
            "SubState": self.unit.sub_state,
            "Reason": self.unit.reason,
            "HasConfiguration": self.has_configuration,
        }


class Model:
    """All VMs, by name. `on_added`, `on_removed` and `on_changed` are called within what changes it, with the VM as it is then;
    `on_changed` also with the new values of the properties that have changed.
    """

    def __init__(
        self,
        *,
        on_added: Callable[[Vm], None],
        on_removed: Callable[[Vm], None],
        on_changed: Callable[[Vm, dict[str, str | bool]], None],
        log: Callable[[str], None],
    ) -> None:
        self.vms: dict[str, Vm] = {}
        self._on_added = on_added
        self._on_removed = on_removed
        self._on_changed = on_changed
        self._log = log
        self._not_loaded = UNKNOWN
        self._strangers: set[str] = set()
        self._told = False

    def set_configured(self, names: set[str]) -> None:
        """Just these have a configuration file."""
        for name in sorted({name for name, vm in self.vms.items() if vm.has_configuration} - names):
            self._change(name, has_configuration=False)
        for name in sorted(names):
            self._change(name, has_configuration=True)

    def set_unit(self, name: str, unit: UnitFacts | None) -> None:
        """None: systemd has not loaded it."""
        self._change(name, unit=unit or self._not_loaded)

    def systemd_is_there(self) -> None:
        """From now on a unit that it does not show is not loaded. Until then nothing is known of any."""
        self._not_loaded = INACTIVE
        for name, vm in list(self.vms.items()):
            if vm.unit == UNKNOWN:
                self._change(name, unit=INACTIVE)

    def set_on_bus(self, name: str, on_bus: bool) -> None:
        """Whether it has its name on the bus. What it said of itself before is forgotten."""
        self._change(name, on_bus=on_bus, state="")

    def set_state(self, name: str, state: str) -> None:
        if name in self.vms and self.vms[name].on_bus:
            self._change(name, state=state)

    def _change(self, name: str, **values: Any) -> None:
        before = self.vms.get(name)
        after = replace(before or Vm(name, unit=self._not_loaded), **values)
        if not (after.on_bus or after.is_backed):
            if before is not None:
                del self.vms[name]
                self._strangers.discard(name)
                self._on_removed(before)
            return
        if before is None and not self._has_room(after):
            return
        self.vms[name] = after
        if after.is_backed:
            self._strangers.discard(name)
        else:
            self._strangers.add(name)
        if before is None:
            self._on_added(after)
            return
        old = before.properties()
        changes = {key: value for key, value in after.properties().items() if old[key] != value}
        if changes:
            self._on_changed(after, changes)

    def _has_room(self, vm: Vm) -> bool:
        backed = len(self.vms) - len(self._strangers)
        if backed < VMS_LIMIT if vm.is_backed else len(self._strangers) < STRANGERS_LIMIT:
            return True
        if not self._told:
            self._told = True
            self._log(f"there are more VMs than the manager shows: {vm.name} is the first that is left out")
        return False
