"""What the commands print: aligned text for people, with colour on a terminal only, and JSON for programs."""

from __future__ import annotations

import os
from collections.abc import Container, Mapping, Sequence
from typing import TextIO

from vmservice.client.overview import Overview
from vmservice.client.vms import DeviceFacts, Facts
from vmservice.config.names import config_path
from vmservice.control.names import bus_name
from vmservice.vm.state import State

UNKNOWN = "?"
NOTHING = "-"

# ECMA-48 SGR, the sixteen colours that every palette has.
_COLOURS = {State.RUNNING: "32", State.PAUSED: "33", "failed": "31", "panicked": "31", "restarting": "31", UNKNOWN: "31"}
_COLOURS |= dict.fromkeys(("starting", "stopping"), "33")
_HEADER = ("NAME", "STATE", "VCPUS", "CPU", "MEMORY", "USED", "LAST-EXIT")
_TO_THE_RIGHT = frozenset(("CPU", "MEMORY", "USED"))
_REASON = "REASON"
_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def colours_wanted(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that shows colours, and nobody asked for none: no-color.org."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def width_of(stream: TextIO) -> int | None:
    """How many columns the terminal has that `stream` is; None for anything else."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):
        return None


def table(found: Sequence[Overview], *, colours: bool, width: int | None = None) -> str:
    """One line a VM under a header, columns aligned, and no line longer than `width`. Reasons are shown where there are any."""
    rows = [_row(vm) for vm in found]
    header: tuple[str, ...] = _HEADER
    if any(vm.reason for vm in found):
        header = (*_HEADER, _REASON)
        rows = [(*row, vm.reason) for row, vm in zip(rows, found, strict=True)]
    return aligned(header, rows, to_the_right=_TO_THE_RIGHT, colours=colours, width=width)


def aligned(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    to_the_right: Container[str],
    colours: bool,
    width: int | None,
) -> str:
    """`rows` in columns under `header`; the column STATE is coloured with `colours`."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [
            cell.rjust(size) if title in to_the_right else cell.ljust(size)
            for title, cell, size in zip(header, row, widths, strict=True)
        ]
        line = "  ".join(cells).rstrip()
        if width is not None and len(line) > width:
            line = f"{line[: width - 1]}…"
        if colours and row is not header and "STATE" in header:
            column = header.index("STATE")
            start = sum(widths[:column]) + 2 * column
            line = line[:start] + _coloured(line[start : start + widths[column]], row[column]) + line[start + widths[column] :]
        lines.append(line)
    return "\n".join(lines)


def details(vm: Overview, *, colours: bool) -> str:
    """All about one VM, a line a fact."""
    state = vm.condition or UNKNOWN
    own = vm.facts.state if vm.facts is not None else None
    shown = _coloured(state, state) if colours else state
    lines = [("State", f"{shown} (the VM is {own})" if own not in (None, state) else shown)]
    if vm.reason:
        lines.append(("Reason", vm.reason))
    if vm.facts is not None:
        lines += _of_process(vm, vm.facts)
    if vm.unit is not None:
        process = f", main process {vm.unit.main_pid}" if vm.unit.main_pid else ""
        lines.append(("Unit", f"{vm.unit.name}, {vm.unit.active_state} ({vm.unit.sub_state}){process}"))
    if vm.facts is None:
        lines.append(("Configuration", config_path(vm.name, user=vm.user)))
    elif vm.facts.devices is not None:
        first, *more = _devices(vm.facts.devices)
        lines += [("Devices", first), *(("", line) for line in more)]
    width = max(len(label) for label, _ in lines)
    return "\n".join((vm.name, *(f"{label:>{width + 2}}{':' if label else ' '} {value}" for label, value in lines)))


