"""The commands `list`, `status`, `wait` and the verbs: what each asks of the bus, and what it prints."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine, Sequence

from vmservice.client import output
from vmservice.client.bus import Bus, connected_bus
from vmservice.client.logs import EXIT_INTERRUPTED, LastLines
from vmservice.client.overview import Overview, measured, overview, overviews, without_bus
from vmservice.client.power import power_cycle, press_power_button
from vmservice.client.several import for_each, tell
from vmservice.client.vms import call_verb, near_name, with_near_name
from vmservice.client.wait import StateWatch
from vmservice.config.names import config_directory
from vmservice.errors import VmmError


def list_vms(*, user: bool, as_json: bool, everything: bool = False) -> int:
    """Print the VMs that run, or all that there are."""

    async def ask() -> int:
        missing: VmmError | None = None
        try:
            async with connected_bus(user=user) as bus:
                found = await measured(await overviews(bus, user=user, everything=everything))
        except VmmError as error:
            if not as_json and not everything:
                raise
            missing = error
            found = without_bus(str(error), user=user) if everything else []
        if as_json:
            _print_json([output.as_dict(vm) for vm in found])
        elif found:
            print(output.table(found, colours=output.colours_wanted(sys.stdout), width=output.width_of(sys.stdout)))
        elif missing is None:
            tell(_nothing(user=user, everything=everything))
        if missing is not None:
            raise missing
        return os.EX_OK

    return _run(ask())


def show_status(name: str, *, user: bool, as_json: bool) -> int:
    """Print what one VM, the bus, systemd and the journal say of it.

    One that does not run is NotRunning, when what is known of its unit and its last lines has been printed all the same; so is
    NotInTime one that does not answer.
    """

    async def ask() -> int:
        try:
            async with connected_bus(user=user) as bus:
                vm, failure = await overview(bus, name, user=user)
                failure = failure and await with_near_name(bus, failure)
        except VmmError as error:
            if not as_json:
                raise
            vm, failure = Overview(name, user, error=str(error)), error
        if failure is not None and not vm.exists and not as_json:
            raise failure
        lines = LastLines(name, user=user) if vm.unit is not None and vm.exists else None
        if as_json:
            answer = {**output.details_as_dict(vm), "journal": lines.as_list() if lines is not None else []}
            _print_json(answer if failure is None else {**answer, "error": str(failure)})
        else:
            print(output.details(vm, colours=output.colours_wanted(sys.stdout)))
            if lines is not None:
                print(lines.as_text(), end="")
                if lines.note is not None:
                    tell(lines.note)
        if failure is not None:
            raise failure
        return os.EX_OK

    return _run(ask())


def _nothing(*, user: bool, everything: bool) -> str:
    folder = config_directory(user=user)
    if everything:
        return f"there is no VM: none runs, and {folder} has no NAME.toml"
    count = len(without_bus("", user=user))
    configured = "1 is configured" if count == 1 else f"{count} are configured"
    return f"no VM is running; {configured} (`vmservice list --all`)" if count else "no VM is running"


def run_verb(member: str, names: Sequence[str], *, user: bool, ask_password: bool, vcpus: int | None = None) -> int:
    """Have the VMs do what the method `member` does; nothing is printed when they have."""

    async def ask() -> int:
        async with connected_bus(user=user, ask_password=ask_password) as bus:
            return await for_each(bus, names, lambda name: call_verb(bus, name, member, vcpus))

    return _run(ask())


def power_off(names: Sequence[str], *, user: bool, ask_password: bool, timeout_sec: float) -> int:
    """Press the power buttons and return when all guests are off."""

    async def ask() -> int:
        async with connected_bus(user=user, ask_password=ask_password) as bus:
            return await for_each(bus, names, lambda name: press_power_button(bus, name, timeout_sec, tell))

    return _run(ask())


def reboot(names: Sequence[str], *, user: bool, ask_password: bool, timeout_sec: float) -> int:
    """Press the power buttons and return when all run anew. None waits for another."""

    async def ask() -> int:
        async with connected_bus(user=user, ask_password=ask_password) as bus:
            return await for_each(bus, names, lambda name: power_cycle(bus, name, timeout_sec, tell))

    return _run(ask())


def wait_for_state(names: Sequence[str], state: str, *, user: bool, timeout_sec: float | None) -> int:
    """Return when each VM has been in `state`; without a timeout that may be never."""

    async def wait(bus: Bus, name: str) -> None:
        await StateWatch(bus, name, state, lambda text: tell(f"{text}{near_name(name, user=user)}")).wait(timeout_sec)

    async def ask() -> int:
        async with connected_bus(user=user) as bus:
            return await for_each(bus, names, lambda name: wait(bus, name))

    return _run(ask())


def _run(work: Coroutine[None, None, int]) -> int:
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=2))
