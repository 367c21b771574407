"""The commands `list`, `status`, `wait` and the verbs: what each asks of the bus, and what it prints."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine, Sequence

from vmservice.client import output
from vmservice.client.bus import connected_bus
from vmservice.client.logs import EXIT_INTERRUPTED, LastLines
from vmservice.client.power import power_cycle, press_power_button
from vmservice.client.several import for_each, tell
from vmservice.client.units import unit_state
from vmservice.client.vms import Facts, NotRunning, all_facts, call_verb, facts, process_id
from vmservice.client.wait import StateWatch


def list_vms(*, user: bool, as_json: bool) -> int:
    """Print every VM on the bus."""

    async def ask() -> int:
        async with connected_bus(user=user) as bus:
            found = await all_facts(bus)
        if as_json:
            _print_json([output.as_dict(vm) for vm in found])
        elif found:
            print(output.table(found, colours=output.colours_wanted(sys.stdout)))
        else:
            tell("no VM is running")
        for vm in found:
            if vm.error is not None and not as_json:
                tell(vm.error)
        return os.EX_OK

    return _run(ask())


def show_status(name: str, *, user: bool, as_json: bool) -> int:
    """Print what one VM, the bus, systemd and the journal say of it.

    One that does not run is NotRunning, when what is known of its unit and its last lines has been printed all the same.
    """

    async def ask() -> int:
        missing: NotRunning | None = None
        async with connected_bus(user=user) as bus:
            unit = await unit_state(bus, name)
            try:
                vm = await facts(bus, name)
                pid = await process_id(bus, name)
            except NotRunning as error:
                if unit is None and not as_json:
                    raise
                missing = error if unit is None else NotRunning(f"{error} (its unit is {unit.active_state})")
                vm, pid = Facts(name, error=str(missing)), None
        lines = LastLines(name, user=user) if unit is not None else None
        if as_json:
            _print_json({**output.details_as_dict(vm, pid, unit), "journal": lines.as_list() if lines is not None else []})
        else:
            print(output.details(vm, pid, unit, colours=output.colours_wanted(sys.stdout)))
            if lines is not None:
                print(lines.as_text(), end="")
                if lines.note is not None:
                    tell(lines.note)
        if missing is not None:
            raise missing
        return os.EX_OK

    return _run(ask())


def run_verb(member: str, names: Sequence[str], *, user: bool, vcpus: int | None = None) -> int:
    """Have the VMs do what the method `member` does; nothing is printed when they have."""

    async def ask() -> int:
        async with connected_bus(user=user) as bus:
            return await for_each(names, lambda name: call_verb(bus, name, member, vcpus))

    return _run(ask())


def power_off(names: Sequence[str], *, user: bool, timeout_sec: float | None) -> int:
    """Press the power buttons and return when all guests are off."""

    async def ask() -> int:
        async with connected_bus(user=user) as bus:
            return await for_each(names, lambda name: press_power_button(bus, name, timeout_sec, tell))

    return _run(ask())


def reboot(names: Sequence[str], *, user: bool, timeout_sec: float | None) -> int:
    """Press the power buttons and return when all run anew. None waits for another."""

    async def ask() -> int:
        async with connected_bus(user=user) as bus:
            return await for_each(names, lambda name: power_cycle(bus, name, timeout_sec, tell))

    return _run(ask())


def wait_for_state(names: Sequence[str], state: str, *, user: bool, timeout_sec: float | None) -> int:
    """Return when each VM has been in `state`; without a timeout that may be never."""

    async def ask() -> int:
        async with connected_bus(user=user) as bus:
            return await for_each(names, lambda name: StateWatch(bus, name, state, tell).wait(timeout_sec))

    return _run(ask())


def _run(work: Coroutine[None, None, int]) -> int:
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=2))
