"""One command for several VMs: all are worked on, each error names its VM, and nobody waits for another."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from support.bus_client import Served, served_vm
from support.fake_systemd import RUNNING, systemd
from support.private_bus import OPEN_POLICY, PrivateBus

from vmservice.cli import main
from vmservice.client import bus as client_bus
from vmservice.errors import Busy

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def system_bus(bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bus of the test is the system bus of the commands."""
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)


async def run(words: str) -> int:
    """The command in a thread, so that the VMs of this test's event loop can answer it."""
    return await asyncio.to_thread(main, words.split())


@asynccontextmanager
async def running(bus: PrivateBus, *names: str) -> AsyncIterator[list[Served]]:
    async with AsyncExitStack() as stack:
        served = [await stack.enter_async_context(served_vm(bus.address, name)) for name in names]
        for one in served:
            one.vm.boot()
        yield served


def deafen(served: Served) -> None:
    """The guest does not heed its power button."""
    assert served.joined is not None
    served.joined._object._verbs["PowerButton"] = lambda: None


def test_all_are_worked_on_though_some_fail(bus: PrivateBus, capsys: Output) -> None:
    async def check() -> None:
        async with running(bus, "a", "b", "web-1") as vms:
            assert await run("pause a b web-1") == 0
            vms[1].vm.resume()
            # Asked twice is asked once; the status is that of the first that failed, in the order of the names.
            assert await run("pause nobody b a b") == 69
            assert [one.vm.state for one in vms] == ["paused"] * 3
            said = capsys.readouterr()
            assert said.out == ""
            assert sorted(said.err.splitlines()) == [
                "vmservice: a is already paused",
                "vmservice: the VM nobody does not exist: it does not run, and there is no /etc/vmservice/nobody.toml",
            ]
            assert await run("pause a nobody") == 1
            assert await run("poweroff --force a b web-1") == 0
            assert [one.vm.last_exit for one in vms] == ["shutdown"] * 3

    asyncio.run(check())


def test_no_more_is_asked_at_a_time_than_the_bus_allows(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    """Of each VM's unit nine things are asked; the answers that the bus has no room for were errors, and units not there."""
    names = [f"vm{number}" for number in range(20)]
    assert client_bus.CALLS_AT_A_TIME < 128
    monkeypatch.setattr(client_bus, "CALLS_AT_A_TIME", 8)

    async def check(address: str) -> None:
        async with systemd(address, dict.fromkeys(names, RUNNING)):
            assert await run(f"status --json {' '.join(names)}") == 69
            found = json.loads(capsys.readouterr().out)
            assert [(vm["name"], (vm["unit"] or {}).get("active_state")) for vm in found] == [
                (name, "active") for name in names
            ]

    with PrivateBus(f'{OPEN_POLICY}<limit name="max_replies_per_connection">8</limit>') as bus:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)
        asyncio.run(check(bus.address))


def test_poweroff_waits_for_all_within_one_timeout(bus: PrivateBus, capsys: Output) -> None:
    """Were they powered off one after the other, the last would never be asked: the first waits for a minute."""

    async def check() -> None:
        async with running(bus, "deaf", "a", "b") as (deaf, *others):
            deafen(deaf)
            command = asyncio.ensure_future(run("poweroff --timeout 60 deaf a b"))
            async with asyncio.timeout(30):
                while {one.vm.state for one in others} != {"shutdown"}:
                    await asyncio.sleep(0.01)
            assert deaf.vm.state == "running"
            assert not command.done()
            deaf.vm.shutdown()
            assert await command == 0
        assert capsys.readouterr() == ("", "")

    asyncio.run(check())


def test_who_is_late_is_named(bus: PrivateBus, capsys: Output) -> None:
    async def check() -> None:
        async with running(bus, "deaf", "deafer") as vms:
            deafen(vms[0])
            deafen(vms[1])
            assert await run("reboot --timeout 0.5 deaf deafer") == 75
            assert [one.vm.state for one in vms] == ["running"] * 2
            said = sorted(capsys.readouterr().err.splitlines())
            assert [line.partition(" did not reach")[0] for line in said] == [
                "vmservice: the VM deaf",
                "vmservice: the VM deafer",
            ]
            assert await run("wait deafer deaf running --timeout 30") == 0
            vms[0].vm.pause()
            assert await run("wait deafer deaf paused --timeout 0.5") == 75
            assert "the VM deafer did not reach state paused" in capsys.readouterr().err

    asyncio.run(check())


