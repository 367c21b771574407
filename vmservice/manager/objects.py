"""The manager's object and those of the VMs: tables of members, and one function that answers a call.

They are answered from plain tables for the reasons that `control/dbus_object.py` gives. Nothing here changes anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dbus_next.signature import Variant

from vmservice.config.names import natural_key
from vmservice.control import errors
from vmservice.control.dbus_message import packed_body
from vmservice.control.dbus_object import INTROSPECTABLE, PEER, Reply, machine_id, spelled
from vmservice.control.errors import BusFault
from vmservice.control.introspection import ancestor_xml, generated_xml, installed_xml
from vmservice.control.names import PROPERTIES_INTERFACE, escape_label
from vmservice.errors import quoted
from vmservice.manager.model import PROPERTIES, Model, Vm
from vmservice.manager.names import (
    INTERFACE,
    NO_SUCH_VM,
    OBJECT_MANAGER,
    OBJECT_PATH,
    VM_INTERFACE,
    VMS_PATH,
    vm_path,
)
from vmservice.manager.whose import vm_of_path

_STANDARD = {
    PROPERTIES_INTERFACE: {"Get": "ss", "GetAll": "s", "Set": "ssv"},
    INTROSPECTABLE: {"Introspect": ""},
    PEER: {"Ping": "", "GetMachineId": ""},
}

# Interface → member → signature of what it takes.
MANAGER_METHODS: dict[str, dict[str, str]] = {
    INTERFACE: {"ListVMs": "", "GetVM": "s"},
    OBJECT_MANAGER: {"GetManagedObjects": ""},
    **_STANDARD,
}
VM_METHODS: dict[str, dict[str, str]] = {VM_INTERFACE: {}, **_STANDARD}
_ABOVE = {name: _STANDARD[name] for name in (INTROSPECTABLE, PEER)}

MANAGER_PROPERTIES = {"Version": "s"}
MANAGED_OBJECTS = "a{oa{sa{sv}}}"

_NOTHING: Reply = ("", [])
_NAME_LIMIT_CHARS = 80


class Objects:
    """Answers what is asked of the manager and of each VM in `model`. `version` is the program's."""

    def __init__(self, model: Model, version: str) -> None:
        self._model = model
        self._properties: dict[str, str | bool] = {"Version": version}
        self._manager_xml = installed_xml(file_name=f"{INTERFACE}.xml") or generated_xml(
            MANAGER_METHODS, {INTERFACE: MANAGER_PROPERTIES}, OBJECT_PATH
        )
        self._vm_xml = installed_xml(file_name=f"{VM_INTERFACE}.xml") or generated_xml(
            VM_METHODS, {VM_INTERFACE: PROPERTIES}, f"{VMS_PATH}/NAME"
        )
        self._managed: bytes | None = None

    def forget_managed(self) -> None:
        """Something has changed: GetManagedObjects has another answer now."""
        self._managed = None

    def managed_objects(self) -> bytes:
        """The body of the reply to GetManagedObjects, which is kept: it may be long, and everybody may ask."""
        if self._managed is None:
            objects = {vm_path(vm.name): interfaces_of(vm) for vm in self._model.vms.values()}
            self._managed = packed_body(MANAGED_OBJECTS, [objects])
        return self._managed

    def check(self, path: str, interface: str | None, member: str, signature: str) -> str:
        """The interface whose member is called. Raises BusFault for a call that fits no member."""
        methods = self._methods(path)
        if interface is not None and interface not in methods:
            if methods is _ABOVE:
                raise BusFault(errors.UNKNOWN_OBJECT, f"there is no object at {path}; the manager is at {OBJECT_PATH}")
            raise BusFault(errors.UNKNOWN_INTERFACE, f"{path} has no interface {interface}")
        found = [one for one in methods if interface in (None, one) and member in methods[one]]
        if not found:
            raise BusFault(errors.UNKNOWN_METHOD, f"{interface or path} has no method {member}")
        expected = methods[found[0]][member]
        if signature != expected:
            raise BusFault(errors.INVALID_ARGS, f"{member} takes {spelled(expected)}, not {spelled(signature)}")
        return found[0]

    def answer(self, path: str, interface: str, member: str, body: Sequence[object]) -> Reply:
        """The signature and body of the reply to a call that `check` let pass, but for GetManagedObjects."""
        if member == "ListVMs":
            return "a(so)", [[[vm.name, vm_path(vm.name)] for vm in self._sorted()]]
        if member == "GetVM":
            return "o", [self._find(str(body[0]))]
        if interface == PROPERTIES_INTERFACE:
            return self._property_call(path, member, *[str(argument) for argument in body[:2]])
        if interface == INTROSPECTABLE:
            return "s", [self._xml(path)]
        return ("s", [machine_id()]) if member == "GetMachineId" else _NOTHING

    def _methods(self, path: str) -> Mapping[str, Mapping[str, str]]:
        if path == OBJECT_PATH:
            return MANAGER_METHODS
        if self._vm_at(path) is not None:
            return VM_METHODS
        if path == VMS_PATH or ancestor_xml(path, OBJECT_PATH) is not None:
            return _ABOVE
        raise BusFault(errors.UNKNOWN_OBJECT, f"there is no object at {path}; the manager is at {OBJECT_PATH}")

    def _vm_at(self, path: str) -> Vm | None:
        name = vm_of_path(path)
        return self._model.vms.get(name) if name is not None else None

    def _sorted(self) -> list[Vm]:
        return sorted(self._model.vms.values(), key=lambda vm: natural_key(vm.name))

    def _find(self, name: str) -> str:
        if name not in self._model.vms:
            shown = quoted(name, _NAME_LIMIT_CHARS)
            raise BusFault(
                NO_SUCH_VM, f"there is no VM {shown}: it has no configuration, its unit is inactive, and it is not running"
            )
        return vm_path(name)

    def _property_call(self, path: str, member: str, interface: str, name: str = "") -> Reply:
        own, types, present = INTERFACE, MANAGER_PROPERTIES, self._properties
        vm = self._vm_at(path)
        if vm is not None:
            own, types, present = VM_INTERFACE, PROPERTIES, vm.properties()
        if interface not in self._methods(path) and interface != "":
            raise BusFault(errors.UNKNOWN_INTERFACE, f"{path} has no interface {interface}; the one with properties is {own}")
        if interface not in (own, ""):
            present = {}
        if member == "GetAll":
            return "a{sv}", [_variants(types, present)]
        if name not in present:
            raise BusFault(errors.UNKNOWN_PROPERTY, f"{interface or path} has no property {name}")
        if member == "Set":
            raise BusFault(errors.PROPERTY_READ_ONLY, f"property {name} is read-only")
        return "v", [Variant(types[name], present[name])]

    def _xml(self, path: str) -> str:
        if path == OBJECT_PATH:
            return self._manager_xml
        if path == VMS_PATH:
            children = "".join(f' <node name="{escape_label(vm.name)}"/>\n' for vm in self._sorted())
            return f'<node name="{VMS_PATH}">\n{children}</node>\n'
        return ancestor_xml(path, OBJECT_PATH) or self._vm_xml


def interfaces_of(vm: Vm) -> dict[str, dict[str, Variant]]:
    """What InterfacesAdded and GetManagedObjects tell of its object."""
    return {VM_INTERFACE: _variants(PROPERTIES, vm.properties())}


def changed_variants(changes: Mapping[str, str | bool]) -> dict[str, Variant]:
    return _variants(PROPERTIES, changes)


def _variants(types: Mapping[str, str], values: Mapping[str, str | bool]) -> dict[str, Variant]:
    return {name: Variant(types[name], value) for name, value in values.items()}
