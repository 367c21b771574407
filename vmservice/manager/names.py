"""Names on the bus: the manager's own, its object, and the objects of VMs below that."""

from __future__ import annotations

from vmservice.control.names import escape_label

INTERFACE = "org.vmservice.Manager1"
VM_INTERFACE = f"{INTERFACE}.VM"
OBJECT_PATH = "/org/vmservice/Manager1"
VMS_PATH = f"{OBJECT_PATH}/vm"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"

NO_SUCH_VM = f"{INTERFACE}.Error.NoSuchVM"
FAILED = f"{INTERFACE}.Error.Failed"

UNIT_PREFIX = "vm@"
UNIT_SUFFIX = ".service"


def vm_path(name: str) -> str:
    """The object of the VM called `name`: `web-1` is `…/vm/web_2d1`, escaped as in its bus name."""
    return f"{VMS_PATH}/{escape_label(name)}"


def unit_of(name: str) -> str:
    return f"{UNIT_PREFIX}{name}{UNIT_SUFFIX}"
