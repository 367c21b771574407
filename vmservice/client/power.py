"""Powering a guest off by its button, and starting it again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from vmservice.client.bus import Bus, NotInTime
from vmservice.client.units import UnitState, unit_state
from vmservice.client.vms import NotRunning, Refused, call_verb, process_id
from vmservice.client.wait import NO_PROCESS, StateWatch
from vmservice.vm.state import State

# A process that has powered off and is about to end refuses a Boot; then it is gone this soon.
GONE_TIMEOUT_SEC = 10.0


async def press_power_button(bus: Bus, name: str, timeout_sec: float | None, say: Callable[[str], None]) -> None:
    """Returns when the guest has powered itself off. Raises NotInTime, and what `call_verb` raises for the button."""
    watch = StateWatch(bus, name, State.SHUTDOWN, say)
    waiting = asyncio.ensure_future(watch.wait(timeout_sec))
    try:
        watching = asyncio.ensure_future(watch.watching.wait())
        await asyncio.wait({watching, waiting}, return_when=asyncio.FIRST_COMPLETED)
        watching.cancel()
        if not watch.watching.is_set():
            await waiting
        await call_verb(bus, name, "PowerButton")
        await waiting
    except NotInTime as late:
        raise NotInTime(f"{late}; `vmservice poweroff --force {name}` stops it without asking the guest") from None
    finally:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def unit_that_runs(bus: Bus, name: str) -> UnitState | None:
    """The VM's unit if the process that has the VM's name is the unit's own."""
    unit = await unit_state(bus, name)
    return unit if unit is not None and unit.main_pid and unit.main_pid == await process_id(bus, name) else None


async def booted(bus: Bus, name: str) -> bool:
    """Have a VM that is shut down but has a process run again; False when the process has ended instead."""
    try:
        await call_verb(bus, name, "Boot")
    except NotRunning:
        return False
    except Refused:
        try:
            await StateWatch(bus, name, NO_PROCESS).wait(GONE_TIMEOUT_SEC)
        except NotInTime:
            pass
        else:
            return False
        raise
    return True