def test_a_reboot_by_systemd_holds_up_nobody(bus: PrivateBus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`slow` has powered off and ended; the start of its unit lasts until the other one runs again."""
    fifo = tmp_path / "go"
    os.mkfifo(fifo)
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(f"#!/bin/sh\nread line < {fifo}\nexit 3\n")
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    units = {"slow": {**RUNNING, "MainPID": os.getpid()}}

    async def check() -> None:
        async with systemd(bus.address, units), running(bus, "slow", "a") as (slow, other):
            assert slow.joined is not None
            slow.joined._object._verbs["Boot"] = refuse
            leaving = asyncio.ensure_future(leave(slow))
            command = asyncio.ensure_future(run("reboot --timeout 30 slow a"))
            await leaving
            async with asyncio.timeout(30):
                while (other.vm.state, other.vm.last_exit) != ("running", "poweroff"):
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(fifo.write_text, "go\n")
                assert await command == 71

    def refuse() -> None:
        raise Busy("the process is about to end")

    async def leave(served: Served) -> None:
        """Its process ends behind the power-off, as far as the bus can tell."""
        async with asyncio.timeout(30):
            while served.vm.state != "shutdown":
                await asyncio.sleep(0.01)
        assert served.joined is not None
        await served.joined.close()

    asyncio.run(check())


def test_a_mistyped_name_is_told_the_near_one(
    bus: PrivateBus, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the VMs that run, and of those that are configured, running or not."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", bus.address)
    (tmp_path / "vmservice").mkdir()
    (tmp_path / "vmservice/mailserver.toml").touch()
    systemctl = tmp_path / "systemctl"
    systemctl.write_text("#!/bin/sh\n")
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    async def check() -> None:
        async with running(bus, "webserver"):
            for words, meant in (
                ("pause websevrer", "webserver"),
                ("poweroff mailsevrer", "mailserver"),
                ("status mailsrver", "mailserver"),
                ("ssh root@webservr", "webserver"),
                ("pause xyzzy", ""),
                ("pause mailserver", ""),
            ):
                assert await run(f"--user {words}") == 69
                said = capfd.readouterr().err
                assert said.count("\n") == 1
                assert said.endswith(f"; did you mean {meant}?\n") == bool(meant), said
                assert ("does not exist" in said) == (words != "pause mailserver")
        assert await run("--user stop mailsrver mailserver") == 0
        assert capfd.readouterr().err == (
            "systemctl --user stop vm@mailsrver vm@mailserver\n"
            "vmservice: the VM mailsrver has no configuration; did you mean mailserver?\n"
        )
        assert await run("--user wait mailsrver running --timeout 0.3") == 75
        assert "waiting for it to start; did you mean mailserver?" in capfd.readouterr().err

    asyncio.run(check())


def test_the_status_of_several(bus: PrivateBus, capsys: Output) -> None:
    async def check() -> None:
        async with running(bus, "a", "b"):
            assert await run("status b nobody a") == 69
            said = capsys.readouterr()
            shown = said.out.splitlines()
            assert [line for line in shown if line in ("a", "b", "nobody")] == ["b", "a"]
            assert shown[shown.index("a") - 1] == ""
            assert said.err.startswith("vmservice: the VM nobody does not exist")
            assert said.err.count("\n") == 1
            assert await run("status --json b nobody a") == 69
            answers = json.loads(capsys.readouterr().out)
            assert [(answer["name"], answer["state"]) for answer in answers] == [
                ("b", "running"),
                ("nobody", None),
                ("a", "running"),
            ]
            assert [answer["error"] is None for answer in answers] == [True, False, True]
            assert await run("status --json b") == 0
            assert json.loads(capsys.readouterr().out)["name"] == "b"

    asyncio.run(check())
