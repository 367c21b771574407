"""The commands `list`, `status`, `wait` and the verbs: what each asks of the bus, and what it prints."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence

from vmservice.client import interrupts, output
from vmservice.client.bus import Bus, connected_bus
from vmservice.client.logs import LastLines
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

    return interrupts.run(ask())


def show_status(names: Sequence[str], *, user: bool, as_json: bool) -> int:
    """Print what VMs, the bus, systemd and the journal say of them: as JSON an object, of several an array.

    One that does not run, or does not answer, fails; what is known of its unit and its last lines is printed all the same.
    """

    async def look(bus: Bus, name: str) -> tuple[Overview, VmmError | None]:
        vm, failure = await overview(bus, name, user=user)
        return vm, failure and await with_near_name(bus, failure)

    async def ask() -> int:
        try:
            async with connected_bus(user=user) as bus:
                found = await asyncio.gather(*(look(bus, name) for name in names))
        except VmmError as error:
            if not as_json:
                raise
            found = [(Overview(name, user, error=str(error)), error) for name in names]
        if as_json:
            answers = [_status_as_dict(vm, failure) for vm, failure in found]
            _print_json(answers if len(names) > 1 else answers[0])
        for vm, failure in found:
            if not as_json:
                _print_status(vm, failure, first=vm.name == names[0])
            if failure is not None:
                tell(str(failure), vm.name if len(names) > 1 else "")
        return next((failure.exit_status for _, failure in found if failure is not None), os.EX_OK)

    return interrupts.run(ask())


def _last_lines(vm: Overview) -> LastLines | None:
    return LastLines(vm.name, user=vm.user) if vm.unit is not None and vm.exists else None


def _status_as_dict(vm: Overview, failure: VmmError | None) -> dict[str, object]:
    lines = _last_lines(vm)
    answer = {**output.details_as_dict(vm), "journal": lines.as_list() if lines is not None else []}
    return answer if failure is None else {**answer, "error": str(failure)}


def _print_status(vm: Overview, failure: VmmError | None, *, first: bool) -> None:
    """Nothing for a VM that does not even exist."""
    if failure is not None and not vm.exists:
        return
    lines = _last_lines(vm)
    print("" if first else "\n", output.details(vm, colours=output.colours_wanted(sys.stdout)), sep="")
    if lines is not None:
        print(lines.as_text(), end="")
        if lines.note is not None:
            tell(lines.note)
    sys.stdout.flush()


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

    return interrupts.run(ask())


def power_off(names: Sequence[str], *, user: bool, ask_password: bool, timeout_sec: float) -> int:
    """Press the power buttons and return when all guests are off."""

    async def ask() -> int:
        async with connected_bus(user=user, ask_password=ask_password) as bus:
            return await for_each(bus, names, lambda name: press_power_button(bus, name, timeout_sec, tell))

    return interrupts.run(ask())


def reboot(names: Sequence[str], *, user: bool, ask_password: bool, timeout_sec: float) -> int:
    """Press the power buttons and return when all run anew. None waits for another."""

    async def ask() -> int:
        async with connected_bus(user=user, ask_password=ask_password) as bus:
            return await for_each(bus, names, lambda name: power_cycle(bus, name, timeout_sec, tell))

    return interrupts.run(ask())


def wait_for_state(names: Sequence[str], state: str, *, user: bool, timeout_sec: float | None) -> int:
    """Return when each VM has been in `state`; without a timeout that may be never."""

    async def wait(bus: Bus, name: str) -> None:
        await StateWatch(bus, name, state, lambda text: tell(f"{text}{near_name(name, user=user)}")).wait(timeout_sec)

    async def ask() -> int:
        async with connected_bus(user=user) as bus:
            return await for_each(bus, names, lambda name: wait(bus, name))

    return interrupts.run(ask())


def _print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=2))
