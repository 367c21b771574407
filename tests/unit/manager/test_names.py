"""Which VM a path, a unit or a bus name stands for."""

from __future__ import annotations

import pytest

from vmservice.client.units import unit_path
from vmservice.control.names import bus_name
from vmservice.manager.names import unit_of, vm_path
from vmservice.manager.whose import vm_of_bus_name, vm_of_path, vm_of_unit, vm_of_unit_path


@pytest.mark.parametrize("name", ["demo", "web-1", "1st", "a_b.c", "9", "A" * 64])
def test_each_way_leads_back(name: str) -> None:
    assert vm_of_unit(unit_of(name)) == name
    assert vm_of_unit_path(unit_path(unit_of(name))) == name
    assert vm_of_bus_name(bus_name(name)) == name
    assert vm_of_path(vm_path(name)) == name


def test_known_names() -> None:
    assert vm_path("web-1") == "/org/vmservice/Manager1/vm/web_2d1"
    assert vm_of_unit_path("/org/freedesktop/systemd1/unit/vm_401st_2eservice") == "1st"


@pytest.mark.parametrize(
    "unit", ["vm@.service", "vm@a b.service", "vm-disk@a:b.service", "vm@a.socket", "vm@a.service.service.x"]
)
def test_other_units(unit: str) -> None:
    assert vm_of_unit(unit) is None
    assert vm_of_unit_path(unit_path(unit)) is None


@pytest.mark.parametrize(
    "path", ["/", "/org/freedesktop/systemd1/unit/", "/org/freedesktop/systemd1/unit/vm_40_2eservice", "/vm_40x_2eservice"]
)
def test_other_paths(path: str) -> None:
    assert vm_of_unit_path(path) is None
    assert vm_of_path(path) is None


@pytest.mark.parametrize(
    "name", ["org.vmservice.VM1", "org.vmservice.VM1.", "org.vmservice.VM1.a.b", "org.vmservice.VM1.web_2D1", ":1.5", "demo"]
)
def test_other_bus_names(name: str) -> None:
    assert vm_of_bus_name(name) is None
