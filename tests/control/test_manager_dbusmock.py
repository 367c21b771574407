"""The manager's template in python-dbusmock itself, with the client that hears the real one."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dbus_next import Variant
from support.bus_client import CallFailed, client
from support.managed import Desktop
from support.private_bus import PrivateBus
from support.process import CHECKOUT

from vmservice.manager.names import INTERFACE, vm_path

TEMPLATE = CHECKOUT / "vmservice/manager/dbusmock_template.py"
MOCK = "org.freedesktop.DBus.Mock"


@pytest.fixture
def mocked(own_bus: PrivateBus, tmp_path: Path) -> Iterator[str]:
    """The address of a bus on which the mock shows one VM."""
    # dbus-python is built for the interpreter of the distribution, which the tests' own need not be.
    for python in (sys.executable, "/usr/bin/python3"):
        if subprocess.run([python, "-c", "import dbusmock"], cwd="/", stderr=subprocess.DEVNULL, check=False).returncode == 0:
            break
    else:
        pytest.skip("python3-dbusmock is not installed")
    own_bus.start()
    parameters = json.dumps({"VMs": {"web-1": {"ActiveState": "failed", "SubState": "failed", "Reason": "no /dev/kvm"}}})
    with (tmp_path / "log").open("wb") as log:
        mock = subprocess.Popen(
            [python, "-m", "dbusmock", "--session", "--template", str(TEMPLATE), "--parameters", parameters],
            cwd=tmp_path,
            env={**os.environ, "DBUS_SESSION_BUS_ADDRESS": own_bus.address},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield own_bus.address
    finally:
        mock.kill()
        mock.wait()


def test_a_client_sees_what_the_test_does(mocked: str) -> None:
    async def check() -> None:
        async with client(mocked) as caller:
            daemon = {
                "destination": "org.freedesktop.DBus",
                "path": "/org/freedesktop/DBus",
                "interface": "org.freedesktop.DBus",
            }
            async with asyncio.timeout(20):
                while not await caller.call("", "NameHasOwner", "s", [INTERFACE], **daemon):
                    await asyncio.sleep(0.02)
            seen = Desktop(caller)
            await seen.look()
            assert seen.names() == {"web-1"}
            assert (seen.get("web-1", "Reason"), seen.get("web-1", "HasConfiguration")) == ("no /dev/kvm", True)
            assert await seen.call("ListVMs") == [["web-1", vm_path("web-1")]]

            await seen.call("AddVM", "sa{sv}", ["demo", {"HasConfiguration": Variant("b", False)}], interface=MOCK)
            await seen.until(lambda: seen.names() == {"web-1", "demo"})
            assert seen.get("demo", "HasConfiguration") is False
            await seen.call("ChangeVM", "sa{sv}", ["demo", {"State": Variant("s", "running")}], interface=MOCK)
            await seen.until(lambda: seen.get("demo", "State") == "running")
            await seen.call("RemoveVM", "s", ["demo"], interface=MOCK)
            await seen.until(lambda: seen.names() == {"web-1"})
            with pytest.raises(CallFailed, match="NoSuchVM"):
                await seen.call("GetVM", "s", ["demo"])
            with pytest.raises(CallFailed, match="a VM has no property Cpus"):
                await seen.call("AddVM", "sa{sv}", ["demo", {"Cpus": Variant("u", 1)}], interface=MOCK)

    asyncio.run(check())
