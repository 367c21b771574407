"""The units of VMs as systemd has them: org.freedesktop.systemd1(5)."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace

from vmservice.client.bus import Bus, CallFailed, printable
from vmservice.config.names import is_name
from vmservice.control.names import escape_label

SYSTEMD = "org.freedesktop.systemd1"
SYSTEMD_PATH = "/org/freedesktop/systemd1"
MANAGER_INTERFACE = f"{SYSTEMD}.Manager"
UNIT_INTERFACE = f"{SYSTEMD}.Unit"
SERVICE_INTERFACE = f"{SYSTEMD}.Service"
UNITS_SIGNATURE = "a(ssssssouso)"  # what ListUnitsByPatterns returns
TIMEOUT_SEC = 2.0

INACTIVE = "inactive"
FAILED = "failed"

_OF_UNIT = ("LoadState", "ActiveState", "SubState")
_OF_SERVICE = ("MainPID", "ControlGroup", "Result", "ExecMainCode", "ExecMainStatus", "StatusText")

# sigaction(2): what ExecMainCode is of a process that ended by itself.
_CLD_EXITED = 1

# What an exit status of `vmservice run` means: vmservice(1).
_MEANINGS = {
    64: "its command line is wrong",
    69: "the host lacks something that it needs, or it runs already",
    70: "a fault of vmservice",
    71: "an operation of the host failed",
    75: "its guest was not ready in time",
    77: "it lacks a permission",
    78: "its configuration is wrong",
    133: "the guest asked for a reset",
    134: "the guest panicked, or did not feed its watchdog",
}
# Statuses of a process that systemd could not make what the unit says: systemd.exec(5).
_OF_SYSTEMD = range(200, 246)
_RESULTS = {
    "timeout": "it did not start or stop in time",
    "watchdog": "it hung, and systemd's watchdog ended it",
    "oom-kill": "the kernel ended it for lack of memory",
    "start-limit-hit": "it was started too often; `systemctl reset-failed` allows more",
    "resources": "the host lacked resources to start it",
    "protocol": "it did not say that it is ready",
}


@dataclass(frozen=True)
class UnitState:
    """`main_pid` is 0 where no process runs, `control_group` then mostly empty.

    `result`, `exit_code` (a CLD_ constant), `exit_status` (or the signal's number) and `status_text` are of the last process.
    """

    name: str
    active_state: str
    sub_state: str
    main_pid: int
    control_group: str = ""
    result: str = ""
    exit_code: int = 0
    exit_status: int = 0
    status_text: str = ""

    @property
    def is_up(self) -> bool:
        """Whether it runs, or is on its way up or down."""
        return self.active_state not in (INACTIVE, FAILED)

    @property
    def restarts(self) -> bool:
        """Whether systemd waits before it starts the unit anew."""
        return self.sub_state.startswith("auto-restart")

    @property
    def last_exit_status(self) -> int | None:
        """Of the last process; None where a signal ended it, or none has ended."""
        return self.exit_status if self.exit_code == _CLD_EXITED else None


def why_failed(unit: UnitState) -> str:
    """Why the unit's last process ended as it should not have, in a few words. Empty where nothing is amiss."""
    if unit.result in ("", "success") and not unit.exit_code:
        return ""
    status = unit.last_exit_status
    if unit.result in _RESULTS:
        return _RESULTS[unit.result]
    if unit.result in ("signal", "core-dump"):
        return f"{_signal_name(unit.exit_status)} ended it"
    if status is None:
        return "" if unit.result == "success" else unit.result
    if status in _MEANINGS:  # then the process had time to say more
        return f"{unit.status_text or _MEANINGS[status]} (exit status {status})"
    if status in _OF_SYSTEMD:
        return f"systemd could not set its process up (exit status {status})"
    return f"exit status {status}" if status else ""


def unit_name(vm: str) -> str:
    return f"vm@{vm}.service"


async def unit_state(bus: Bus, vm: str) -> UnitState | None:
    """The state of vm@NAME.service; None where no systemd answers, or it has no such unit."""
    values = await _properties(bus, unit_path(unit_name(vm)), _OF_UNIT, _OF_SERVICE)
    if values is None or values["LoadState"] != "loaded":
        return None
    return _state(unit_name(vm), str(values["ActiveState"]), str(values["SubState"]), values)


async def loaded_units(bus: Bus) -> dict[str, UnitState] | None:
    """By the name of the VM each unit that systemd has in mind, without what `with_process` adds; None where none answers."""
    try:
        (listed,) = await bus.call(
            SYSTEMD,
            SYSTEMD_PATH,
            MANAGER_INTERFACE,
            "ListUnitsByPatterns",
            "asas",
            [[], [unit_name("*")]],
            timeout_sec=TIMEOUT_SEC,
            returns=UNITS_SIGNATURE,
        )
    except (CallFailed, TimeoutError):
        return None
    found = {}
    for name, _text, load, active, sub, *_more in listed:
        vm = name.removeprefix("vm@").removesuffix(".service")
        if is_name(vm) and (load == "loaded" or active != INACTIVE):
            found[vm] = UnitState(unit_name(vm), printable(active), printable(sub), 0)
    return found


async def with_process(bus: Bus, unit: UnitState) -> UnitState:
    """The same with its process, or its last one, if systemd still knows it."""
    values = await _properties(bus, unit_path(unit.name), (), _OF_SERVICE)
    return unit if values is None else _state(unit.name, unit.active_state, unit.sub_state, values)


def unit_path(unit: str) -> str:
    """The object of a unit; one that is not loaded is loaded by the look at it."""
    return f"{SYSTEMD_PATH}/unit/{escape_label(unit)}"


async def _properties(
    bus: Bus, path: str, of_unit: tuple[str, ...], of_service: tuple[str, ...]
) -> Mapping[str, object] | None:
    wanted = [(UNIT_INTERFACE, key) for key in of_unit] + [(SERVICE_INTERFACE, key) for key in of_service]
    try:
        values = await asyncio.gather(
            *(bus.get(SYSTEMD, path, interface, key, timeout_sec=TIMEOUT_SEC) for interface, key in wanted)
        )
    except (CallFailed, TimeoutError):
        return None
    return dict(zip((key for _, key in wanted), values, strict=True))


def _state(name: str, active_state: str, sub_state: str, values: Mapping[str, object]) -> UnitState:
    def number(key: str) -> int:
        value = values.get(key)
        return value if isinstance(value, int) else 0

    def text(key: str) -> str:
        value = values.get(key)
        return printable(value) if isinstance(value, str) else ""

    unit = UnitState(name, printable(active_state), printable(sub_state), number("MainPID"))
    return replace(
        unit,
        control_group=text("ControlGroup"),
        result=text("Result"),
        exit_code=number("ExecMainCode"),
        exit_status=number("ExecMainStatus"),
        status_text=text("StatusText"),
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
