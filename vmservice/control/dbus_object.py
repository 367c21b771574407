"""The D-Bus object of a VM: a table of members, and one function that answers a call.

The calls are answered here, from plain tables, and not through dbus-next's `ServiceInterface`: that one hides the sender, sends
a traceback to the caller for every error it does not know, knows no annotations in introspection, takes a wrong signature for
an unknown method, a wrong path for an unknown method too, and answers `Peer.GetMachineId` only once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from dbus_next.signature import Variant

from vmservice.control.api import PROPERTIES, VERBS
from vmservice.control.errors import (
    INVALID_ARGS,
    PROPERTY_READ_ONLY,
    UNKNOWN_INTERFACE,
    UNKNOWN_METHOD,
    UNKNOWN_OBJECT,
    UNKNOWN_PROPERTY,
    BusFault,
)
from vmservice.control.introspection import ancestor_xml, generated_xml, installed_xml
from vmservice.control.names import INTERFACE, OBJECT_PATH, PROPERTIES_INTERFACE
from vmservice.errors import HostError
from vmservice.vm.operation import Operation
from vmservice.vm.vm import Vm

INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
PEER = "org.freedesktop.DBus.Peer"

# Interface → member → signature of what it takes. Only Resize, Get, GetAll and Introspect look at or return anything.
METHODS: dict[str, dict[str, str]] = {
    INTERFACE: {verb.member: verb.signature for verb in VERBS},
    PROPERTIES_INTERFACE: {"Get": "ss", "GetAll": "s", "Set": "ssv"},
    INTROSPECTABLE: {"Introspect": ""},
    PEER: {"Ping": "", "GetMachineId": ""},
}

# Where systemd and libdbus keep the machine id: machine-id(5).
_MACHINE_ID_FILES = ("/etc/machine-id", "/var/lib/dbus/machine-id")

# Signature and body, or the Operation whose end is to be waited for; then the reply has no body.
Reply = tuple[str, list[object]]
_NOTHING: Reply = ("", [])


class VmObject:
    """Answers what is asked of one VM. Knows no connection, so it outlives each of them."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._xml = installed_xml() or generated_xml(METHODS, {INTERFACE: PROPERTIES})
        self._verbs: dict[str, Callable[..., Operation | None]] = {verb.member: getattr(vm, verb.method) for verb in VERBS}

    def check(self, path: str, interface: str | None, member: str, signature: str) -> str:
        """The interface whose member is called. Raises BusFault for a call that fits no member."""
        interface = self._find(path, interface, member)
        expected = METHODS[interface][member]
        if signature != expected:
            raise BusFault(INVALID_ARGS, f"{member} takes {spelled(expected)}, not {spelled(signature)}")
        return interface

    def answer(self, path: str, interface: str, member: str, body: Sequence[object]) -> Reply | Operation:
        """The signature and body of the reply to a call that `check` let pass, or the work that it waits for.

        Raises BusFault for a property that is not there, and what the VM raises.
        """
        if interface == INTERFACE:
            return self._verbs[member](*body) or _NOTHING
        if interface == PROPERTIES_INTERFACE:
            return self._property_call(member, *[str(argument) for argument in body[:2]])
        if interface == INTROSPECTABLE:
            return "s", [self._xml if path == OBJECT_PATH else ancestor_xml(path)]
        return ("s", [machine_id()]) if member == "GetMachineId" else _NOTHING

    @staticmethod
    def changed(changes: dict[str, object]) -> Reply:
        """Signature and body of the PropertiesChanged signal for new values of these properties."""
        return "sa{sv}as", [INTERFACE, _variants(changes), []]

    @staticmethod
    def _find(path: str, interface: str | None, member: str) -> str:
        """The interface that has `member` at `path`. A call may leave the interface out: D-Bus specification, header fields."""
        above = [PEER] if ancestor_xml(path) is None else [PEER, INTROSPECTABLE]
        here = list(METHODS) if path == OBJECT_PATH else above
        if interface is not None and interface not in here:
            if path != OBJECT_PATH:
                raise BusFault(UNKNOWN_OBJECT, f"there is no object at {path}; the VM is at {OBJECT_PATH}")
            raise BusFault(UNKNOWN_INTERFACE, f"{path} has no interface {interface}; the VM's is {INTERFACE}")
        found = [candidate for candidate in here if interface in (None, candidate) and member in METHODS[candidate]]
        if not found:
            raise BusFault(UNKNOWN_METHOD, f"{interface or path} has no method {member}")
        return found[0]

    def _property_call(self, member: str, interface: str, name: str = "") -> Reply:
        if interface not in METHODS and interface != "":
            raise BusFault(UNKNOWN_INTERFACE, f"{OBJECT_PATH} has no interface {interface}; the VM's is {INTERFACE}")
        present = self._vm.properties() if interface in (INTERFACE, "") else {}
        if present and (member == "GetAll" or name == "Stats"):
            present["Stats"] = self._vm.stats()
        if member == "GetAll":
            return "a{sv}", [_variants(present)]
        if name not in present:
            raise BusFault(UNKNOWN_PROPERTY, f"{interface or OBJECT_PATH} has no property {name}")
        if member == "Set":
            raise BusFault(PROPERTY_READ_ONLY, f"property {name} is read-only")
        return "v", [_variants({name: present[name]})[name]]


def _variants(values: Mapping[str, object]) -> dict[str, Variant]:
    """Values of the VM's properties with their types."""
    return {
        name: Variant(PROPERTIES[name], [_device(*one) for one in value] if isinstance(value, list) else value)
        for name, value in values.items()
    }


def _device(kind: str, name: str, details: Mapping[str, str | int | bool]) -> list[object]:
    """An entry of `Devices`."""
    return [kind, name, {key: _detail(value) for key, value in details.items()}]


def _detail(value: str | int | bool) -> Variant:
    if isinstance(value, str):
        return Variant("s", value.encode(errors="replace").decode())  # a path may be no UTF-8
    return Variant("b" if isinstance(value, bool) else "t", value)


def spelled(signature: str) -> str:
    """Arguments of this signature, in words."""
    return f"arguments of signature {signature}" if signature else "no arguments"


def machine_id() -> str:
    """HostError where there is none."""
    for path in _MACHINE_ID_FILES:
        try:
            with open(path, encoding="ascii") as file:
                text = file.read(64).strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text:
            return text
    raise HostError("this host has no machine id; systemd-machine-id-setup makes one")
