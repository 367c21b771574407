"""A VM's unit as systemd has it: org.freedesktop.systemd1(5)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from vmservice.client.bus import Bus, CallFailed, printable
from vmservice.control.names import escape_label

SYSTEMD = "org.freedesktop.systemd1"
UNIT_INTERFACE = f"{SYSTEMD}.Unit"
SERVICE_INTERFACE = f"{SYSTEMD}.Service"
TIMEOUT_SEC = 2.0


@dataclass(frozen=True)
class UnitState:
    """`main_pid` is 0 where no process runs."""

    name: str
    active_state: str
    sub_state: str
    main_pid: int


async def unit_state(bus: Bus, vm: str) -> UnitState | None:
    """The state of vm@NAME.service; None where no systemd answers, or it has no such unit."""
    name = f"vm@{vm}.service"
    path = unit_path(name)
    wanted = ((UNIT_INTERFACE, "LoadState"), (UNIT_INTERFACE, "ActiveState"), (UNIT_INTERFACE, "SubState"))
    try:
        load, active, sub, pid = await asyncio.gather(
            *(bus.get(SYSTEMD, path, interface, key, timeout_sec=TIMEOUT_SEC) for interface, key in wanted),
            bus.get(SYSTEMD, path, SERVICE_INTERFACE, "MainPID", timeout_sec=TIMEOUT_SEC),
        )
    except (CallFailed, TimeoutError):
        return None
    if load != "loaded" or not isinstance(pid, int):
        return None
    return UnitState(name, printable(str(active)), printable(str(sub)), pid)


def unit_path(unit: str) -> str:
    """The object of a unit; one that is not loaded is loaded by the look at it."""
    return f"/org/freedesktop/systemd1/unit/{escape_label(unit)}"
