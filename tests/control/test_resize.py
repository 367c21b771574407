"""Resize over a real bus, with a guest that takes its time: the reply comes when it has answered, and never too late."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from support.bus_client import CallFailed, Client, Served, client, served_vm
from support.private_bus import PrivateBus

from vmservice.control.names import INTERFACE
from vmservice.vm.sim import SimMachine
from vmservice.vm.vm import RESIZE_TIMEOUT_SEC

NOT_RESPONDING = f"{INTERFACE}.Error.GuestNotResponding"


def slow(served: Served) -> SimMachine:
    """Its guest answers in a quarter of an hour."""
    return SimMachine(served.events, served.console.append, vcpus=1, max_vcpus=4, resize_sec=1000.0)


def brisk(served: Served) -> SimMachine:
    return SimMachine(served.events, served.console.append, vcpus=1, max_vcpus=4, resize_sec=0.02)


def on_a_bus(
    bus: PrivateBus, build: Callable[[Served], SimMachine], check: Callable[[Served, Client], Awaitable[None]]
) -> None:
    async def run() -> None:
        async with served_vm(bus.address, build=build) as served, client(bus.address) as caller:
            served.vm.boot()
            await check(served, caller)

    asyncio.run(run())


async def begun(served: Served, caller: Client, count: int) -> asyncio.Task[object]:
    """The call of a Resize that waits for the guest."""
    call = asyncio.create_task(caller.call("demo", "Resize", "y", [count]))
    async with asyncio.timeout(60):
        while served.vm.operation is None:
            await asyncio.sleep(0.001)
    assert not call.done()
    return call


def test_it_answers_when_the_guest_has(bus: PrivateBus) -> None:
    async def check(served: Served, caller: Client) -> None:
        await caller.watch()
        await caller.call("demo", "Resize", "y", [4])
        changes = [signal.body[1] for signal in caller.signals]
        assert [change["VCPUs"].value for change in changes if "VCPUs" in change] == [2, 3, 4]
        assert caller.traffic[-1] == "reply"
        assert served.vm.operation is None

    on_a_bus(bus, brisk, check)


def test_it_answers_before_its_client_gives_up(bus: PrivateBus) -> None:
    async def check(served: Served, caller: Client) -> None:
        call = await begun(served, caller, 3)
        assert await caller.get("demo", "VCPUs") == 1
        served.clock.advance(RESIZE_TIMEOUT_SEC)
        with pytest.raises(CallFailed) as failed:
            await call
        text = "the guest did not answer a Resize to 3 vCPUs within 20 seconds; it has 1"
        assert (failed.value.name, failed.value.text) == (NOT_RESPONDING, text)

    on_a_bus(bus, slow, check)


@pytest.mark.parametrize(
    ("member", "state", "happened"),
    [("Pause", "paused", "paused"), ("Reboot", "running", "reset"), ("Shutdown", "shutdown", "shut down")],
)
@pytest.mark.parametrize("by_another", [False, True])
def test_a_verb_ends_it(bus: PrivateBus, member: str, state: str, happened: str, by_another: bool) -> None:
    """It is not refused for as long as a guest does not answer; who waits is told why."""

    async def check(served: Served, caller: Client) -> None:
        call = await begun(served, caller, 4)
        async with client(bus.address) as other:
            await (other if by_another else caller).call("demo", member)
        with pytest.raises(CallFailed) as failed:
            await call
        assert failed.value.name == NOT_RESPONDING
        assert failed.value.text.startswith(f"the VM was {happened} before the guest had answered a Resize to 4 vCPUs")
        assert await caller.get("demo", "State") == state

    on_a_bus(bus, slow, check)


def test_a_second_one_is_refused(bus: PrivateBus) -> None:
    async def check(served: Served, caller: Client) -> None:
        call = await begun(served, caller, 4)
        with pytest.raises(CallFailed, match=r"Error\.Busy: Resize is refused because a Resize to 4 vCPUs is under way"):
            await caller.call("demo", "Resize", "y", [2])
        await caller.call("demo", "Shutdown")
        with pytest.raises(CallFailed):
            await call

    on_a_bus(bus, slow, check)
