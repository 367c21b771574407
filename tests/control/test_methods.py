"""Every method in every state over a real bus: what it leads to, or the name and the sentence of its refusal."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from dbus_next import Variant
from support.bus_client import PROPERTIES, CallFailed, Client, client, served_vm
from support.private_bus import PrivateBus

from vmservice.config.sections.balloon import BalloonDevice
from vmservice.control.names import INTERFACE
from vmservice.vm.state import TRANSITIONS
from vmservice.vm.vm import Vm

ERROR = f"{INTERFACE}.Error."
FORBIDDEN = ERROR + "InvalidStateTransition"

CALLS: dict[str, tuple[str, list[Any]]] = {
    "Boot": ("", []),
    "Pause": ("", []),
    "Resume": ("", []),
    "Shutdown": ("", []),
    "Resize": ("y", [2]),
    "PowerButton": ("", []),
    "Reboot": ("", []),
}

# The state that a method leads to; None where it is refused.
OUTCOME: dict[str, dict[str, str | None]] = {
    "created": {"Boot": "running"},
    "running": {"Pause": "paused", "Shutdown": "shutdown", "Resize": "running", "PowerButton": "running", "Reboot": "running"},
    "paused": {"Boot": "running", "Resume": "running", "Shutdown": "shutdown", "Reboot": "running"},
    "shutdown": {"Boot": "running"},
}

# The states that the text of a refusal names: the one the VM is in, and the one the call would lead to or needs.
NAMED = {
    "Boot": "running",
    "Pause": "paused",
    "Resume": "running",
    "Shutdown": "shutdown",
    "Resize": "running",
    "PowerButton": "running",
    "Reboot": "running",
}


def bring_to(vm: Vm, state: str) -> None:
    if state != "created":
        vm.boot()
    if state == "paused":
        vm.pause()
    if state == "shutdown":
        vm.shutdown()


def assert_fit_for_a_caller(text: str) -> None:
    """One sentence; no traceback, no path of a source file."""
    assert text
    assert "\n" not in text
    for sign in ("Traceback", ".py", "/vmservice/", 'File "', "line "):
        assert sign not in text


@pytest.mark.parametrize("state", list(TRANSITIONS))
@pytest.mark.parametrize("member", CALLS)
def test_method_in_state(bus: PrivateBus, member: str, state: str) -> None:
    async def check() -> None:
        async with served_vm(bus.address) as served, client(bus.address) as caller:
            bring_to(served.vm, state)
            before = served.vm.properties()
            outcome = OUTCOME[state].get(member)
            if outcome is None:
                with pytest.raises(CallFailed) as refusal:
                    await caller.call("demo", member, *CALLS[member])
                assert refusal.value.name == FORBIDDEN
                assert state in refusal.value.text
                assert NAMED[member] in refusal.value.text
                assert_fit_for_a_caller(refusal.value.text)
                assert served.vm.properties() == before
            else:
                await caller.call("demo", member, *CALLS[member])
                assert await caller.get("demo", "State") == outcome
                if member == "Resize":
                    assert await caller.get("demo", "VCPUs") == 2

    asyncio.run(check())


@pytest.mark.parametrize("count", [0, 5, 255])
def test_resize_out_of_range(bus: PrivateBus, count: int) -> None:
    async def check() -> None:
        async with served_vm(bus.address) as served, client(bus.address) as caller:
            served.vm.boot()
            with pytest.raises(CallFailed) as refusal:
                await caller.call("demo", "Resize", "y", [count])
            assert refusal.value.name == ERROR + "InvalidArgument"
            assert str(count) in refusal.value.text
            assert "1 to 4" in refusal.value.text
            assert served.vm.vcpus == 1

    asyncio.run(check())


def test_busy_while_held(bus: PrivateBus) -> None:
    async def check() -> None:
        async with served_vm(bus.address) as served, client(bus.address) as caller:
            served.vm.boot()
            served.vm.hold("the VM is being stopped")
            for member in ("Pause", "Reboot", "Boot", "Resume", "Resize"):
                with pytest.raises(CallFailed) as refusal:
                    await caller.call("demo", member, *CALLS[member])
                assert refusal.value.name == ERROR + "Busy"
                assert refusal.value.text == f"{member} is refused because the VM is being stopped"
            await caller.call("demo", "Shutdown")
            assert await caller.get("demo", "LastExit") == "shutdown"

    asyncio.run(check())


def test_power_button_ends_in_state_shutdown(bus: PrivateBus) -> None:
    async def check() -> None:
        async with served_vm(bus.address) as served, client(bus.address) as caller:
            await caller.watch()
            await caller.call("demo", "Boot")
            await caller.call("demo", "PowerButton")
            off = asyncio.get_running_loop().create_future()
            served.vm.subscribe(off.set_result)
            gone = {"State": "shutdown", "LastExit": "poweroff", "GuestReady": False}
            assert await asyncio.wait_for(off, 10) == gone
            assert await caller.get("demo", "LastExit") == "poweroff"
            assert changes_of(caller)[-1] == gone
            assert any(b"power button" in line for line in served.console)

    asyncio.run(check())


def changes_of(caller: Client) -> list[dict[str, Any]]:
    return [{name: value.value for name, value in signal.body[1].items()} for signal in caller.signals]


def test_properties_changed_comes_before_the_reply(bus: PrivateBus) -> None:
    async def check() -> None:
        async with served_vm(bus.address), client(bus.address) as caller:
            await caller.watch()
            await caller.call("demo", "Boot")
            caller.traffic.clear()
            for member in ("Pause", "Resume"):
                await caller.call("demo", member)
            await caller.call("demo", "Resize", "y", [3])
            assert caller.traffic == ["signal PropertiesChanged", "reply"] * 3
            begun = {"State": "running", "GuestReady": True}
            assert changes_of(caller) == [begun, {"State": "paused"}, {"State": "running"}, {"VCPUs": 3}]
            for signal in caller.signals:
                assert (signal.interface, signal.signature, signal.body[0], signal.body[2]) == (
                    PROPERTIES,
                    "sa{sv}as",
                    INTERFACE,
                    [],
                )

    asyncio.run(check())


def test_a_failed_call_signals_nothing(bus: PrivateBus) -> None:
    async def check() -> None:
        async with served_vm(bus.address), client(bus.address) as caller:
            await caller.watch()
            with pytest.raises(CallFailed):
                await caller.call("demo", "Pause")
            assert await caller.get("demo", "State") == "created"
            assert caller.signals == []

    asyncio.run(check())


def test_devices_and_counters(bus: PrivateBus) -> None:
    """Each detail has its type; a change of Devices is told, and none of Stats."""

    async def check() -> None:
        async with served_vm(bus.address) as served, client(bus.address) as caller:
            await caller.watch()
            served.devices = [
                ("disk", "root", {"path": "/bad\udcff.raw", "size": 1 << 40, "readonly": True}),
                ("port", "agent", {"socket": "/run/agent.sock"}),
            ]
            served.vm.reconfigure_device(BalloonDevice(0))
            details = {"path": Variant("s", "/bad?.raw"), "size": Variant("t", 1 << 40), "readonly": Variant("b", True)}
            devices = [["disk", "root", details], ["port", "agent", {"socket": Variant("s", "/run/agent.sock")}]]
            assert await caller.get("demo", "Devices") == devices
            assert await caller.get("demo", "Stats") == {}
            await caller.call("demo", "Boot")
            assert await caller.get("demo", "Stats") == {"sim.heartbeats": 0.0}
            with pytest.raises(CallFailed, match="property Stats is read-only"):
                await caller.call("demo", "Set", "ssv", [INTERFACE, "Stats", Variant("s", "")], interface=PROPERTIES)
            assert [message.body[1] for message in caller.signals] == [
                {"Devices": Variant("a(ssa{sv})", devices)},
                {"State": Variant("s", "running"), "GuestReady": Variant("b", True)},
            ]

    asyncio.run(check())
