"""The manager for python-dbusmock: `python3 -m dbusmock --session --template …/vmservice/manager/dbusmock_template.py`.

It shows the VMs that a test gives it, by these methods of org.freedesktop.DBus.Mock; each has its signal:

* `AddVM(s name, a{sv} properties)`: properties of org.vmservice.Manager1.VM; those that are not there are an inactive VM's;
* `ChangeVM(s name, a{sv} properties)`: these have new values;
* `RemoveVM(s name)`.

Parameter: VMs, a map of names to properties, which are there from the beginning. Version is "mock".
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import dbusmock

import dbus

# dbusmock runs this file by its path, perhaps with an interpreter that does not know where vmservice is installed.
sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from vmservice.manager.model import INACTIVE, PROPERTIES, Vm
from vmservice.manager.names import INTERFACE, NO_SUCH_VM, OBJECT_MANAGER, OBJECT_PATH, VM_INTERFACE, vm_path

# What dbusmock reads of a template.
BUS_NAME = INTERFACE
MAIN_OBJ = OBJECT_PATH
MAIN_IFACE = INTERFACE
SYSTEM_BUS = True
IS_OBJECT_MANAGER = True

MOCK_INTERFACE = "org.freedesktop.DBus.Mock"
_TYPES = {"s": dbus.String, "b": dbus.Boolean}


class MockManager:
    """The VMs of the mock object `mock`, by name."""

    def __init__(self, mock: Any, vms: Mapping[str, Mapping[str, Any]]) -> None:
        self._mock = mock
        self._names: set[str] = set()
        mock.AddProperty(MAIN_IFACE, "Version", dbus.String("mock"))
        for name, properties in vms.items():
            self.add(str(name), properties)

    def add_methods(self) -> None:
        self._mock.AddMethod(MAIN_IFACE, "ListVMs", "", "a(so)", lambda _mock: self._listed())
        self._mock.AddMethod(MAIN_IFACE, "GetVM", "s", "o", lambda _mock, name: self._path(name))
        self._mock.AddMethod(MOCK_INTERFACE, "AddVM", "sa{sv}", "", lambda _mock, *words: self.add(*words))
        self._mock.AddMethod(MOCK_INTERFACE, "ChangeVM", "sa{sv}", "", lambda _mock, *words: self.change(*words))
        self._mock.AddMethod(MOCK_INTERFACE, "RemoveVM", "s", "", lambda _mock, name: self.remove(name))

    def add(self, name: str, properties: Mapping[str, Any]) -> None:
        name = str(name)
        values = _typed({**Vm(name, has_configuration=True, unit=INACTIVE).properties(), **properties})
        self._mock.AddObject(vm_path(name), VM_INTERFACE, values, [])
        self._names.add(name)
        added = [dbus.ObjectPath(vm_path(name)), {VM_INTERFACE: values}]
        self._mock.EmitSignal(OBJECT_MANAGER, "InterfacesAdded", "oa{sa{sv}}", added)

    def change(self, name: str, properties: Mapping[str, Any]) -> None:
        dbusmock.get_object(self._path(name)).UpdateProperties(VM_INTERFACE, _typed(properties))

    def remove(self, name: str) -> None:
        path = self._path(name)
        self._mock.RemoveObject(path)
        self._names.remove(str(name))
        self._mock.EmitSignal(OBJECT_MANAGER, "InterfacesRemoved", "oas", [path, [VM_INTERFACE]])

    def _path(self, name: str) -> Any:
        if str(name) not in self._names:
            raise dbus.exceptions.DBusException(f"there is no VM {name}", name=NO_SUCH_VM)
        return dbus.ObjectPath(vm_path(str(name)))

    def _listed(self) -> Any:
        entries = [dbus.Struct((name, self._path(name)), signature="so") for name in sorted(self._names)]
        return dbus.Array(entries, signature="(so)")


def load(mock: Any, parameters: Mapping[str, Any]) -> None:
    """What dbusmock calls to fill the object in."""
    MockManager(mock, parameters.get("VMs", {})).add_methods()


def _typed(values: Mapping[str, Any]) -> dict[str, object]:
    unknown = sorted(str(key) for key in values if key not in PROPERTIES)
    if unknown:
        raise dbus.exceptions.DBusException(f"a VM has no property {unknown[0]}", name=f"{MOCK_INTERFACE}.NameError")
    return {str(key): _TYPES[PROPERTIES[key]](value, variant_level=1) for key, value in values.items()}
