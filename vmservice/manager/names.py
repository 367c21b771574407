"""Names on the bus: the manager's own, its object, and the objects of VMs below that; and which VM another name stands for."""

from __future__ import annotations

from vmservice.client.units import unit_path
from vmservice.client.vms import name_of_label
from vmservice.config.names import is_name
from vmservice.control.names import INTERFACE as VM1
from vmservice.control.names import escape_label

INTERFACE = "org.vmservice.Manager1"
VM_INTERFACE = f"{INTERFACE}.VM"
OBJECT_PATH = "/org/vmservice/Manager1"
VMS_PATH = f"{OBJECT_PATH}/vm"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"

NO_SUCH_VM = f"{INTERFACE}.Error.NoSuchVM"
FAILED = f"{INTERFACE}.Error.Failed"

_UNIT_PREFIX = "vm@"
_UNIT_SUFFIX = ".service"
_UNIT_PATH_PREFIX = unit_path(_UNIT_PREFIX)
_UNIT_PATH_SUFFIX = escape_label(_UNIT_SUFFIX)


def vm_path(name: str) -> str:
    """The object of the VM called `name`: `web-1` is `…/vm/web_2d1`, escaped as in its bus name."""
    return f"{VMS_PATH}/{escape_label(name)}"


def vm_of_path(path: str) -> str | None:
    """The VM that would have its object there; None for any other path."""
    prefix, _, label = path.rpartition("/")
    return name_of_label(label) if prefix == VMS_PATH else None


def unit_of(name: str) -> str:
    return f"{_UNIT_PREFIX}{name}{_UNIT_SUFFIX}"


def vm_of_unit(unit: str) -> str | None:
    """The VM whose unit has this name; None for any other unit."""
    name = unit.removeprefix(_UNIT_PREFIX).removesuffix(_UNIT_SUFFIX)
    return name if is_name(name) and unit == unit_of(name) else None


def vm_of_unit_path(path: str) -> str | None:
    """The VM whose unit systemd has at `path`; None for any other path."""
    label = path.removeprefix(_UNIT_PATH_PREFIX).removesuffix(_UNIT_PATH_SUFFIX)
    if label[:1].isdigit():  # at the beginning of a label it would be escaped
        label = f"_{ord(label[0]):02x}{label[1:]}"
    name = name_of_label(label)
    return name if name is not None and path == unit_path(unit_of(name)) else None


def vm_of_bus_name(owned: str) -> str | None:
    """The VM that owns this name on the bus; None for any other name."""
    label = owned.removeprefix(f"{VM1}.")
    return name_of_label(label) if label != owned else None
