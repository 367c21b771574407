"""The commands `list`, `status`, `wait` and the verbs: what each asks of the bus, and what it prints."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine

from vmservice.client import output
from vmservice.client.bus import connected_bus
from vmservice.client.logs import EXIT_INTERRUPTED, LastLines
from vmservice.client.power import booted, press_power_button, unit_that_runs
from vmservice.client.systemctl import run_systemctl
from vmservice.client.units import unit_state
from vmservice.client.vms import Facts, NotRunning, all_facts, call_verb, facts, process_id
from vmservice.client.wait import StateWatch


def list_vms(*, user: bool, as_json: bool) -> int:
    """Print every VM on the bus."""

    async def ask() -> None:
        async with connected_bus(user=user) as bus:
            found = await all_facts(bus)
        if as_json:
            _print_json([output.as_dict(vm) for vm in found])
        elif found:
            print(output.table(found, colours=output.colours_wanted(sys.stdout)))
        else:
            _say("no VM is running")
        for vm in found:
            if vm.error is not None and not as_json:
                _say(vm.error)

    return _run(ask())


def show_status(name: str, *, user: bool, as_json: bool) -> int:
    """Print what one VM, the bus, systemd and the journal say of it.

    One that does not run is NotRunning, when what is known of its unit and its last lines has been printed all the same.
    """

    async def ask() -> None:
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
                    _say(lines.note)
        if missing is not None:
            raise missing

    return _run(ask())


def run_verb(member: str, name: str, *, user: bool, vcpus: int | None = None) -> int:
    """Have the VM do what the method `member` does; nothing is printed when it has."""

    async def ask() -> None:
        async with connected_bus(user=user) as bus:
            await call_verb(bus, name, member, vcpus)

    return _run(ask())


def power_off(name: str, *, user: bool, timeout_sec: float | None, start_again: bool = False) -> int:
    """Press the power button and return when the guest is off or, with `start_again`, when it runs anew."""

    async def ask() -> None:
        async with connected_bus(user=user) as bus:
            unit = await unit_that_runs(bus, name) if start_again else None
            await press_power_button(bus, name, timeout_sec, _say)
            if start_again and not await booted(bus, name):
                if unit is None:
                    raise NotRunning(f"the VM {name} has powered off and ended; no unit ran it that could be started again")
                run_systemctl("start", name, user=user)

    return _run(ask())


def wait_for_state(name: str, state: str, *, user: bool, timeout_sec: float | None) -> int:
    """Return when the VM is in `state`; without a timeout that may be never."""

    async def ask() -> None:
        async with connected_bus(user=user) as bus:
            await StateWatch(bus, name, state, _say).wait(timeout_sec)

    return _run(ask())


def _run(work: Coroutine[None, None, None]) -> int:
    try:
        asyncio.run(work)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return os.EX_OK


def _say(text: str) -> None:
    """A note for a person, apart from what the command is asked for."""
    print(f"vmservice: {text}", file=sys.stderr)


def _print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=2))
