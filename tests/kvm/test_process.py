"""The whole process with a real guest and its disks, on a bus: what a caller sees and does."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dbus_next import Variant
from support.bus_client import CallFailed, Client, client
from support.kvm_guest import needs_kvm
from support.private_bus import PrivateBus
from support.process import Manager, VmProcess

pytestmark = [pytest.mark.kvm, needs_kvm]

MIB = 1 << 20


@pytest.fixture
def bus(tmp_path: Path, payloads: Callable[[str], Path]) -> Iterator[PrivateBus]:
    """One that a VM is on, with a raw disk and persistent memory."""
    (tmp_path / "root.raw").write_bytes(bytes(MIB))
    (tmp_path / "data.img").write_bytes(bytes(2 * MIB))
    config = tmp_path / "demo.toml"
    config.write_text(
        f'[firmware]\npath = "{payloads("beat")}"\n[memory]\nsize = "16M"\n[serial]\nmode = "null"\n'
        '[[disk]]\nname = "root"\nformat = "raw"\npath = "root.raw"\n[[pmem]]\nname = "data"\npath = "data.img"\n'
    )
    manager = Manager()
    with PrivateBus() as bus:
        process = VmProcess(config, "--bus", bus.address, manager=manager)
        try:
            manager.wait_for("READY", "1")
            yield bus
            process.send(signal.SIGTERM)
            process.send(signal.SIGTERM)
            assert process.wait() == 0
        finally:
            process.close()
            manager.close()


def talk(bus: PrivateBus, work: Callable[[Client], object]) -> None:
    async def go() -> None:
        async with client(bus.address) as caller:
            await work(caller)  # type: ignore[misc]

    asyncio.run(go())


def test_devices_and_counters(bus: PrivateBus, tmp_path: Path) -> None:
    async def work(caller: Client) -> None:
        devices = {name: (kind, details) for kind, name, details in await caller.get("demo", "Devices")}
        assert list(devices) == ["serial", "root", "data"]
        assert devices["root"][0] == "disk"
        assert devices["root"][1]["path"] == Variant("s", f"{tmp_path}/root.raw")
        assert devices["root"][1]["size"] == Variant("t", MIB)
        assert devices["data"] == (
            "pmem",
            {"path": Variant("s", f"{tmp_path}/data.img"), "size": Variant("t", 2 * MIB), "readonly": Variant("b", False)},
        )
        stats = await caller.get("demo", "Stats")
        assert {"disk.root.reads", "disk.root.errors", "pmem.data.flushes"} <= stats.keys()

    talk(bus, work)


def test_a_reset_looks_only_for_what_the_new_machine_is_made_of(bus: PrivateBus, tmp_path: Path) -> None:
    """An image that is open may have been renamed. Persistent memory is mapped anew, so what cannot be is refused in time."""

    async def work(caller: Client) -> None:
        (tmp_path / "root.raw").rename(tmp_path / "old.raw")
        await caller.call("demo", "Reboot")
        assert await caller.get("demo", "State") == "running"
        os.truncate(tmp_path / "data.img", 3 * MIB)
        with pytest.raises(CallFailed, match=r"data\.img has 3145728 bytes; expected a multiple of 2 MiB"):
            await caller.call("demo", "Reboot")
        assert await caller.get("demo", "State") == "running"

    talk(bus, work)
