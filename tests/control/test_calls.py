"""Calls that fit no member, the standard interfaces, and what a caller is told of our failures."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from dbus_next import Variant
from dbus_next.constants import MessageFlag
from support.bus_client import PROPERTIES, CallFailed, Client, client, served_vm
from support.private_bus import PrivateBus

from vmservice.control.errors import OUR_BUG, TEXT_LIMIT_CHARS
from vmservice.control.names import INTERFACE
from vmservice.errors import ConfigError, HostError, KvmError, NotSupported
from vmservice.vm.sim import SimMachine

STANDARD = "org.freedesktop.DBus.Error."
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
PEER = "org.freedesktop.DBus.Peer"


async def refusal(caller: Client, member: str, signature: str = "", body: list[Any] | None = None, **header: Any) -> CallFailed:
    with pytest.raises(CallFailed) as raised:
        await caller.call("demo", member, signature, body, **header)
    return raised.value


@pytest.mark.parametrize(
    ("member", "signature", "body", "header", "error", "words"),
    [
        ("Resize", "i", [2], {}, "InvalidArgs", "Resize takes arguments of signature y, not arguments of signature i"),
        ("Resize", "", [], {}, "InvalidArgs", "not no arguments"),
        ("Resize", "yy", [1, 2], {}, "InvalidArgs", "signature yy"),
        ("Resize", "v", [Variant("y", 2)], {}, "InvalidArgs", "signature v"),
        ("Boot", "s", ["now"], {}, "InvalidArgs", "Boot takes no arguments"),
        ("Explode", "", [], {}, "UnknownMethod", "no method Explode"),
        ("boot", "", [], {}, "UnknownMethod", "no method boot"),
        ("Boot", "", [], {"interface": "org.example.Other"}, "UnknownInterface", "org.example.Other"),
        ("Boot", "", [], {"path": "/org/vmservice/VM1/x"}, "UnknownObject", "/org/vmservice/VM1/x"),
        ("Boot", "", [], {"path": "/"}, "UnknownObject", "the VM is at /org/vmservice/VM1"),
        ("Introspect", "", [], {"path": "/elsewhere", "interface": INTROSPECTABLE}, "UnknownObject", "/elsewhere"),
        ("Get", "s", ["State"], {"interface": PROPERTIES}, "InvalidArgs", "signature ss"),
        ("Get", "ss", [INTERFACE, "Nonsense"], {"interface": PROPERTIES}, "UnknownProperty", "no property Nonsense"),
        ("Get", "ss", ["org.example.Other", "State"], {"interface": PROPERTIES}, "UnknownInterface", "org.example.Other"),
        ("Get", "ss", [PEER, "State"], {"interface": PROPERTIES}, "UnknownProperty", "State"),
        ("GetAll", "s", ["org.example.Other"], {"interface": PROPERTIES}, "UnknownInterface", "org.example.Other"),
        ("Set", "ssv", [INTERFACE, "State", Variant("s", "paused")], {"interface": PROPERTIES}, "PropertyReadOnly", "State"),
        ("Set", "ssv", [INTERFACE, "Nonsense", Variant("u", 1)], {"interface": PROPERTIES}, "UnknownProperty", "Nonsense"),
        ("GetManagedObjects", "", [], {"interface": "org.freedesktop.DBus.ObjectManager"}, "UnknownInterface", "ObjectManager"),
    ],
)
def test_refusal(
    bus: PrivateBus, member: str, signature: str, body: list[Any], header: dict[str, Any], error: str, words: str
) -> None:
    async def check() -> None:
        async with served_vm(bus.address) as served, client(bus.address) as caller:
            failed = await refusal(caller, member, signature, body, **header)
            assert failed.name == STANDARD + error
            assert words in failed.text
            assert served.vm.properties()["State"] == "created"
            assert served.log == []

    asyncio.run(check())


def test_a_call_without_interface_finds_its_method(bus: PrivateBus) -> None:
    """The D-Bus specification lets a caller leave the interface out."""

    async def check() -> None:
        async with served_vm(bus.address) as served, client(bus.address) as caller:
            await caller.call("demo", "Boot", interface=None)
            assert served.vm.state == "running"
            assert (await caller.call("demo", "Get", "ss", ["", "State"], interface=None)).value == "running"
            assert (await refusal(caller, "Explode", interface=None)).name == STANDARD + "UnknownMethod"

    asyncio.run(check())


def test_get_all(bus: PrivateBus) -> None:
    async def check() -> None:
        async with served_vm(bus.address, "web-1") as served, client(bus.address) as caller:
            served.vm.boot()
            every = await caller.call("web-1", "GetAll", "s", [INTERFACE], interface=PROPERTIES)
            assert {name: (value.signature, value.value) for name, value in every.items()} == {
                "State": ("s", "running"),
                "Name": ("s", "web-1"),
                "VCPUs": ("y", 1),
                "MaxVCPUs": ("y", 4),
                "Memory": ("t", 64 << 20),
                "LastExit": ("s", ""),
                "GuestReady": ("b", True),
                "Devices": ("a(ssa{sv})", [["console", "serial", {"mode": Variant("s", "null")}]]),
                "Stats": ("a{sd}", {"sim.heartbeats": 0.0}),
            }
            assert await caller.call("web-1", "GetAll", "s", [PEER], interface=PROPERTIES) == {}

    asyncio.run(check())


def test_peer_answers_every_time_and_on_every_path(bus: PrivateBus) -> None:
    async def check() -> None:
        async with served_vm(bus.address), client(bus.address) as caller:
            ids = set()
            for _ in range(3):
                await caller.call("demo", "Ping", interface=PEER, path="/anywhere")
                try:
                    ids.add(await caller.call("demo", "GetMachineId", interface=PEER))
                except CallFailed as failed:  # a container without one
                    ids.add(failed.text)
            (answer,) = ids
            assert len(answer) == 32 or "machine id" in answer

    asyncio.run(check())


def test_a_call_that_wants_no_reply_gets_none(bus: PrivateBus) -> None:
    async def check() -> None:
        async with served_vm(bus.address) as served, client(bus.address) as caller:
            await caller.call("demo", "Ping", interface=PEER)
            caller.traffic.clear()
            for member in ("Boot", "Boot", "Explode"):
                message = {"destination": "org.vmservice.VM1.demo", "path": "/org/vmservice/VM1", "interface": INTERFACE}
                from dbus_next import Message

                await caller.bus.send(Message(member=member, flags=MessageFlag.NO_REPLY_EXPECTED, **message))
            await caller.call("demo", "Ping", interface=PEER)
            assert caller.traffic == ["reply"]
            assert served.vm.state == "running"

    asyncio.run(check())


@pytest.mark.parametrize(
    ("error", "name", "text"),
    [
        (
            KvmError.from_os("cannot run vCPU 0", OSError(12, "")),
            "Failed",
            "cannot run vCPU 0: Cannot allocate memory (errno 12)",
        ),
        (HostError("no more tap devices"), "Failed", "no more tap devices"),
        (ConfigError("the kernel /boot/none does not exist"), "Failed", "the kernel /boot/none does not exist"),
        (NotSupported("no hot-plugging here"), "NotSupported", "no hot-plugging here"),
        (HostError("two\nlines\0 and a bad byte \udcff"), "Failed", r"two\u000Alines\u0000 and a bad byte \uDCFF"),
        (HostError("x" * 10_000), "Failed", "x" * (TEXT_LIMIT_CHARS - 1) + "…"),
    ],
)
def test_failures_of_the_host_are_told(bus: PrivateBus, error: Exception, name: str, text: str) -> None:
    def build(_served: object) -> SimMachine:
        raise error

    async def check() -> None:
        async with served_vm(bus.address, build=build) as served, client(bus.address) as caller:
            failed = await refusal(caller, "Boot")
            assert (failed.name, failed.text) == (f"{INTERFACE}.Error.{name}", text)
            assert served.vm.state == "created"
            assert served.log == []

    asyncio.run(check())


def test_a_bug_is_logged_and_not_told(bus: PrivateBus) -> None:
    def build(_served: object) -> SimMachine:
        raise ZeroDivisionError("secret of ours")

    async def check() -> None:
        async with served_vm(bus.address, build=build) as served, client(bus.address) as caller:
            failed = await refusal(caller, "Boot")
            assert (failed.name, failed.text) == (f"{INTERFACE}.Error.Failed", OUR_BUG)
            (logged,) = served.log
            assert "Traceback" in logged
            assert "ZeroDivisionError: secret of ours" in logged
            assert await caller.get("demo", "State") == "created"

    asyncio.run(check())
