"""A stop at every stage of a start, by a signal that the process sends itself there; a reboot; a clock that jumps."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest
from support.bus_client import client
from support.private_bus import PrivateBus
from support.process import SIM_CONFIG, Manager, VmProcess

# What sitecustomize does: before or after the named function of the process it sends the signal.
SEAM = """\
import os, signal
from {module} import {owner} as owner
former = owner.{function}
def {function}(*arguments, **options):
    if {before}: os.kill(os.getpid(), signal.SIGTERM)
    result = former(*arguments, **options)
    if not {before}: os.kill(os.getpid(), signal.SIGTERM)
    return result
owner.{function} = {function}
"""

# Where: module, owner, function, before it or after. The rest of a stage's line is whether the guest is asked.
STAGES = {
    "before the configuration": ("vmservice.config", "load", "load_config", True, False),
    "after the configuration": ("vmservice.config", "load", "load_config", False, False),
    "while the machine is built": ("vmservice.vm.sim", "SimMachine", "__init__", True, False),
    "as the guest begins": ("vmservice.vm.sim", "SimMachine", "start", False, False),
    "before the event loop": ("vmservice.service.loop", "Service", "__init__", True, True),
    "before the bus": ("vmservice.service.loop", "Service", "_join_bus", True, True),
    "just before READY": ("vmservice.service.loop", "Service", "_on_bus", True, True),
    "just after READY": ("vmservice.service.loop", "Service", "_become_ready", False, True),
}

# A clock that is a day on, or a day back, every other time that it is read.
CLOCK = """\
import time
true, reads = time.time, [0]
def jumping():
    reads[0] += 1
    return true() + (86400 if reads[0] % 2 else -86400)
time.time = jumping
time.time_ns = lambda: int(jumping() * 1e9)
"""


def with_seam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.parametrize("stage", STAGES)
def test_sigterm_at(
    stage: str, bus: PrivateBus, config: Path, manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends well, at once or with the guest asked; nothing is forced, and READY=1 does not come after STOPPING=1."""
    module, owner, function, before, asked = STAGES[stage]
    with_seam(tmp_path, monkeypatch, SEAM.format(module=module, owner=owner, function=function, before=before))
    process = VmProcess(config, "--sim", "--bus", bus.address, manager=manager)
    try:
        manager.wait_for("STOPPING", "1")
        assert process.wait() == 0
        assert ("asked the guest to power off" in process.messages) == asked
        assert ("told to stop before the guest had begun" in process.messages) == (not asked)
        assert "forced" not in process.messages
        assert "Traceback" not in process.messages
        later = manager.rest()
        assert all("READY" not in message for message in later), later
    finally:
        process.close()


def test_sigterm_while_the_vm_reboots(
    bus: PrivateBus, config: Path, manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal waits until the new machine runs, whose guest is then asked."""
    seam = SEAM.format(module="vmservice.vm.vm", owner="Vm", function="_start_anew", before=True)
    with_seam(tmp_path, monkeypatch, seam)
    process = VmProcess(config, "--sim", "--bus", bus.address, manager=manager)
    try:
        manager.wait_for("READY", "1")

        async def reboot() -> None:
            async with client(bus.address) as caller:
                await caller.call("demo", "Reboot")

        asyncio.run(reboot())
        assert process.wait() == 0
        assert "the guest was reset: " in process.messages
        assert "VM shut down (poweroff)" in process.messages
        assert "forced" not in process.messages
    finally:
        process.close()


# The guest resets before the task that presses its button has begun.
RESET_AT_STOP = """\
from vmservice.service.stop import GracefulStop
from vmservice.vm.events import EventKind, GuestEvent
former = GracefulStop.start
def start(self):
    former(self)
    self._vm.on_guest_event(GuestEvent(self._vm._holder.machine, EventKind.RESET))
GracefulStop.start = start
"""


def test_a_guest_that_resets_as_it_is_to_be_asked_is_not_asked(
    bus: PrivateBus, config: Path, manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_seam(tmp_path, monkeypatch, RESET_AT_STOP)
    process = VmProcess(config, "--sim", "--bus", bus.address, manager=manager)
    try:
        manager.wait_for("READY", "1")
        process.send(signal.SIGTERM)
        assert process.wait() == 0
        assert "VM shut down (reset)" in process.messages
        assert "power button" not in process.messages
    finally:
        process.close()


def test_a_manager_that_never_reads(bus: PrivateBus, config: Path, manager: Manager) -> None:
    """Its socket is full of others' messages before the VM starts: one warning, and the VM runs and stops all the same."""
    manager.fill()
    process = VmProcess(config, "--sim", "--bus", bus.address, manager=manager)
    try:
        process.wait_for("D-Bus name acquired")
        process.send(signal.SIGTERM)
        assert process.wait() == 0
        assert process.messages.count("cannot be told") == 1
        assert "VM shut down (poweroff)" in process.messages
    finally:
        process.close()


def test_a_clock_that_jumps(
    bus: PrivateBus, config: Path, manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No deadline of ours is by the wall clock: the patience for a deaf guest is as long as it says."""
    config.write_text(f"{SIM_CONFIG}[service]\nshutdown_timeout = 1\n")
    deaf = "from vmservice.vm.sim import SimMachine\nSimMachine.press_power_button = lambda self: None\n"
    with_seam(tmp_path, monkeypatch, CLOCK + deaf)
    process = VmProcess(config, "--sim", "--bus", bus.address, manager=manager)
    try:
        manager.wait_for("READY", "1")
        begin = time.monotonic()
        process.send(signal.SIGTERM)
        assert process.wait() == 0
        assert 1 <= time.monotonic() - begin < 60
        assert "the guest did not power off within 1 second" in process.messages
    finally:
        process.close()
