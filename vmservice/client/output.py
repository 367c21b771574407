"""What the commands print: aligned text for people, with colour on a terminal only, and JSON for programs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TextIO

from vmservice.client.units import UnitState
from vmservice.client.vms import DeviceFacts, Facts
from vmservice.control.names import bus_name
from vmservice.vm.state import State

UNKNOWN = "?"
NOTHING = "-"

# ECMA-48 SGR, the sixteen colours that every palette has.
_COLOURS = {State.RUNNING: "32", State.PAUSED: "33", UNKNOWN: "31"}
_HEADER = ("NAME", "STATE", "VCPUS", "MEMORY", "LAST-EXIT")
_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def colours_wanted(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that shows colours, and nobody asked for none: no-color.org."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def table(found: Sequence[Facts], *, colours: bool) -> str:
    """One line a VM under a header, columns aligned."""
    rows = [(vm.name, vm.state or UNKNOWN, _vcpus(vm, "/"), _memory(vm.memory), _last_exit(vm.last_exit)) for vm in found]
    widths = [max(len(row[column]) for row in (_HEADER, *rows)) for column in range(len(_HEADER))]
    lines = []
    for row in (_HEADER, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        if colours and row is not _HEADER:
            cells[1] = _coloured(cells[1], row[1])
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def details(vm: Facts, pid: int | None, unit: UnitState | None, *, colours: bool) -> str:
    """All about one VM, a line a fact."""
    state = vm.state or UNKNOWN
    facts = [
        ("State", _coloured(state, state) if colours else state),
        ("vCPUs", _vcpus(vm, " of ")),
        ("Memory", _memory(vm.memory)),
        ("Last exit", _last_exit(vm.last_exit)),
        ("Bus name", bus_name(vm.name)),
        ("Process", UNKNOWN if pid is None else str(pid)),
    ]
    if vm.guest_ready is not None:
        facts.append(("Guest", "ready" if vm.guest_ready else "not ready"))
    if unit is not None:
        process = f", main process {unit.main_pid}" if unit.main_pid else ""
        facts.append(("Unit", f"{unit.name}, {unit.active_state} ({unit.sub_state}){process}"))
    if vm.devices is not None:
        first, *more = _devices(vm.devices)
        facts += [("Devices", first), *(("", line) for line in more)]
    width = max(len(label) for label, _ in facts)
    return "\n".join((vm.name, *(f"{label:>{width + 2}}{':' if label else ' '} {value}" for label, value in facts)))


def as_dict(vm: Facts) -> dict[str, object]:
    """One VM for programs: the D-Bus properties, memory in bytes; null is what the VM did not say, and `error` why."""
    return {
        "name": vm.name,
        "bus_name": bus_name(vm.name),
        "state": vm.state,
        "vcpus": vm.vcpus,
        "max_vcpus": vm.max_vcpus,
        "memory": vm.memory,
        "last_exit": vm.last_exit,
        "guest_ready": vm.guest_ready,
        "devices": [{"kind": one.kind, "name": one.name, "details": one.details} for one in vm.devices]
        if vm.devices is not None
        else None,
        "error": vm.error,
    }


def details_as_dict(vm: Facts, pid: int | None, unit: UnitState | None) -> dict[str, object]:
    """As `as_dict`, with the process and the unit; `unit` is null where no systemd knows it."""
    known = None
    if unit is not None:
        known = {
            "name": unit.name,
            "active_state": unit.active_state,
            "sub_state": unit.sub_state,
            "main_pid": unit.main_pid or None,
        }
    return {**as_dict(vm), "stats": vm.stats, "pid": pid, "unit": known}


def _devices(devices: Sequence[DeviceFacts]) -> list[str]:
    """A line for each, in columns: kind, name, and its details."""
    kinds = max((len(one.kind) for one in devices), default=0)
    names = max((len(one.name) for one in devices), default=0)
    return [f"{one.kind:{kinds}}  {one.name:{names}}  {_spelled(one.details)}".rstrip() for one in devices] or [NOTHING]


def _spelled(details: Mapping[str, object]) -> str:
    """What is so, and not what is not: "mode pty, path /dev/pts/1, readonly"."""
    parts = []
    for key, value in details.items():
        if value is True:
            parts.append(key)
        elif value is not False and value != "":
            parts.append(f"{key} {_memory(value) if key == 'size' and isinstance(value, int) else value}")
    return ", ".join(parts)


def _vcpus(vm: Facts, between: str) -> str:
    present, ceiling = (UNKNOWN if number is None else str(number) for number in (vm.vcpus, vm.max_vcpus))
    return UNKNOWN if present == ceiling == UNKNOWN else f"{present}{between}{ceiling}"


def _memory(size_bytes: int | None) -> str:
    """In the largest unit that takes it whole."""
    if size_bytes is None:
        return UNKNOWN
    factor, unit = next(((factor, unit) for factor, unit in _UNITS if size_bytes and size_bytes % factor == 0), (1, "B"))
    return f"{size_bytes // factor} {unit}"


def _last_exit(reason: str | None) -> str:
    return UNKNOWN if reason is None else reason or NOTHING


def _coloured(text: str, state: str) -> str:
    colour = _COLOURS.get(state)
    return text if colour is None else f"\x1b[{colour}m{text}\x1b[0m"