def as_dict(vm: Overview) -> dict[str, object]:
    """One VM for programs: the same keys whatever its state, memory in bytes; null is what is not known, or is not there."""
    facts = vm.facts or Facts(vm.name)
    return {
        "name": vm.name,
        "bus_name": bus_name(vm.name),
        "condition": vm.condition,
        "state": facts.state,
        "vcpus": facts.vcpus,
        "max_vcpus": facts.max_vcpus,
        "memory": facts.memory,
        "last_exit": facts.last_exit,
        "guest_ready": facts.guest_ready,
        "devices": [{"kind": one.kind, "name": one.name, "details": one.details} for one in facts.devices]
        if facts.devices is not None
        else None,
        "pid": vm.pid,
        "cpu_percent": round(vm.cpu_percent, 1) if vm.cpu_percent is not None else None,
        "cpu_sec": vm.usage.cpu_sec if vm.usage is not None else None,
        "memory_used": vm.usage.memory_bytes if vm.usage is not None else None,
        "unit": _unit_as_dict(vm),
        "reason": vm.reason or None,
        "error": vm.error or facts.error,
    }


def details_as_dict(vm: Overview) -> dict[str, object]:
    """As `as_dict`, with the counters, null where nothing runs."""
    return {**as_dict(vm), "stats": vm.facts.stats if vm.facts is not None else None}


def percent(value: float | None) -> str:
    """Of one processor: "12.3%"."""
    return UNKNOWN if value is None else f"{value:.1f}%"


def size(size_bytes: float | None) -> str:
    """In the largest unit that it is one of at least, with three digits: "81.4 MiB"."""
    if size_bytes is None:
        return UNKNOWN
    factor, unit = next(((factor, unit) for factor, unit in _UNITS if size_bytes >= factor), (1, "B"))
    value = size_bytes / factor
    return f"{value:.1f} {unit}" if value < 100 and factor > 1 else f"{value:.0f} {unit}"


def vcpus(vm: Overview, between: str = "/") -> str:
    """How many there are, and may be: "1/4"."""
    if vm.facts is None:
        return NOTHING
    present, ceiling = (UNKNOWN if number is None else str(number) for number in (vm.facts.vcpus, vm.facts.max_vcpus))
    return UNKNOWN if present == ceiling == UNKNOWN else f"{present}{between}{ceiling}"


def _row(vm: Overview) -> tuple[str, ...]:
    state = vm.condition or UNKNOWN
    if vm.facts is None:
        return (vm.name, state, *(NOTHING for _ in _HEADER[2:]))
    facts = vm.facts
    used = vm.usage.memory_bytes if vm.usage is not None else None
    more = (_memory(facts.memory), size(used), _last_exit(facts.last_exit))
    return (vm.name, state, vcpus(vm), percent(vm.cpu_percent), *more)


def _of_process(vm: Overview, facts: Facts) -> list[tuple[str, str]]:
    cpu = f"{percent(vm.cpu_percent)} of one processor"
    if vm.usage is not None and vm.usage.cpu_sec is not None:
        cpu += f", {vm.usage.cpu_sec:.1f} s since the start"
    lines = [
        ("vCPUs", vcpus(vm, " of ")),
        ("CPU", cpu),
        (
            "Memory",
            f"{_memory(facts.memory)}, {size(vm.usage.memory_bytes if vm.usage is not None else None)} used of the host's",
        ),
        ("Last exit", _last_exit(facts.last_exit)),
        ("Bus name", bus_name(vm.name)),
        ("Process", UNKNOWN if vm.pid is None else str(vm.pid)),
    ]
    if facts.guest_ready is not None:
        lines.append(("Guest", "ready" if facts.guest_ready else "not ready"))
    return lines


def _unit_as_dict(vm: Overview) -> dict[str, object] | None:
    unit = vm.unit
    if unit is None:
        return None
    return {
        "name": unit.name,
        "active_state": unit.active_state,
        "sub_state": unit.sub_state,
        "main_pid": unit.main_pid or None,
        "result": unit.result or None,
        "exit_status": unit.last_exit_status,
        "status_text": unit.status_text or None,
    }


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
