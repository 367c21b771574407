"""Powering a guest off by its button, and starting it again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Callable

from vmservice.client.bus import Bus, NotInTime
from vmservice.client.systemctl import exit_status, start_systemctl, systemctl_line
from vmservice.client.units import UnitState, unit_state
from vmservice.client.vms import NotRunning, Refused, call_verb, process_id
from vmservice.client.wait import NO_PROCESS, StateWatch
from vmservice.errors import HostError
from vmservice.vm.state import State

# A process that has powered off and is about to end refuses a Boot; then it is gone this soon.
GONE_TIMEOUT_SEC = 10.0


async def press_power_button(bus: Bus, name: str, timeout_sec: float, say: Callable[[str], None]) -> None:
    """Returns when the guest has powered itself off. Raises NotInTime, and what `call_verb` raises for the button.

    The time begins when the button is pressed: before that a person may have been asked for a password.
    """
    watch = StateWatch(bus, name, State.SHUTDOWN, say)
    waiting = asyncio.ensure_future(watch.wait(None))
    try:
        watching = asyncio.ensure_future(watch.watching.wait())
        await asyncio.wait({watching, waiting}, return_when=asyncio.FIRST_COMPLETED)
        watching.cancel()
        if not watch.watching.is_set():
            await waiting
        await call_verb(bus, name, "PowerButton")
        if not waiting.done():
            watch.give(timeout_sec)
        await waiting
    except NotInTime as late:
        raise NotInTime(f"{late}; `vmservice poweroff --force {name}` stops it without asking the guest") from None
    finally:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def power_cycle(bus: Bus, name: str, timeout_sec: float, say: Callable[[str], None]) -> None:
    """As `press_power_button`, and then the guest runs anew: in its process if that has stayed, else in its unit."""
    unit = await _unit_that_runs(bus, name)
    await press_power_button(bus, name, timeout_sec, say)
    if await _booted(bus, name):
        return
    if unit is None:
        raise NotRunning(f"the VM {name} has powered off and ended; no unit ran it that could be started again")
    # systemctl asks for a password itself, at the same terminal; nobody asks root, and then nobody waits for another.
    async with contextlib.nullcontext() if os.geteuid() == 0 else bus.agent.turn:
        status = await _ended(start_systemctl("start", [name], user=bus.user, ask_password=bus.agent.allowed))
    if status != 0:
        line = systemctl_line("start", name, user=bus.user)
        raise HostError(f"the VM {name} is off: `{line}` has failed with exit status {status}")


async def _ended(process: subprocess.Popen[bytes]) -> int:
    """The exit status of a process, which nobody else waits for meanwhile."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    fd = os.pidfd_open(process.pid)
    try:
        loop.add_reader(fd, ended.set)
        await ended.wait()
    except asyncio.CancelledError:  # the person has had enough; the job goes on
        process.terminate()
        raise
    finally:
        loop.remove_reader(fd)
        os.close(fd)
        status = exit_status(process.wait())
    return status


async def _unit_that_runs(bus: Bus, name: str) -> UnitState | None:
    """The VM's unit if the process that has the VM's name is the unit's own."""
    unit = await unit_state(bus, name)
    return unit if unit is not None and unit.main_pid and unit.main_pid == await process_id(bus, name) else None


async def _booted(bus: Bus, name: str) -> bool:
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
