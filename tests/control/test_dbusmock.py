"""The template in python-dbusmock itself, asked by our own commands as any client would be."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Message, Variant
from support.bus_client import PROPERTIES, CallFailed, Client, client
from support.private_bus import PrivateBus
from support.process import CHECKOUT, vmservice

from vmservice.control.names import INTERFACE

TEMPLATE = CHECKOUT / "vmservice/client/dbusmock_template.py"
MOCK = "org.freedesktop.DBus.Mock"
# dbus-python is built for the interpreter of the distribution, which the tests' own need not be.
INTERPRETERS = (sys.executable, "/usr/bin/python3")

Ask = Callable[..., "subprocess.CompletedProcess[str]"]


def interpreter() -> str:
    for python in INTERPRETERS:
        found = subprocess.run([python, "-c", "import dbusmock"], cwd="/", stderr=subprocess.DEVNULL, check=False)
        if found.returncode == 0:
            return python
    pytest.skip("python3-dbusmock is not installed")


@pytest.fixture
def ask(own_bus: PrivateBus, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Ask]:
    """`vmservice --user …` beside a mock VM called web-1, with two vCPUs unless the test has other parameters."""
    python = interpreter()
    own_bus.start()
    environment = {"DBUS_SESSION_BUS_ADDRESS": own_bus.address}
    command = [python, "-m", "dbusmock", "--session", "--template", str(TEMPLATE)]
    parameters = json.dumps(getattr(request, "param", {"VCPUs": 2}))
    with (tmp_path / "log").open("wb") as log:
        mock = subprocess.Popen(
            [*command, "--parameters", parameters],
            cwd=tmp_path,
            env={**os.environ, **environment, "VMSERVICE_MOCK_NAME": "web-1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )

    def ask(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return vmservice(command, "--user", *arguments, environment=environment)

    try:
        yield ask
    finally:
        mock.kill()
        mock.wait()


@pytest.fixture
def with_client(own_bus: PrivateBus) -> Callable[[Callable[[Client], Any]], None]:
    def run(work: Callable[[Client], Any]) -> None:
        async def go() -> None:
            async with client(own_bus.address) as caller:
                await work(caller)

        asyncio.run(go())

    return run


def test_our_own_commands_take_it_for_a_vm(ask: Ask) -> None:
    waited = ask("wait", "web-1", "running", "--timeout", "15")
    assert waited.returncode == 0, waited.stderr
    (listed,) = json.loads(ask("list", "--json").stdout)
    assert listed.items() >= (
        {
            "name": "web-1",
            "bus_name": "org.vmservice.VM1.web_2d1",
            "condition": "running",
            "state": "running",
            "vcpus": 2,
            "max_vcpus": 4,
            "memory": 512 << 20,
            "last_exit": "",
            "guest_ready": True,
            "devices": [{"kind": "console", "name": "serial", "details": {"mode": "null"}}],
            "error": None,
        }.items()
    )
    assert ask("pause", "web-1").returncode == 0
    refused = ask("pause", "web-1")
    assert refused.returncode == 1
    assert refused.stderr == "vmservice: web-1 is already paused\n"
    assert ask("resize", "web-1", "5").returncode == 1


def test_signals_types_and_the_guests_own_doings(ask: Ask, with_client: Callable[[Callable[[Client], Any]], None]) -> None:
    async def work(caller: Client) -> None:
        await caller.watch()
        values = await caller.call("web-1", "GetAll", "s", [INTERFACE], interface=PROPERTIES)
        assert {name: value.signature for name, value in values.items()} == {
            "State": "s",
            "Name": "s",
            "VCPUs": "y",
            "MaxVCPUs": "y",
            "Memory": "t",
            "LastExit": "s",
            "GuestReady": "b",
            "Devices": "a(ssa{sv})",
            "Stats": "a{sd}",
        }
        assert values["Devices"].value == [["console", "serial", {"mode": Variant("s", "null")}]]
        assert values["Stats"].value == {}
        await caller.call("web-1", "Resize", "y", [3])
        await caller.call("web-1", "GuestStops", "s", ["poweroff"], interface=MOCK)
        with pytest.raises(CallFailed) as failed:
            await caller.call("web-1", "PowerButton")
        assert failed.value.name == f"{INTERFACE}.Error.InvalidStateTransition"
        await caller.call("web-1", "FailNextCall", "ss", [f"{INTERFACE}.Error.Busy", "later"], interface=MOCK)
        with pytest.raises(CallFailed, match=r"Error\.Busy: later"):
            await caller.call("web-1", "Boot")
        await caller.call("web-1", "Reset", interface=MOCK)
        assert await caller.get("web-1", "VCPUs") == 2
        changes = [message.body for message in caller.signals if is_change(message)]
        assert changes == [
            [INTERFACE, {"VCPUs": Variant("y", 3)}, []],
            [
                INTERFACE,
                {"State": Variant("s", "shutdown"), "LastExit": Variant("s", "poweroff"), "GuestReady": Variant("b", False)},
                [],
            ],
        ]

    assert ask("wait", "web-1", "running", "--timeout", "15").returncode == 0
    with_client(work)


def test_the_example_of_the_documentation_works(tmp_path: Path) -> None:
    python = interpreter()
    (example,) = re.findall(
        r"^```python\n(.*?)^```$", (CHECKOUT / "docs/testing-clients.md").read_text(), re.DOTALL | re.MULTILINE
    )
    installed = "/usr/lib/python3/dist-packages/vmservice/client/dbusmock_template.py"
    command = f"{[sys.executable, '-m', 'vmservice']!r} + "
    example = example.replace(installed, str(TEMPLATE)).replace('["vmservice", ', f"{command}[")
    (tmp_path / "test_example.py").write_text(example)
    done = subprocess.run(
        [python, "-W", "ignore", "-m", "unittest", "test_example"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "Ran 1 test" in done.stderr


def is_change(message: Message) -> bool:
    return (message.interface, message.member) == (PROPERTIES, "PropertiesChanged")


@pytest.mark.parametrize("ask", [{"State": "paused", "MaxVCPUs": 8, "Memory": 1 << 33}], indirect=True)
def test_parameters(ask: Ask) -> None:
    assert ask("wait", "web-1", "paused", "--timeout", "15").returncode == 0
    name, state, vcpus, _cpu, *memory, _used, _unit, last_exit = ask("list").stdout.splitlines()[1].split()
    assert (name, state, vcpus, memory, last_exit) == ("web-1", "paused", "1/8", ["8", "GiB"], "-")
