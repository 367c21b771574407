"""The whole process, with a simulated machine: what it tells the service manager, what it makes of signals, how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dbus_next import Variant
from support.bus_client import CallFailed, client
from support.private_bus import PrivateBus
from support.process import SIM_CONFIG, Manager, VmProcess

Start = Callable[..., VmProcess]


@pytest.fixture
def start(config: Path, manager: Manager) -> Iterator[Start]:
    processes: list[VmProcess] = []

    def start(*options: str, service: str = "", told: bool = True) -> VmProcess:
        if service:
            config.write_text(f"{SIM_CONFIG}[service]\n{service}\n")
        processes.append(VmProcess(config, "--sim", *options, manager=manager if told else None))
        return processes[-1]

    yield start
    for process in processes:
        process.close()


def call(address: str, member: str) -> None:
    async def ask() -> None:
        async with client(address) as caller:
            await caller.call("demo", member)

    asyncio.run(ask())


def state(address: str) -> str:
    async def ask() -> str:
        async with client(address) as caller:
            return str(await caller.get("demo", "State"))

    return asyncio.run(ask())


def test_ready_means_running_and_on_the_bus(start: Start, manager: Manager, bus: PrivateBus) -> None:
    process = start("--bus", bus.address)
    message = manager.wait_for("READY", "1")
    assert message["STATUS"] == "running; 1 vCPU, 512 MiB"
    assert state(bus.address) == "running"
    assert process.running()


def test_the_status_follows_the_state(start: Start, manager: Manager, bus: PrivateBus) -> None:
    start("--bus", bus.address)
    manager.wait_for("READY", "1")
    call(bus.address, "Pause")
    manager.wait_for("STATUS", "paused; 1 vCPU")
    call(bus.address, "Shutdown")
    manager.wait_for("STATUS", "shutdown; 1 vCPU, 512 MiB; last exit: shutdown; Boot starts it again")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGRTMIN + 4], ids=["TERM", "RTMIN+4"])
@pytest.mark.parametrize("pause", [False, True], ids=["running", "paused"])
def test_a_stop_asks_the_guest(start: Start, manager: Manager, bus: PrivateBus, number: int, pause: bool) -> None:
    process = start("--bus", bus.address)
    manager.wait_for("READY", "1")
    if pause:
        call(bus.address, "Pause")
    process.send(number)
    manager.wait_for("STOPPING", "1")
    manager.wait_for("EXTEND_TIMEOUT_USEC")
    assert process.wait() == 0
    assert "asked the guest to power off; it has 120 seconds" in process.messages
    assert "VM shut down (poweroff)" in process.messages
    assert "forced" not in process.messages


def test_the_devices_are_those_of_the_configuration(start: Start, manager: Manager, bus: PrivateBus, config: Path) -> None:
    config.write_text(
        SIM_CONFIG + '[serial]\nmode = "file"\npath = "log"\n[console]\nmode = "null"\n[[port]]\nname = "a"\nmode = "null"\n'
    )
    process = start("--bus", bus.address)
    manager.wait_for("READY", "1")

    async def look() -> None:
        async with client(bus.address) as caller:
            assert await caller.get("demo", "Devices") == [
                ["console", "serial", {"mode": Variant("s", "file"), "path": Variant("s", str(config.with_name("log")))}],
                ["console", "hvc", {"mode": Variant("s", "null")}],
                ["port", "a", {"mode": Variant("s", "null"), "console": Variant("b", False)}],
            ]
            assert list(await caller.get("demo", "Stats")) == ["sim.heartbeats"]

    asyncio.run(look())
    process.send(signal.SIGTERM)
    assert process.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_without_a_manager_what_a_terminal_sends_is_a_stop(start: Start, number: int) -> None:
    process = start("--bus", "none", told=False)
    process.wait_for("VM started")
    process.send(number)
    assert process.wait() == 0
    assert "asked the guest to power off; it has 120 seconds" in process.messages


@pytest.mark.parametrize("pause", [False, True], ids=["running", "paused"])
def test_sigint_from_a_manager_is_a_graceful_reboot(start: Start, manager: Manager, bus: PrivateBus, pause: bool) -> None:
    """machinectl reboot: the guest is asked, and started again in the same process."""
    process = start("--bus", bus.address)
    manager.wait_for("READY", "1")
    if pause:
        call(bus.address, "Pause")
    seen: list[str] = []

    async def watch() -> None:
        async with client(bus.address) as caller:
            await caller.watch()
            process.send(signal.SIGINT)
            async with asyncio.timeout(60):
                while seen[-2:] != ["shutdown", "running"]:
                    await asyncio.sleep(0.02)
                    changes = [message.body[1] for message in caller.signals if message.member == "PropertiesChanged"]
                    seen[:] = [str(change["State"].value) for change in changes if "State" in change]

    asyncio.run(watch())
    assert seen == (["running"] if pause else []) + ["shutdown", "running"]
    manager.wait_for("STATUS", "running; 1 vCPU, 512 MiB")
    assert process.running()
    assert process.messages.count("VM started\n") == 2
    assert "asked the guest to power off, to be started again; it has 120 seconds" in process.messages
    assert all("STOPPING" not in message for message in manager.messages)
    call(bus.address, "Pause")
    call(bus.address, "Resume")
    process.send(signal.SIGTERM)
    assert process.wait() == 0


DEAF = "from vmservice.vm.sim import SimMachine\nSimMachine.press_power_button = lambda self: None\n"


@pytest.mark.parametrize("patience", [1, 100])
def test_a_guest_that_does_not_go_down_for_a_reboot_is_forced(
    start: Start, manager: Manager, bus: PrivateBus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int
) -> None:
    (tmp_path / "sitecustomize.py").write_text(DEAF)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = start("--bus", bus.address, service=f"shutdown_timeout = {patience}")
    manager.wait_for("READY", "1")
    process.send(signal.SIGINT)
    manager.wait_for("STATUS", "rebooting: waiting for the guest to power off")
    if patience > 1:
        process.send(signal.SIGINT)
    manager.wait_for("STATUS", "running; 1 vCPU, 512 MiB")
    assert process.messages.count("VM started\n") == 2
    assert process.messages.count("warning: forced the VM to stop") == 1
    assert state(bus.address) == "running"


@pytest.mark.parametrize("end", ["SIGTERM", "Shutdown"])
def test_a_reboot_may_become_a_stop(
    start: Start, manager: Manager, bus: PrivateBus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(DEAF)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = start("--bus", bus.address, service="shutdown_timeout = 1")
    manager.wait_for("READY", "1")
    process.send(signal.SIGINT)
    manager.wait_for("STATUS", "rebooting")
    if end == "SIGTERM":
        process.send(signal.SIGTERM)
        assert process.wait() == 0
    else:
        call(bus.address, "Shutdown")
        manager.wait_for("STATUS", "last exit: shutdown; Boot starts it again")
        call(bus.address, "Boot")
    assert process.messages.count("VM started\n") == (1 if end == "SIGTERM" else 2)


@pytest.mark.parametrize(
    ("service", "status", "code"),
    [("", "the guest powered off", 0), ('on_poweroff = "stay"', "shutdown; 1 vCPU, 512 MiB; last exit: poweroff; Boot", None)],
    ids=["exit", "stay"],
)
def test_the_last_status_is_the_reason(
    start: Start, manager: Manager, bus: PrivateBus, service: str, status: str, code: int | None
) -> None:
    process = start("--bus", bus.address, service=service)
    manager.wait_for("READY", "1")
    call(bus.address, "PowerButton")
    if code is None:
        manager.wait_for("STATUS", status)
        return
    assert process.wait() == code
    told = [message["STATUS"] for message in manager.rest() if "STATUS" in message]
    assert told[-1] == status
    assert not any("Boot starts it again" in text for text in told)


def test_a_guest_that_takes_too_long_is_forced(start: Start, manager: Manager, bus: PrivateBus) -> None:
    process = start("--bus", bus.address, service="shutdown_timeout = 0")
    manager.wait_for("READY", "1")
    process.send(signal.SIGTERM)
    assert process.wait() == 0
    assert [message["STATUS"] for message in manager.rest() if "STATUS" in message][-1] == (
        "it was forced to stop: shutdown_timeout is 0"
    )
    assert "warning: forced the VM to stop: shutdown_timeout is 0" in process.messages


def test_a_guest_that_is_done_before_the_bus_name_is_owned(
    start: Start, manager: Manager, bus: PrivateBus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """READY=1 all the same, and then STOPPING=1: to systemd an end without READY=1 is a failure of the protocol."""
    (tmp_path / "sitecustomize.py").write_text(
        "from vmservice.vm.sim import SimMachine\nformer = SimMachine.start\n"
        "def start(self):\n    former(self)\n    self.press_power_button()\nSimMachine.start = start\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = start("--bus", bus.address)
    assert process.wait() == 0
    told = manager.rest()
    turns = [
        next(name for name in ("READY", "STOPPING") if name in message)
        for message in told
        if {"READY", "STOPPING"} & {*message}
    ]
    assert turns == ["READY", "STOPPING"]
    assert [message["STATUS"] for message in told if "STATUS" in message][-1] == "the guest powered off"


@pytest.mark.parametrize("options", [("--no-boot",), ()], ids=["created", "shutdown"])
def test_a_stop_without_a_guest_is_immediate(start: Start, manager: Manager, bus: PrivateBus, options: tuple[str, ...]) -> None:
    process = start("--bus", bus.address, *options)
    manager.wait_for("READY", "1")
    if not options:
        call(bus.address, "Shutdown")
    process.send(signal.SIGTERM)
    assert process.wait() == 0


def test_a_second_signal_forces_at_once(start: Start, manager: Manager, bus: PrivateBus) -> None:
    process = start("--bus", bus.address)
    manager.wait_for("READY", "1")
    process.send(signal.SIGTERM)
    manager.wait_for("STOPPING", "1")
    process.send(signal.SIGTERM)
    assert process.wait() == 0
    assert "warning: forced the VM to stop: it was asked for a second time" in process.messages


@pytest.mark.parametrize(("service", "ends"), [("", True), ('on_poweroff = "stay"', False)], ids=["exit", "stay"])
def test_the_guest_powers_off(start: Start, manager: Manager, bus: PrivateBus, service: str, ends: bool) -> None:
    process = start("--bus", bus.address, service=service)
    manager.wait_for("READY", "1")
    call(bus.address, "PowerButton")
    if ends:
        assert process.wait() == 0
    else:
        manager.wait_for("STATUS", "last exit: poweroff")
        call(bus.address, "Boot")
        manager.wait_for("STATUS", "running")


def test_shutdown_over_the_bus_answers_and_the_process_stays(start: Start, manager: Manager, bus: PrivateBus) -> None:
    process = start("--bus", bus.address)
    manager.wait_for("READY", "1")
    call(bus.address, "Shutdown")
    assert state(bus.address) == "shutdown"
    assert process.running()


@pytest.mark.parametrize("bus_option", ["none", "the bus"])
def test_a_vm_runs_once_whoever_starts_it(start: Start, manager: Manager, bus: PrivateBus, bus_option: str) -> None:
    """The second one ends before it has built anything, with or without a bus."""
    first = start("--bus", bus.address)
    manager.wait_for("READY", "1")
    second = start("--bus", "none" if bus_option == "none" else bus.address, told=False)
    assert second.wait() == 69
    assert f"the VM demo runs already, as process {first.pid}" in second.messages
    assert "VM started\n" not in second.messages
    assert state(bus.address) == "running"
    first.send(signal.SIGKILL)
    first.wait()
    third = start("--bus", "none", told=False)
    third.wait_for("VM started")


def test_a_name_on_the_bus_that_another_has(
    start: Start, manager: Manager, bus: PrivateBus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Locks of two mount namespaces are not the same; the bus still is."""
    first = start("--bus", bus.address)
    manager.wait_for("READY", "1")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "elsewhere"))
    second = start("--bus", bus.address, told=False)
    assert second.wait() == 69
    assert f"the bus name org.vmservice.VM1.demo is already owned by process {first.pid}" in second.messages
    assert state(bus.address) == "running"


