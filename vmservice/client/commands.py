"""The commands `list`, `status`, `wait` and the verbs: what each asks of the bus, and what it prints."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine

from vmservice.client import output
from vmservice.client.bus import connected_bus
from vmservice.client.units import unit_state
from vmservice.client.vms import NotRunning, all_facts, call_verb, facts, process_id
from vmservice.client.wait import StateWatch

# Command → method of the D-Bus object.
MEMBERS = {
    "boot": "Boot",
    "pause": "Pause",
    "resume": "Resume",
    "shutdown": "Shutdown",
    "power-button": "PowerButton",
    "reboot": "Reboot",
    "resize": "Resize",
}

# As a shell reports a command that SIGINT ended.
EXIT_INTERRUPTED = 130


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
    """Print what one VM, the bus and systemd say of it."""

    async def ask() -> None:
        async with connected_bus(user=user) as bus:
            unit = await unit_state(bus, name)
            try:
                vm = await facts(bus, name)
            except NotRunning as error:
                if unit is None:
                    raise
                raise NotRunning(f"{error} (its unit is {unit.active_state})") from None
            pid = await process_id(bus, name)
        if as_json:
            _print_json(output.details_as_dict(vm, pid, unit))
        else:
            print(output.details(vm, pid, unit, colours=output.colours_wanted(sys.stdout)))

    return _run(ask())


def run_verb(command: str, name: str, *, user: bool, vcpus: int | None = None) -> int:
    """Have the VM do it; nothing is printed when it has."""

    async def ask() -> None:
        async with connected_bus(user=user) as bus:
            await call_verb(bus, name, MEMBERS[command], vcpus)

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
