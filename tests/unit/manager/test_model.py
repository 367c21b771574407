"""What is a VM, and what its listeners are told."""

from __future__ import annotations

from typing import Any

import pytest

from vmservice.manager import model
from vmservice.manager.model import INACTIVE, PROPERTIES, Model, UnitFacts, Vm


class Told:
    """What a model's listeners were told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, dict[str, Any]]] = []
        self.log: list[str] = []
        self.model = Model(
            on_added=lambda vm: self.events.append(("added", vm.name, vm.properties())),
            on_removed=lambda vm: self.events.append(("removed", vm.name, {})),
            on_changed=lambda vm, changes: self.events.append(("changed", vm.name, changes)),
            log=self.log.append,
        )

    def taken(self) -> list[tuple[str, str, dict[str, Any]]]:
        events, self.events = self.events, []
        return events


def test_the_table_of_properties_is_a_vms() -> None:
    values = Vm("demo").properties()
    assert {name: "b" if isinstance(value, bool) else "s" for name, value in values.items()} == PROPERTIES


def test_a_vm_is_there_for_a_file_a_unit_or_a_name() -> None:
    told = Told()
    told.model.systemd_is_there()
    told.model.set_configured({"demo"})
    told.model.set_on_bus("demo", True)
    told.model.set_unit("demo", UnitFacts("active", "running"))
    told.model.set_configured(set())
    told.model.set_on_bus("demo", False)
    assert [kind for kind, *_ in told.taken()] == ["added", *["changed"] * 4]
    told.model.set_unit("demo", None)
    assert told.taken() == [("removed", "demo", {})]
    assert told.model.vms == {}


def test_what_has_not_changed_is_not_told() -> None:
    told = Told()
    told.model.set_configured({"demo"})
    told.taken()
    told.model.set_configured({"demo"})
    told.model.set_unit("demo", None)
    told.model.set_on_bus("demo", False)
    told.model.set_state("demo", "running")  # it is not on the bus
    assert told.taken() == []


def test_a_unit_that_is_merely_loaded_is_no_vm() -> None:
    told = Told()
    told.model.set_unit("demo", INACTIVE)
    assert told.taken() == []


def test_what_a_vm_said_is_forgotten_when_another_process_has_its_name() -> None:
    told = Told()
    told.model.set_on_bus("demo", True)
    told.model.set_state("demo", "running")
    told.taken()
    told.model.set_on_bus("demo", True)
    assert told.taken() == [("changed", "demo", {"State": ""})]


def test_systemd_appears() -> None:
    told = Told()
    told.model.set_configured({"demo"})
    told.taken()
    told.model.systemd_is_there()
    assert told.taken() == [("changed", "demo", {"ActiveState": "inactive", "SubState": "dead"})]


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names on the bus, which a VM's account may take, leave room for files; and one that has got a file counts as such."""
    monkeypatch.setattr(model, "VMS_LIMIT", 2)
    monkeypatch.setattr(model, "STRANGERS_LIMIT", 1)
    told = Told()
    for name in ("a", "b"):
        told.model.set_on_bus(name, True)
    told.model.set_configured({"a", "c", "d"})
    told.model.set_on_bus("e", True)
    assert set(told.model.vms) == {"a", "c", "e"}
    assert told.log == ["there are more VMs than the manager shows: b is the first that is left out"]
    told.model.set_on_bus("e", False)
    told.model.set_on_bus("b", True)
    assert set(told.model.vms) == {"a", "b", "c"}
