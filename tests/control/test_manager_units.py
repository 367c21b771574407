"""org.vmservice.Manager1 and systemd, which the test plays: states of units, why one failed, a systemd that comes anew."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from dbus_next import Message
from support.bus_client import served_vm
from support.managed import desktop, managing, systemd
from support.private_bus import PrivateBus

UNIT = "vm@demo.service"


def test_the_unit_of_a_vm(bus: PrivateBus, tmp_path: Path) -> None:
    (tmp_path / "demo.toml").touch()

    async def check() -> None:
        async with systemd(bus.address) as mock, managing(bus.address, tmp_path), desktop(bus.address) as seen:
            assert seen.get("demo", "ActiveState") == "inactive"
            assert seen.get("demo", "SubState") == "dead"
            mock.set(UNIT, "activating", "start")
            await seen.until(lambda: seen.get("demo", "SubState") == "start")
            async with served_vm(bus.address, "demo"):
                mock.set(UNIT, "active", "running")
                await seen.until(lambda: seen.get("demo", "ActiveState") == "active" and seen.get("demo", "State") == "created")
                mock.set(UNIT, "deactivating", "stop-sigterm")
                await seen.until(lambda: seen.get("demo", "SubState") == "stop-sigterm")
            mock.unload(UNIT)
            await seen.until(lambda: seen.get("demo", "ActiveState") == "inactive" and seen.get("demo", "BusName") == "")
            assert seen.get("demo", "SubState") == "dead"
            assert len(mock.service.calls) < 20, "a look at a unit leads to no other"

    asyncio.run(check())


def test_why_a_unit_has_failed(bus: PrivateBus, tmp_path: Path) -> None:
    (tmp_path / "demo.toml").touch()
    reasons = {
        ("no /dev/kvm\x1b here", "exit-code", 69): "no /dev/kvm? here (exit status 69)",
        ("", "exit-code", 203): "systemd could not set its process up (exit status 203)",
        ("", "signal", 9): "SIGKILL ended it",
        ("", "timeout", 0): "it did not start or stop in time",
        ("", "exec-condition", 0): "exec-condition",
    }

    async def check() -> None:
        async with systemd(bus.address) as mock, managing(bus.address, tmp_path), desktop(bus.address) as seen:
            for said, reason in reasons.items():
                mock.set(UNIT, "failed", "failed", said)
                await seen.until(lambda reason=reason: seen.get("demo", "Reason") == reason)  # type: ignore[misc]
                assert seen.get("demo", "ActiveState") == "failed"
                mock.set(UNIT, "active", "running", ("running; 1 vCPU", "success", 0))
                await seen.until(lambda: seen.get("demo", "ActiveState") == "active")
                assert seen.get("demo", "Reason") == ""
            mock.set(UNIT, "activating", "auto-restart", ("the guest panicked", "exit-code", 134))
            await seen.until(lambda: seen.get("demo", "Reason") == "the guest panicked (exit status 134)")

    asyncio.run(check())


def test_a_failed_unit_without_a_file_is_there_until_it_is_reset(bus: PrivateBus, tmp_path: Path) -> None:
    async def check() -> None:
        async with systemd(bus.address) as mock:
            mock.units = {"vm@old.service": ("loaded", "failed", "failed"), "vm@seen.service": ("loaded", "inactive", "dead")}
            mock.said = {"vm@old.service": ("gone", "exit-code", 1)}
            async with managing(bus.address, tmp_path), desktop(bus.address) as seen:
                assert seen.names() == {"old"}, "a unit that somebody has looked at is no VM"
                assert seen.get("old", "Reason") == "exit status 1"
                mock.unload("vm@old.service")
                await seen.until(lambda: seen.names() == set())
                mock.set("vm@-.service", "active", "running")
                mock.set("vm-disk@old:root.service", "active", "running")
                mock.set("vm@1st.service", "active", "running")
                await seen.until(lambda: seen.names() == {"1st"})

    asyncio.run(check())


def test_systemd_reads_its_units_anew(bus: PrivateBus, tmp_path: Path) -> None:
    async def check() -> None:
        async with systemd(bus.address) as mock, managing(bus.address, tmp_path), desktop(bus.address) as seen:
            mock.units[UNIT] = ("loaded", "active", "running")
            mock.reloaded()
            await seen.until(lambda: seen.get("demo", "ActiveState") == "active")

    asyncio.run(check())


def test_systemd_comes_anew(bus: PrivateBus, tmp_path: Path) -> None:
    """daemon-reexec: the name goes and comes, the units stay, and those who want to hear of them have to say so again."""
    (tmp_path / "demo.toml").touch()

    async def check() -> None:
        async with managing(bus.address, tmp_path) as made, desktop(bus.address) as seen:
            assert seen.get("demo", "ActiveState") == ""
            async with systemd(bus.address) as mock:
                await seen.until(lambda: seen.get("demo", "ActiveState") == "inactive")
                mock.set(UNIT, "active", "running")
                mock.set("vm@other.service", "active", "running")
                await seen.until(lambda: seen.names() == {"demo", "other"} and seen.get("demo", "ActiveState") == "active")
            heard = len(seen.heard)
            async with systemd(bus.address) as mock:
                mock.units[UNIT] = ("loaded", "active", "running")
                await mock.service.asked("Subscribe")
                await seen.until(lambda: seen.names() == {"demo"})
                assert seen.heard[heard:] == [("InterfacesRemoved", "other")], "what has not changed is not told"
                mock.set(UNIT, "reloading", "reload")
                await seen.until(lambda: seen.get("demo", "ActiveState") == "reloading")
            assert len(made.log) == 1, made.log

    asyncio.run(check())


def test_a_systemd_that_refuses_is_asked_again(bus: PrivateBus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmservice.manager.looks.FIRST_RETRY_SEC", 0.05)
    monkeypatch.setattr("vmservice.manager.manager.LOOK_PATIENCE_SEC", 0.2)

    async def check() -> None:
        async with systemd(bus.address) as mock:
            answer = mock.service.answer
            mock.service.answer = lambda call: Message.new_error(call, "org.freedesktop.DBus.Error.LimitsExceeded", "not now")
            mock.units[UNIT] = ("loaded", "active", "running")
            async with managing(bus.address, tmp_path) as made, desktop(bus.address) as seen:
                await mock.service.asked("Subscribe", 3)
                mock.service.answer = answer
                await seen.until(lambda: seen.get("demo", "ActiveState") == "active")
                assert made.log == ["systemd does not say how units are: not now"]

    asyncio.run(check())
