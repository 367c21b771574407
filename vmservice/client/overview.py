"""VMs as an operator has them: what each says of itself, its unit, its configuration, and what it takes of the host."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from vmservice.client import vms
from vmservice.client.bus import Bus
from vmservice.client.units import FAILED, UnitState, loaded_units, unit_state, why_failed, with_process
from vmservice.client.usage import Usage, cpu_percent, usage
from vmservice.client.vms import Facts, NotRunning, facts, is_configured, not_running, process_id, running_names
from vmservice.config.load import load_config
from vmservice.config.names import config_path, configured_names, natural_key
from vmservice.errors import VmmError
from vmservice.vm.panic_line import NOTICED
from vmservice.vm.state import LastExit, State

# Beside LOOKS_AT_A_TIME VMs; each takes six calls.
_UNITS_AT_A_TIME = 8
# Processor time is measured over this long, where a command looks once.
WINDOW_SEC = 0.25


@dataclass(frozen=True)
class Overview:
    """One VM. `facts` is None where nobody has its name on the bus, `unit` where systemd has none in mind.

    `error` is why it could not be asked. `taken_at` is when `facts` came, by time.monotonic().
    """

    name: str
    user: bool = False
    facts: Facts | None = None
    unit: UnitState | None = None
    pid: int | None = None
    usage: Usage | None = None
    cpu_percent: float | None = None
    config_error: str | None = None
    error: str | None = None
    taken_at: float = 0.0

    @property
    def condition(self) -> str | None:
        """Its state in a word: that of the VM, or what its unit is about. None where neither is known."""
        if self.unit is not None and self.unit.active_state == "deactivating":
            return "stopping"
        if self.unit is not None and self.unit.active_state == "activating":
            return "restarting" if self.unit.restarts else "starting"
        if self.facts is not None:
            has_panicked = (self.facts.state, self.facts.last_exit) == (State.PAUSED, LastExit.PANIC)
            return "panicked" if has_panicked else self.facts.state
        if self.unit is not None and self.unit.active_state == FAILED:
            return FAILED
        if self.error is not None or (self.unit is not None and self.unit.is_up):
            return None
        return "stopped"

    @property
    def reason(self) -> str:
        """What is amiss with it, in a few words; empty where nothing is."""
        if self.error is not None:
            return self.error
        if self.facts is not None:
            has_panicked = self.unit is not None and NOTICED in self.unit.status_text
            return self.facts.error or (NOTICED if has_panicked else "")
        if self.unit is not None and (self.unit.active_state == FAILED or self.unit.restarts):
            return why_failed(self.unit) or "its unit does not say why"
        if self.unit is not None and self.unit.active_state == "active":
            return "it is not on the bus"
        return self.config_error or ""

    @property
    def exists(self) -> bool:
        """Whether there is such a VM at all: it runs, or did and has failed, or is configured."""
        has_unit = self.unit is not None and (self.unit.is_up or self.unit.active_state == FAILED)
        return self.facts is not None or has_unit or is_configured(self.name, user=self.user)

    def missing(self) -> NotRunning:
        """The sentence for one without a process on the bus."""
        if self.exists and self.condition in ("stopping", "starting", "restarting"):
            return NotRunning(f"the VM {self.name} is {self.condition}: its process is not on the bus")
        if self.exists and self.condition is None:
            return NotRunning(f"the unit of the VM {self.name} is active, but its process is not on the bus")
        if self.exists and not is_configured(self.name, user=self.user):
            path = config_path(self.name, user=self.user)
            return NotRunning(f"the VM {self.name} is not running, and its configuration {path} does not exist")
        advice = not_running(self.name, user=self.user)
        if self.condition == FAILED:
            return NotRunning(f"{advice} again (it has failed: {self.reason})")
        return advice


async def overview(bus: Bus, name: str, *, user: bool) -> tuple[Overview, VmmError | None]:
    """One VM, whether it runs or not, and why it could not be asked, if it could not."""
    unit = await unit_state(bus, name)
    found, failure = await _with_facts(bus, Overview(name, user, unit=unit), None)
    if _runs(found):
        (found,) = await measured([found])
    else:
        found = replace(found, config_error=_config_error(name, user=user))
    if found.facts is None:
        failure = found.missing()
        found = found if found.exists else replace(found, error=str(failure))
    return found, failure


async def overviews(bus: Bus, *, user: bool, everything: bool, limit_sec: float | None = None) -> list[Overview]:
    """Every VM that runs or whose unit is on its way up or down; with `everything` also those that have failed, and those that
    only have a configuration.

    One that does not answer, within `limit_sec` if that is given, is there with an `error` among its facts, and holds up no
    other for long.
    """
    running = set(await running_names(bus))
    units = await loaded_units(bus) or {}
    names = running | {name for name, unit in units.items() if unit.is_up or (everything and unit.active_state == FAILED)}
    if everything:
        names.update(_configured(user=user))
    turns = asyncio.Semaphore(vms.LOOKS_AT_A_TIME), asyncio.Semaphore(_UNITS_AT_A_TIME)

    async def look(name: str) -> Overview:
        found = Overview(name, user, unit=units.get(name))
        if name in running:
            async with turns[0]:
                found, _ = await _with_facts(bus, found, limit_sec)
        if found.unit is not None and (found.unit.is_up or found.unit.active_state == FAILED):
            async with turns[1]:
                found = replace(found, unit=await with_process(bus, found.unit))
        if not _runs(found):
            return replace(found, config_error=_config_error(name, user=user))
        return _with_usage(found)

    found = await asyncio.gather(*(look(name) for name in sorted(names, key=natural_key)))
    # One that ended while it was looked at is not told of, unless it is there all the same.
    return [vm for vm in found if vm.facts is not None or (vm.unit is not None and vm.unit.is_up) or (everything and vm.exists)]


def without_bus(error: str, *, user: bool) -> list[Overview]:
    """What there is to say of the VMs that are configured where nobody can be asked."""
    return [
        Overview(name, user, config_error=_config_error(name, user=user), error=error)
        for name in sorted(_configured(user=user), key=natural_key)
    ]


async def measured(found: list[Overview]) -> list[Overview]:
    """The same with `cpu_percent`, for which there is a short wait if anything runs."""
    before = {vm.name: (vm if vm.usage is not None else _with_usage(vm)).usage for vm in found if _runs(vm)}
    if before:
        since = min(one.at for one in before.values() if one is not None)
        await asyncio.sleep(max(WINDOW_SEC - (time.monotonic() - since), 0))
    return with_cpu(before, [_with_usage(vm) if _runs(vm) else vm for vm in found])


def with_cpu(before: Mapping[str, Usage | None], found: list[Overview]) -> list[Overview]:
    """`found` with the use of the processor since `before`, which has the usage of VMs by name."""
    return [replace(vm, cpu_percent=cpu_percent(before.get(vm.name), vm.usage)) for vm in found]


async def _with_facts(bus: Bus, vm: Overview, limit_sec: float | None) -> tuple[Overview, VmmError | None]:
    """With what the VM says of itself, if it is on the bus; and why it does not, if it is and does not."""
    pid = None
    failure = None
    try:
        pid = await process_id(bus, vm.name)
        said = await facts(bus, vm.name, limit_sec)
    except NotRunning:  # or it has ended meanwhile
        return vm, None
    except VmmError as error:
        failure = error
        said = Facts(vm.name, error=str(error))
    return replace(vm, facts=said, pid=pid, taken_at=time.monotonic()), failure


def _runs(vm: Overview) -> bool:
    return vm.facts is not None or (vm.unit is not None and vm.unit.is_up)


def _with_usage(vm: Overview) -> Overview:
    return replace(vm, usage=usage(vm.unit.control_group if vm.unit is not None else "", vm.pid))


def _configured(*, user: bool) -> list[str]:
    try:
        return configured_names(user=user)
    except OSError:  # it is not for this account to see
        return []


def _config_error(name: str, *, user: bool) -> str | None:
    """What is wrong with the configuration, as far as its text goes and this account may read it."""
    path = config_path(name, user=user)
    closed = any(os.path.exists(place) and not os.access(place, os.R_OK) for place in (path, f"{path}.d"))
    if closed or not is_configured(name, user=user):
        return None
    try:
        load_config(name, path)
    except VmmError as error:
        return str(error).partition("\n")[0]
    except Exception as error:  # our bug; but the file of one VM must not hide the others
        return f"internal error: {error!r}"
    return None
