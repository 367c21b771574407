"""Which VM a path, a unit or a bus name stands for."""

from __future__ import annotations

from vmservice.client.units import unit_path
from vmservice.client.vms import name_of_label
from vmservice.config.names import is_name
from vmservice.control.names import INTERFACE as VM1
from vmservice.control.names import escape_label
from vmservice.manager.names import UNIT_PREFIX, UNIT_SUFFIX, VMS_PATH, unit_of

_UNIT_PATH_PREFIX = unit_path(UNIT_PREFIX)
_UNIT_PATH_SUFFIX = escape_label(UNIT_SUFFIX)


def vm_of_path(path: str) -> str | None:
    """The VM that would have its object there; None for any other path."""
    prefix, _, label = path.rpartition("/")
    return name_of_label(label) if prefix == VMS_PATH else None


def vm_of_unit(unit: str) -> str | None:
    """The VM whose unit has this name; None for any other unit."""
    name = unit.removeprefix(UNIT_PREFIX).removesuffix(UNIT_SUFFIX)
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