def test_no_bus_at_all(start: Start, manager: Manager, tmp_path: Path) -> None:
    """The VM runs, is called ready after a while, and says why nobody can reach it."""
    process = start("--bus", f"unix:path={tmp_path}/nothing")
    manager.wait_for("READY", "1")
    assert "the VM keeps running and will take its name again" in process.messages
    process.send(signal.SIGTERM)
    assert process.wait() == 0


def test_the_bus_goes_and_comes_back(start: Start, manager: Manager, own_bus: PrivateBus) -> None:
    own_bus.start()
    process = start("--bus", own_bus.address)
    manager.wait_for("READY", "1")
    call(own_bus.address, "Pause")
    own_bus.kill()
    own_bus.start()

    async def wait_for_name() -> None:
        async with client(own_bus.address) as caller, asyncio.timeout(60):
            while not await caller.has_owner("demo"):
                await asyncio.sleep(0.05)

    asyncio.run(wait_for_name())
    assert state(own_bus.address) == "paused"
    assert process.running()


def reload(process: VmProcess, manager: Manager) -> str:
    """Reload; the status afterwards."""
    process.send(signal.SIGHUP)
    told = manager.wait_for("RELOADING", "1")
    assert abs(time.monotonic_ns() // 1000 - int(told["MONOTONIC_USEC"])) < 20_000_000
    return manager.wait_for("READY", "1")["STATUS"]


def vcpus(address: str) -> int:
    async def ask() -> int:
        async with client(address) as caller:
            return int(await caller.get("demo", "VCPUs"))

    return asyncio.run(ask())


def test_a_reload_applies_what_a_running_vm_can_follow(start: Start, manager: Manager, bus: PrivateBus, config: Path) -> None:
    process = start("--bus", bus.address)
    manager.wait_for("READY", "1")
    changed = SIM_CONFIG.replace("boot = 1", "boot = 3")
    config.write_text(f'{changed}[service]\nshutdown_timeout = 0\non_poweroff = "stay"\n')
    assert reload(process, manager) == "running; 3 vCPUs, 512 MiB"
    assert vcpus(bus.address) == 3
    call(bus.address, "PowerButton")
    manager.wait_for("STATUS", "last exit: poweroff")
    call(bus.address, "Boot")
    assert vcpus(bus.address) == 3
    process.send(signal.SIGTERM)
    assert process.wait() == 0
    assert "forced the VM to stop: shutdown_timeout is 0" in process.messages
    assert "in force when the VM is restarted" not in process.messages


def test_a_reload_leaves_vcpus_alone_that_were_given_over_the_bus(
    start: Start, manager: Manager, bus: PrivateBus, config: Path
) -> None:
    process = start("--bus", bus.address)
    manager.wait_for("READY", "1")

    async def resize() -> None:
        async with client(bus.address) as caller:
            await caller.call("demo", "Resize", "y", [2])

    asyncio.run(resize())
    assert reload(process, manager) == "running; 2 vCPUs, 512 MiB"
    assert vcpus(bus.address) == 2
    assert "the configuration is reloaded" in process.messages


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (SIM_CONFIG.replace("boot = 1", "boot = 2") + "[service]\non_reset = 3\n", "service.on_reset"),
        (SIM_CONFIG.replace("boot = 1", "boot = 2") + "[nonsense]\n", "nonsense"),
        (SIM_CONFIG.replace("boot = 1\nmax = 4", "boot = 8\nmax = 8") + "[service]\nshutdown_timeout = 0\n", "cpus.boot is 8"),
        (SIM_CONFIG.replace("boot = 1", "boot = 2").replace("nowhere", "elsewhere"), "/elsewhere/vmlinuz"),
        ("[kernel\n", "TOML"),
    ],
    ids=["a wrong value", "an unknown section", "more vCPUs than can be", "no kernel", "no TOML"],
)
def test_a_reload_of_a_wrong_file_changes_nothing(
    start: Start, manager: Manager, bus: PrivateBus, config: Path, text: str, says: str
) -> None:
    process = start("--bus", bus.address)
    manager.wait_for("READY", "1")
    config.write_text(text)
    status = reload(process, manager)
    assert status.startswith("not reloaded, and nothing has changed: ")
    assert says in status
    assert process.messages.count("error: not reloaded, and nothing has changed") == 1
    assert vcpus(bus.address) == 1
    process.send(signal.SIGTERM)
    assert process.wait() == 0
    assert "it has 120 seconds" in process.messages


