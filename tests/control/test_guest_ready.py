"""[service] ready = "guest" in the whole process: what the guest says is what the service manager and the bus are told."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.bus_client import client
from support.guest_socket import say
from support.private_bus import PrivateBus
from support.process import SIM_CONFIG, Manager, VmProcess

PROGRAM = str(Path(__file__).parents[1] / "support/ready_vm.py")

Start = Callable[..., VmProcess]


@pytest.fixture
def socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "guest"
    monkeypatch.setenv("GUEST_SOCKET", str(path))
    return path


@pytest.fixture
def start(config: Path, manager: Manager, socket: Path) -> Iterator[Start]:
    processes: list[VmProcess] = []

    def start(*options: str, service: str = "") -> VmProcess:
        assert socket.parent == config.parent
        config.write_text(f"{SIM_CONFIG}[service]\n{service}\n")
        processes.append(VmProcess(config, "--sim", *options, manager=manager, program=(PROGRAM,)))
        return processes[-1]

    yield start
    for process in processes:
        process.close()


def ready(address: str) -> bool:
    async def ask() -> bool:
        async with client(address) as caller:
            return bool(await caller.get("demo", "GuestReady"))

    return asyncio.run(ask())


def test_the_unit_is_ready_when_the_guest_says_so(start: Start, manager: Manager, bus: PrivateBus, socket: Path) -> None:
    process = start("--bus", bus.address)
    manager.wait_for("EXTEND_TIMEOUT_USEC", "30000000")
    manager.wait_for("STATUS", "running; 1 vCPU, 512 MiB; waits for the guest to be ready")
    process.wait_for("D-Bus name acquired")
    assert not ready(bus.address)
    assert say(socket, b"STATUS=Starting Foo...\nX_SYSTEMD_HOSTNAME=web") == b""
    manager.wait_for("STATUS", "512 MiB; waits for the guest to be ready; guest: Starting Foo...")
    assert [message for message in manager.messages if "READY" in message] == []
    say(socket, b"READY=1")
    assert manager.wait_for("READY", "1")["STATUS"] == "running; 1 vCPU, 512 MiB; guest: Starting Foo..."
    assert ready(bus.address)
    assert "the guest says X_SYSTEMD_HOSTNAME=web" in process.messages
    say(socket, b"X_SYSTEMD_SHUTDOWN=poweroff\nEXIT_STATUS=0\nSTATUS=Shutting down")
    manager.wait_for("STATUS", "guest: goes down: Shutting down")
    process.send(signal.SIGTERM)
    manager.wait_for("STOPPING", "1")
    assert process.wait() == 0


@pytest.mark.parametrize(("said", "status"), [(b"EXIT_STATUS=3", 3), (b"EXIT_STATUS=0", 0), (b"STATUS=bye", 0)])
def test_a_guest_that_powers_itself_off_ends_the_process_with_its_exit_status(
    start: Start, manager: Manager, bus: PrivateBus, socket: Path, said: bytes, status: int
) -> None:
    process = start("--bus", bus.address)
    manager.wait_for("STATUS", "waits for the guest")
    say(socket, b"READY=1")
    manager.wait_for("READY", "1")
    say(socket, said + b"\nX_SYSTEMD_SHUTDOWN=poweroff")
    process.wait_for("the guest goes down")

    async def press() -> None:
        async with client(bus.address) as caller:
            await caller.call("demo", "PowerButton")

    asyncio.run(press())
    assert process.wait() == status
    last = [message["STATUS"] for message in manager.rest() if "STATUS" in message][-1]
    if status:
        assert last.startswith(f"the guest powered off with exit status {status}; the unit starts it anew")
    else:
        assert last == "the guest powered off"


def test_a_guest_that_is_never_ready_is_powered_off_and_the_start_has_failed(start: Start, manager: Manager) -> None:
    process = start("--bus", "none", service="ready_timeout = 1")
    manager.wait_for("STOPPING", "1")
    assert process.wait() == os.EX_TEMPFAIL
    assert "the guest has not said READY=1 within 1 second, as service.ready_timeout allows it; the VM ends" in process.messages
    assert "VM shut down (poweroff)" in process.messages
    messages = manager.messages + manager.rest()
    assert [message for message in messages if "READY" in message] == []
    assert messages[-1]["STATUS"].startswith("the guest has not said READY=1 within 1 second; the unit starts it anew")


def test_a_guest_that_is_done_before_it_was_ready_never_was(start: Start, manager: Manager, bus: PrivateBus) -> None:
    process = start("--bus", bus.address)
    process.wait_for("D-Bus name acquired")

    async def press() -> None:
        async with client(bus.address) as caller:
            await caller.call("demo", "PowerButton")

    asyncio.run(press())
    assert process.wait() == 0
    assert [message for message in manager.rest() if "READY" in message] == []


def test_a_stop_does_not_wait_for_readiness(start: Start, manager: Manager, bus: PrivateBus) -> None:
    process = start("--bus", bus.address)
    manager.wait_for("STATUS", "waits for the guest")
    process.send(signal.SIGTERM)
    assert process.wait() == 0
    assert [message for message in manager.rest() if "READY" in message] == []