def test_a_reload_opens_the_files_of_consoles_anew(start: Start, manager: Manager, bus: PrivateBus, config: Path) -> None:
    """When it is done, so is that: whoever has renamed one may pack it. A wrong configuration is no reason against it."""
    text = SIM_CONFIG + '[serial]\nmode = "file"\npath = "log"\n[console]\nmode = "pty"\nlog = "file"\nlog_path = "hvc.log"\n'
    config.write_text(text)
    process = start("--bus", bus.address)
    manager.wait_for("READY", "1")
    files = [config.with_name(name) for name in ("log", "hvc.log")]
    for suffix, more in ((".1", ""), (".2", "[service]\non_reset = 7\n")):
        for file in files:
            file.rename(file.with_name(file.name + suffix))
        config.write_text(text + more)
        process.send(signal.SIGHUP)
        status = manager.wait_for("READY", "1")["STATUS"]
        assert status.startswith("not reloaded, and nothing has changed: " if more else "running; ")
        assert [file.exists() for file in files] == [True, True]
    held = {os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd")}
    assert {str(file) for file in files} <= held
    assert not any(name.startswith(f"{file}.") for name in held for file in files)


def test_a_reload_of_a_paused_vm_gives_it_no_vcpus(start: Start, manager: Manager, bus: PrivateBus, config: Path) -> None:
    process = start("--bus", bus.address)
    manager.wait_for("READY", "1")
    call(bus.address, "Pause")
    manager.wait_for("STATUS", "paused")
    config.write_text(SIM_CONFIG.replace("boot = 1", "boot = 2") + '[service]\non_poweroff = "stay"\n')
    assert "is paused; only a running VM can be resized" in reload(process, manager)
    call(bus.address, "Resume")
    manager.wait_for("STATUS", "running")
    assert reload(process, manager) == "running; 2 vCPUs, 512 MiB"


def test_a_reload_says_what_waits_for_a_restart(start: Start, manager: Manager, bus: PrivateBus, config: Path) -> None:
    kernel = config.parent / "vmlinuz"
    kernel.write_bytes(b"Linux")
    process = start("--bus", bus.address)
    manager.wait_for("READY", "1")
    config.write_text(
        SIM_CONFIG.replace("/nowhere/vmlinuz", str(kernel)).replace("max = 4", "max = 8")
        + '[memory]\nsize = "64M"\n[serial]\nmode = "null"\n[rng]\nenabled = false\n'
    )
    assert reload(process, manager) == "running; 1 vCPU, 512 MiB"
    assert (
        f"different in {config}, and in force when the VM is restarted: [kernel], cpus.max, [memory], [serial], [rng]"
    ) in process.messages


def test_sigquit_writes_where_the_vcpus_are(start: Start, manager: Manager, bus: PrivateBus) -> None:
    process = start("--bus", bus.address)
    manager.wait_for("READY", "1")
    process.send(signal.SIGQUIT)
    process.wait_for("the vCPUs, asked for by SIGQUIT:")
    process.send(signal.SIGQUIT)
    call(bus.address, "Shutdown")
    assert state(bus.address) == "shutdown"
    process.send(signal.SIGQUIT)
    process.wait_for("there is no guest")
    process.send(signal.SIGTERM)
    assert process.wait() == 0


def test_a_manager_that_is_gone_does_not_matter(start: Start, manager: Manager, bus: PrivateBus) -> None:
    process = start("--bus", bus.address)
    manager.wait_for("READY", "1")
    manager.vanish()
    call(bus.address, "Pause")
    process.send(signal.SIGTERM)
    assert process.wait() == 0
    assert process.messages.count("cannot be told") == 1


def test_a_wrong_configuration_is_told_to_the_manager(start: Start, manager: Manager, config: Path) -> None:
    config.write_text("[kernel]\n")
    process = start("--bus", "none")
    message = manager.wait_for("STATUS")
    assert process.wait() == 78
    assert str(config) in message["STATUS"]


def test_a_malformed_bus_address(start: Start, manager: Manager) -> None:
    process = start("--bus", "elsewhere")
    assert process.wait() == 64
    assert "elsewhere" in process.messages
    assert "Traceback" not in process.messages


def test_signals_before_the_loop_are_not_lost(start: Start) -> None:
    """The first one comes while Python still imports: it ends the process by itself, or asks the guest; never nothing."""
    process = start("--bus", "none", told=False)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait() in (0, -signal.SIGTERM)


def test_a_bug_in_a_task_ends_the_vm_and_is_told_to_the_journal_only(
    start: Start, manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A console that breaks stands for any: sitecustomize is the seam that makes it break."""
    (tmp_path / "sitecustomize.py").write_text(
        "from vmservice.host.consoles import stream\n"
        "def fail(self): raise ValueError('a bug')\n"
        "stream.StreamConsole.move = fail\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = start("--bus", "none")
    assert process.wait() == 70
    assert "internal error: Traceback" in process.messages
    assert "ValueError: a bug" in process.messages


# What sitecustomize does: the guest cannot be stopped, as when a vCPU hangs.
STUCK = """\
from vmservice.errors import HostError
from vmservice.vm.sim import SimMachine
def close(self):
    raise HostError("vCPU 0 did not stop within 10 seconds")
SimMachine.close = close
"""
LOST = "the machine cannot be stopped, so the process ends: vCPU 0 did not stop within 10 seconds"


@pytest.mark.parametrize("way", ["forced", "the guest powers off"])
def test_a_machine_that_cannot_be_stopped_ends_the_process(
    start: Start, manager: Manager, bus: PrivateBus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """A Shutdown fails and changes nothing; what must end, ends with the process and one sentence."""
    (tmp_path / "sitecustomize.py").write_text(STUCK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = start("--bus", bus.address, service="shutdown_timeout = 0" if way == "forced" else "")
    manager.wait_for("READY", "1")
    for verb in ("Shutdown", "Reboot"):
        with pytest.raises(CallFailed, match=r"Error\.Failed: vCPU 0 did not stop within 10 seconds"):
            call(bus.address, verb)
    assert state(bus.address) == "running"
    if way == "forced":
        process.send(signal.SIGTERM)
    else:
        call(bus.address, "PowerButton")
    manager.wait_for("STATUS", LOST)
    assert process.wait() == 71
    assert process.messages.count(f"error: {LOST}") == 1
    assert "Traceback" not in process.messages


# What sitecustomize does: a process that has decided to end stays until it may go.
SLOW_TO_LEAVE = """\
import asyncio, os
from vmservice.service.loop import Service
leave = Service._leave
async def slowly(self, *arguments):
    while not os.path.exists(__file__ + ".leave"):
        await asyncio.sleep(0.01)
    await leave(self, *arguments)
Service._leave = slowly
"""


@pytest.mark.parametrize("verb", ["Boot", "Shutdown", "PowerButton", "Pause"])
def test_a_call_on_the_way_out_is_refused_with_the_reason(
    start: Start, manager: Manager, bus: PrivateBus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """A client that answers State = shutdown with Boot would lose its guest at once."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_TO_LEAVE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = start("--bus", bus.address)
    manager.wait_for("READY", "1")

    async def answer_at_once() -> CallFailed:
        async with client(bus.address) as caller, asyncio.timeout(60):
            await caller.watch()
            await caller.call("demo", "PowerButton")
            while not any(signal.body[1].get("State", Variant("s", "")).value == "shutdown" for signal in caller.signals):
                await asyncio.sleep(0.01)
            with pytest.raises(CallFailed) as refusal:
                await caller.call("demo", verb)
            (tmp_path / "sitecustomize.py.leave").touch()
            return refusal.value

    refusal = asyncio.run(answer_at_once())
    assert refusal.name == "org.vmservice.VM1.Error.Busy"
    assert refusal.text == f"{verb} is refused because the VM's process is about to end: the guest powered off"
    assert process.wait() == 0
