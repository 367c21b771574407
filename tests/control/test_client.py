"""The commands that ask VMs, on a private bus that stands for the system's: what they print, and the status they end with."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from dbus_next import Message, Variant
from dbus_next.constants import MessageFlag, MessageType
from support.bus_client import PROPERTIES, Client, client, served_vm
from support.fake_journal import FakeJournal
from support.fake_systemd import FAILED, NOT_LOADED, RUNNING, systemd
from support.private_bus import OPEN_POLICY, PrivateBus
from support.process import CHECKOUT, SIM_CONFIG, VmProcess, running_sim, vmservice

from vmservice.cli import main
from vmservice.client import bus as client_bus
from vmservice.client import usage, vms
from vmservice.config import names
from vmservice.control.names import INTERFACE, OBJECT_PATH, bus_name

ADDRESS = "DBUS_SYSTEM_BUS_ADDRESS"
DAEMON = {"destination": "org.freedesktop.DBus", "path": "/org/freedesktop/DBus", "interface": "org.freedesktop.DBus"}
TIMEOUT_SEC = 60.0

Answer = Callable[[Message], Message | None]
Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def system_bus(bus: PrivateBus, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The bus of the test is the system bus of the commands, and there is no session. Only demo has a configuration."""
    (tmp_path / "vmservice").mkdir()
    (tmp_path / "vmservice/demo.toml").write_text(SIM_CONFIG)
    monkeypatch.setattr(names, "SYSTEM_DIRECTORY", str(tmp_path / "vmservice"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    own: PrivateBus = request.getfixturevalue("own_bus") if "own_bus" in request.fixturenames else bus
    monkeypatch.setenv(ADDRESS, own.address)
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)


async def run(*arguments: str) -> int:
    """The command in a thread, so that the VMs of this test's event loop can answer it."""
    return await asyncio.to_thread(main, arguments)


@asynccontextmanager
async def impostor(address: str, name: str, answer: Answer) -> AsyncIterator[Client]:
    """Somebody with the bus name `name`, who answers calls with `answer`; None is no answer."""
    async with client(address) as peer:

        def handle(message: Message) -> Message | bool | None:
            return answer(message) or True if message.message_type is MessageType.METHOD_CALL else None

        peer.bus.add_message_handler(handle)
        await peer.bus.request_name(name)
        yield peer


def silent(_call: Message) -> None:
    """Never answers."""


# list


def test_list_without_a_vm(capsys: Output) -> None:
    assert asyncio.run(run("list")) == 0
    assert capsys.readouterr() == ("", "vmservice: no VM is running; 1 is configured (`vmservice list --all`)\n")
    assert asyncio.run(run("list", "--json")) == 0
    assert capsys.readouterr() == ("[]\n", "")


def test_list(bus: PrivateBus, capsys: Output) -> None:
    async def check() -> None:
        async with served_vm(bus.address, "web-1") as web, served_vm(bus.address, "9lives") as nine:
            web.vm.boot()
            web.vm.pause()
            nine.vm.boot()
            nine.vm.shutdown()
            assert await run("list") == 0
            said = capsys.readouterr()
            assert said.err == ""
            header, *lines = (line.split() for line in said.out.splitlines())
            assert header == ["NAME", "STATE", "VCPUS", "CPU", "MEMORY", "USED", "LAST-EXIT"]
            assert [(line[:3], line[4:6], line[-1]) for line in lines] == [
                (["9lives", "shutdown", "1/4"], ["64", "MiB"], "shutdown"),
                (["web-1", "paused", "1/4"], ["64", "MiB"], "-"),
            ]
            assert await run("list", "--json") == 0
            nine_said, web_said = json.loads(capsys.readouterr().out)
            assert (nine_said["name"], nine_said["state"], nine_said["last_exit"]) == ("9lives", "shutdown", "shutdown")
            # All are this process.
            assert web_said.pop("cpu_percent") >= 0
            assert web_said.pop("cpu_sec") > 0
            assert web_said.pop("memory_used") > 1 << 20
            assert web_said == {
                "name": "web-1",
                "bus_name": "org.vmservice.VM1.web_2d1",
                "condition": "paused",
                "state": "paused",
                "pid": os.getpid(),
                "unit": None,
                "reason": None,
                "vcpus": 1,
                "max_vcpus": 4,
                "memory": 64 << 20,
                "last_exit": "",
                "guest_ready": True,
                "devices": [{"kind": "console", "name": "serial", "details": {"mode": "null"}}],
                "error": None,
            }

    asyncio.run(check())


def test_a_vm_that_hangs_holds_up_no_other(bus: PrivateBus, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    async def patiently(bus: client_bus.Bus, name: str, _limit_sec: float | None) -> vms.Facts:
        """Nobody waits long for those that hang, and no machine is too slow for the other."""
        return await vms.facts(bus, name, TIMEOUT_SEC if name == "demo" else 0.5)

    monkeypatch.setattr("vmservice.client.overview.facts", patiently)
    monkeypatch.setattr(vms, "LOOKS_AT_A_TIME", 2)

    async def check() -> None:
        async with (
            impostor(bus.address, bus_name("a"), silent),
            impostor(bus.address, bus_name("b"), silent),
            impostor(bus.address, bus_name("c"), silent),
            served_vm(bus.address),
        ):
            assert await run("list") == 0
            said = capsys.readouterr()
            *stuck, demo = (line.split() for line in said.out.splitlines()[1:])
            assert demo[:3] == ["demo", "created", "1/4"]
            for name, line in zip("abc", stuck, strict=True):
                assert (line[:3], line[4], line[7]) == ([name, "?", "?"], "?", "?")
                assert " ".join(line[8:]) == f"the VM {name} did not answer within 0.5 seconds"
            assert said.err == ""
            assert await run("list", "--json") == 0
            said = capsys.readouterr()
            assert json.loads(said.out)[0]["error"] == "the VM a did not answer within 0.5 seconds"
            assert said.err == ""
            assert await run("status", "a") == 75
            said = capsys.readouterr()
            assert said.out.splitlines()[1:3] == ["      State: ?", "     Reason: the VM a did not answer within 0.5 seconds"]
            assert said.err == "vmservice: the VM a did not answer within 0.5 seconds\n"

    asyncio.run(check())


def test_what_others_put_on_the_bus(bus: PrivateBus, capsys: Output) -> None:
    """Names that no VM has are left out, and values that no VM gives are not believed."""

    def lie(call: Message) -> Message:
        values = {"State": Variant("s", "\x1b[31mfine"), "VCPUs": Variant("s", "many"), "Memory": Variant("t", 1 << 20)}
        return Message.new_method_return(call, "a{sv}", [values])

    async def check() -> None:
        async with (
            impostor(bus.address, f"{INTERFACE}._1b_5b31m", lie),
            impostor(bus.address, f"{INTERFACE}.a.b", lie),
            impostor(bus.address, f"{INTERFACE}x.a", lie),
            impostor(bus.address, bus_name("liar"), lie),
        ):
            assert await run("list") == 0
            (liar,) = (line.split() for line in capsys.readouterr().out.splitlines()[1:])
            assert (liar[:3], liar[4:6], liar[-1]) == (["liar", "?[31mfine", "?"], ["1", "MiB"], "?")

    asyncio.run(check())


@pytest.mark.parametrize(
    ("signature", "value"), [("", []), ("i", [7]), ("s", ["running"]), ("u", [1]), ("as", [["running"]]), ("ss", ["a", "b"])]
)
def test_an_answer_of_another_type_is_the_fault_of_one_vm(
    bus: PrivateBus, capsys: Output, signature: str, value: list[object]
) -> None:
    def lie(call: Message) -> Message:
        return Message.new_method_return(call, signature, value)

    def sentence(member: str, wanted: str) -> str:
        types = f'of type "{signature}" and not "{wanted}"'
        return f"the VM odd does not answer as a VM does: the answer to {member} is {types}"

    async def check() -> None:
        async with impostor(bus.address, bus_name("odd"), lie), served_vm(bus.address):
            assert await run("list") == 0
            demo, odd = (line.split() for line in capsys.readouterr().out.splitlines()[1:])
            assert demo[:3] == ["demo", "created", "1/4"]
            assert (odd[:3], " ".join(odd[8:])) == (["odd", "?", "?"], sentence("GetAll", "a{sv}"))
            assert await run("status", "odd") == 1
            assert capsys.readouterr().err == f"vmservice: {sentence('GetAll', 'a{sv}')}\n"
            assert await run("wait", "odd", "running", "--timeout", "60") == 1
            assert capsys.readouterr().err == f"vmservice: {sentence('Get', 'v')}\n"

    asyncio.run(check())


@pytest.mark.parametrize(
    ("signature", "devices"),
    [
        ("a(ssa{ss})", [["disk", "root", {"path": "x"}]]),
        ("a(ssa{iv})", [["disk", "root", {5: Variant("s", "x")}]]),
        ("a{ss}", {"disk": "root"}),
        ("av", [Variant("s", "x")]),
    ],
)
def test_devices_of_another_type_are_none(bus: PrivateBus, capsys: Output, signature: str, devices: object) -> None:
    values = {
        "State": Variant("s", "running"),
        "VCPUs": Variant("b", True),
        "Devices": Variant(signature, devices),
        "Stats": Variant("a{id}", {5: 1.0}),
    }

    async def check() -> None:
        async with impostor(bus.address, bus_name("odd"), lambda call: Message.new_method_return(call, "a{sv}", [values])):
            assert await run("status", "--json", "odd") == 0
            said = json.loads(capsys.readouterr().out)
            assert (said["state"], said["vcpus"], said["stats"]) == ("running", None, {})
            assert all(device["details"] == {} for device in said["devices"] or ())

    asyncio.run(check())


def test_a_vm_that_ends_while_it_is_looked_at_is_not_listed(bus: PrivateBus, capsys: Output) -> None:
    async def check() -> None:
        async with impostor(bus.address, bus_name("brief"), lambda _call: brief.bus.disconnect()) as brief:
            assert await run("list") == 0
            assert capsys.readouterr().out == ""

    asyncio.run(check())


# The verbs


def test_every_verb_reaches_its_method(bus: PrivateBus, capsys: Output) -> None:
    async def check() -> None:
        async with served_vm(bus.address, "web-1") as served:
            for words, state in (
                ("boot", "running"),
                ("pause", "paused"),
                ("resume", "running"),
                ("resize 3", "running"),
                ("reset", "running"),
                ("poweroff --force", "shutdown"),
                ("boot", "running"),
            ):
                verb, *more = words.split()
                assert await run(verb, "web-1", *more) == 0, words
                assert served.vm.state == state
            assert served.vm.last_exit == "shutdown"
            assert await run("shutdown", "web-1") == 0
            assert b"simulated guest: power button pressed, going down\r\n" in served.console
            assert b"simulated guest: 3 vCPUs\r\n" in served.console
        assert capsys.readouterr() == ("", "")

    asyncio.run(check())


def test_poweroff_waits_until_the_guest_is_off(bus: PrivateBus, capsys: Output) -> None:
    async def check() -> None:
        async with served_vm(bus.address) as served:
            served.vm.boot()
            assert await run("poweroff", "demo") == 0
            assert (served.vm.state, served.vm.last_exit) == ("shutdown", "poweroff")
            assert await run("poweroff", "demo") == 1
            assert "demo is shutdown; only the power button of a running VM can be pressed" in capsys.readouterr().err
        assert await run("poweroff", "demo") == 69
        assert "the VM demo is not running" in capsys.readouterr().err

    asyncio.run(check())


def test_poweroff_of_a_guest_that_does_not_care(bus: PrivateBus, capsys: Output) -> None:
    async def check() -> None:
        async with served_vm(bus.address) as served:
            served.vm.boot()
            served.vm.power_button = lambda: None  # type: ignore[method-assign]
            assert served.joined is not None
            served.joined._object._verbs["PowerButton"] = lambda: None
            assert await run("poweroff", "demo", "--timeout", "0.3") == 75
            assert capsys.readouterr().err == (
                "vmservice: the VM demo did not reach state shutdown within 0.3 s; it is running;"
                " `vmservice poweroff --force demo` stops it without asking the guest\n"
            )
            assert await run("poweroff", "--force", "demo") == 0
            assert served.vm.last_exit == "shutdown"

    asyncio.run(check())


def test_reboot_of_a_vm_whose_process_stays(bus: PrivateBus, capsys: Output) -> None:
    async def check() -> None:
        async with served_vm(bus.address) as served:
            served.vm.boot()
            assert await run("reboot", "demo") == 0
            assert (served.vm.state, served.vm.last_exit) == ("running", "poweroff")
        assert capsys.readouterr() == ("", "")

    asyncio.run(check())


@pytest.mark.parametrize("of_unit", [True, False])
def test_reboot_of_a_vm_whose_process_ends(
    bus: PrivateBus,
    sim: VmProcess,
    tmp_path: Path,
    of_unit: bool,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its unit is started again, if it is the unit's process."""
    systemctl = tmp_path / "systemctl"
    systemctl.write_text('#!/bin/sh\necho "asked to $*"\n')
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    unit = {**RUNNING, "MainPID": sim.pid if of_unit else 0}

    async def check() -> None:
        async with systemd(bus.address, {"demo": unit}):
            status = await run("reboot", "demo")
        said = capfd.readouterr()
        if of_unit:
            assert (status, said.out, said.err) == (0, "asked to start vm@demo\n", "systemctl start vm@demo\n")
        else:
            assert status == 69
            assert "the VM demo has powered off and ended; no unit ran it" in said.err

    asyncio.run(check())
    assert sim.wait() == 0


def test_a_refusal_is_the_vms_own_sentence(bus: PrivateBus, capsys: Output) -> None:
    async def check() -> None:
        async with served_vm(bus.address) as served:
            assert await run("pause", "demo") == 1
            said = capsys.readouterr()
            assert said == (
                "",
                "vmservice: demo is created; it can become running, not paused\n",
            )
            assert await run("resize", "demo", "9") == 1
            assert "Resize to 9 vCPUs is out of range; this VM takes 1 to 4" in capsys.readouterr().err
            served.vm.hold("the VM is being stopped")
            assert await run("boot", "demo") == 1
            assert "Boot is refused because the VM is being stopped" in capsys.readouterr().err

    asyncio.run(check())


@pytest.mark.parametrize("command", ["status", "pause"])
def test_a_vm_that_is_not_running(capsys: Output, command: str) -> None:
    assert asyncio.run(run(command, "demo")) == 69
    shown = (
        f"demo\n          State: stopped\n  Configuration: {names.SYSTEM_DIRECTORY}/demo.toml\n" if command == "status" else ""
    )
    assert capsys.readouterr() == (shown, "vmservice: the VM demo is not running; `systemctl start vm@demo` starts it\n")
    assert asyncio.run(run(command, "nosuch")) == 69
    path = f"{names.SYSTEM_DIRECTORY}/nosuch.toml"
    sentence = f"the VM nosuch does not exist: it does not run, and there is no {path}"
    assert capsys.readouterr() == ("", f"vmservice: {sentence}\n")


def test_a_vm_that_ends_in_the_middle_of_a_call(bus: PrivateBus, capsys: Output) -> None:
    async def check() -> None:
        async with impostor(bus.address, bus_name("demo"), lambda _call: peer.bus.disconnect()) as peer:
            assert await run("pause", "demo") == 69
            assert capsys.readouterr().err == "vmservice: the VM demo ended before it answered\n"

    asyncio.run(check())


def test_a_call_starts_nothing_and_lets_polkit_ask_only_where_it_wants_to(bus: PrivateBus, capsys: Output) -> None:
    flags: list[MessageFlag] = []

    def deny(call: Message) -> Message:
        flags.append(call.flags)
        return Message.new_error(call, "org.freedesktop.DBus.Error.AccessDenied", "polkit does not let you pause demo")

    async def check() -> None:
        async with impostor(bus.address, bus_name("demo"), deny):
            assert await run("pause", "demo") == 77
            assert capsys.readouterr().err == "vmservice: polkit does not let you pause demo\n"
            assert flags == [MessageFlag.NO_AUTOSTART]

    asyncio.run(check())


def test_an_answer_that_does_not_come(bus: PrivateBus, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vms, "VERB_TIMEOUT_SEC", 0.1)

    async def check() -> None:
        async with impostor(bus.address, bus_name("demo"), silent):
            assert await run("pause", "demo") == 75
            assert "the VM demo did not answer Pause within 0.1 seconds" in capsys.readouterr().err

    asyncio.run(check())


def test_what_the_bus_forbids(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    """One rule of the system's policy, for this test's account; tests/system has the policy itself."""
    forbidding = OPEN_POLICY.replace("</policy>", f'<deny send_interface="{INTERFACE}" send_type="method_call"/></policy>')

    async def check(bus: PrivateBus) -> None:
        monkeypatch.setenv(ADDRESS, bus.address)
        async with served_vm(bus.address):
            assert await run("pause", "demo") == 77
            sentence = "vmservice: this account may not Pause the VM demo; root and members of group vmservice may\n"
            assert capsys.readouterr().err == sentence
            assert await run("status", "demo") == 0

    with PrivateBus(forbidding) as bus:
        asyncio.run(check(bus))


# The bus


@pytest.mark.parametrize("words", [["list"], ["status", "demo"], ["pause", "demo"], ["wait", "demo", "running"]])
def test_no_bus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Output, words: list[str]) -> None:
    monkeypatch.setenv(ADDRESS, f"unix:path={tmp_path}/none")
    assert asyncio.run(run(*words)) == 69
    said = f"vmservice: there is no system bus: nothing answers at {tmp_path}/none: No such file or directory\n"
    assert capsys.readouterr() == ("", said)
    assert asyncio.run(run(*words, "--user")) == 69
    said = "there is no session bus: neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR is set"
    assert capsys.readouterr() == ("", f"vmservice: {said}\n")


def test_the_session_bus(bus: PrivateBus, monkeypatch: pytest.MonkeyPatch, capsys: Output, tmp_path: Path) -> None:
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", bus.address)
    monkeypatch.setenv(ADDRESS, f"unix:path={tmp_path}/none")

    async def check() -> None:
        async with served_vm(bus.address):
            assert await run("boot", "--user", "demo") == 0
            assert await run("list", "--user") == 0
            assert "demo  running" in capsys.readouterr().out
        assert await run("pause", "demo", "--user") == 69
        assert "`systemctl --user start vm@demo` starts it" in capsys.readouterr().err

    asyncio.run(check())


def test_a_bus_that_is_stopped(own_bus: PrivateBus, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    monkeypatch.setattr(client_bus, "CONNECT_TIMEOUT_SEC", 0.2)
    own_bus.start()
    own_bus.freeze()
    assert asyncio.run(run("list")) == 69
    assert capsys.readouterr() == ("", "vmservice: the system bus did not answer within 0.2 seconds\n")


# status


def test_status(bus: PrivateBus, capsys: Output, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    journal = FakeJournal(monkeypatch)
    journal.vmm("VM started", "web-1")
    group = tmp_path / "vm"
    group.mkdir()
    (group / "cpu.stat").write_text("usage_usec 12345678\nuser_usec 1\n")
    (group / "memory.current").write_text("85354086\n")
    monkeypatch.setattr(usage, "CGROUPS", str(tmp_path))

    async def check() -> None:
        unit = {**RUNNING, "MainPID": 485, "ControlGroup": "/vm"}
        async with served_vm(bus.address, "web-1") as served, systemd(bus.address, {"web-1": unit}):
            served.vm.boot()
            assert await run("status", "web-1") == 0
            assert capsys.readouterr() == (
                "web-1\n"
                "      State: running\n"
                "      vCPUs: 1 of 4\n"
                "        CPU: 0.0% of one processor, 12.3 s since the start\n"
                "     Memory: 64 MiB, 81.4 MiB used of the host's\n"
                "  Last exit: -\n"
                "   Bus name: org.vmservice.VM1.web_2d1\n"
                f"    Process: {os.getpid()}\n"
                "      Guest: ready\n"
                "       Unit: vm@web-1.service, active (running), main process 485\n"
                "    Devices: console  serial  mode null\n"
                "\nLast lines of the VMM:\n  Nov 27 02:00:05 vmservice: VM started\n",
                "",
            )
            assert await run("status", "web-1", "--json") == 0
            said = json.loads(capsys.readouterr().out)
            assert (said["state"], said["pid"], said["error"]) == ("running", os.getpid(), None)
            assert said["unit"] == {
                "name": "vm@web-1.service",
                "active_state": "active",
                "sub_state": "running",
                "main_pid": 485,
                "result": "success",
                "exit_status": None,
                "status_text": None,
            }
            assert (said["cpu_percent"], said["cpu_sec"], said["memory_used"]) == (0.0, 12.345678, 85354086)
            assert [line["text"] for line in said["journal"]] == ["VM started"]
            assert said["devices"] == [{"kind": "console", "name": "serial", "details": {"mode": "null"}}]
            assert said["stats"] == {"sim.heartbeats": 0.0}

    asyncio.run(check())


def test_status_without_systemd(bus: PrivateBus, capsys: Output) -> None:
    async def check() -> None:
        async with served_vm(bus.address):
            assert await run("status", "demo") == 0
            assert "Unit" not in capsys.readouterr().out
            assert await run("status", "demo", "--json") == 0
            assert json.loads(capsys.readouterr().out)["unit"] is None
            async with systemd(bus.address, {"demo": NOT_LOADED}):
                assert await run("status", "demo") == 0
                assert "Unit" not in capsys.readouterr().out

    asyncio.run(check())


def test_status_of_a_vm_whose_unit_has_failed(bus: PrivateBus, capsys: Output) -> None:
    async def check() -> None:
        unit = {**FAILED, "ExecMainStatus": 134, "StatusText": "the guest panicked"}
        async with systemd(bus.address, {"demo": unit}):
            reason = "the guest panicked (exit status 134)"
            advice = "the VM demo is not running; `systemctl start vm@demo` starts it again"
            sentence = f"{advice} (it has failed: {reason})"
            assert await run("status", "demo", "--json") == 69
            said = capsys.readouterr()
            assert said.err == f"vmservice: {sentence}\n"
            answer = json.loads(said.out)
            assert (answer["condition"], answer["state"], answer["reason"]) == ("failed", None, reason)
            assert (answer["error"], answer["unit"]["active_state"]) == (sentence, "failed")
            assert await run("status", "demo") == 69
            said = capsys.readouterr()
            assert "          State: failed\n         Reason: the guest panicked (exit status 134)\n" in said.out
            assert "           Unit: vm@demo.service, failed (failed)\n" in said.out
            assert said.err.endswith(f"vmservice: {sentence}\n")
        assert await run("status", "demo", "--json") == 69
        assert json.loads(capsys.readouterr().out)["unit"] is None

    asyncio.run(check())


# wait


class Waiting:
    """`vmservice wait` under way; `begun` when it has looked at the VM, or found that there is none."""

    def __init__(self, *arguments: str) -> None:
        self._command = asyncio.ensure_future(run("wait", *arguments))

    async def status(self) -> int:
        async with asyncio.timeout(TIMEOUT_SEC):
            return await self._command

    @property
    def over(self) -> bool:
        return self._command.done()


@asynccontextmanager
async def watched(address: str) -> AsyncIterator[asyncio.Event]:
    """An event that is set each time that somebody has asked who owns the name of a VM: the last thing before a wait waits."""
    asked = asyncio.Event()
    async with client(address) as monitor:

        def hear(message: Message) -> bool:
            """A monitor may not send: each call is taken for handled, so that dbus-next does not answer it."""
            if message.member == "GetNameOwner":
                asked.set()
            return message.message_type is MessageType.METHOD_CALL

        monitor.bus.add_message_handler(hear)
        rules = [["type='method_call',member='GetNameOwner'"], 0]
        await monitor.call("", "BecomeMonitor", "asu", rules, **{**DAEMON, "interface": "org.freedesktop.DBus.Monitoring"})
        yield asked


async def heard(event: asyncio.Event) -> None:
    async with asyncio.timeout(TIMEOUT_SEC):
        await event.wait()


def test_wait_for_what_is_so_already(bus: PrivateBus, capsys: Output) -> None:
    async def check() -> None:
        async with served_vm(bus.address) as served:
            assert await run("wait", "demo", "created") == 0
            served.vm.boot()
            assert await run("wait", "demo", "running", "--timeout", "5") == 0
        assert capsys.readouterr() == ("", "")

    asyncio.run(check())


def test_wait_sees_a_state_that_lasts_no_time(bus: PrivateBus) -> None:
    async def check() -> None:
        async with served_vm(bus.address) as served, watched(bus.address) as asked:
            served.vm.boot()
            waiting = Waiting("demo", "paused")
            await heard(asked)
            served.vm.pause()
            served.vm.resume()
            assert await waiting.status() == 0
            assert served.vm.state == "running"

    asyncio.run(check())


def test_wait_gives_up(bus: PrivateBus, capsys: Output) -> None:
    async def check() -> None:
        async with served_vm(bus.address) as served:
            served.vm.boot()
            assert await run("wait", "demo", "paused", "--timeout", "1") == 75
            sentence = "the VM demo did not reach state paused within 1 s; it is running"
            assert capsys.readouterr() == ("", f"vmservice: {sentence}\n")
        async with impostor(bus.address, bus_name("demo"), silent):
            assert await run("wait", "demo", "paused", "--timeout", "0.3") == 75
            assert capsys.readouterr().err.endswith("; it does not answer\n")

    asyncio.run(check())


def test_a_vm_without_a_process_is_shut_down(bus: PrivateBus, capsys: Output) -> None:
    async def check() -> None:
        assert await run("wait", "demo", "shutdown") == 0
        async with watched(bus.address) as asked:
            async with served_vm(bus.address) as served:
                served.vm.boot()
                waiting = Waiting("demo", "shutdown")
                await heard(asked)
                assert not waiting.over
            assert await waiting.status() == 0
        assert capsys.readouterr() == ("", "")

    asyncio.run(check())


def test_wait_outlives_the_process(bus: PrivateBus, capsys: Output) -> None:
    """As when systemd starts the unit anew."""

    async def check() -> None:
        async with watched(bus.address) as asked:
            waiting = Waiting("demo", "running")
            await heard(asked)
            async with served_vm(bus.address) as first:
                assert first.vm.state == "created"
            async with served_vm(bus.address) as second:
                second.vm.boot()
                assert await waiting.status() == 0
        assert capsys.readouterr().err == "vmservice: the VM demo is not running; waiting for it to start\n"

    asyncio.run(check())


def test_wait_believes_nobody_but_the_vm(bus: PrivateBus, capsys: Output) -> None:
    """A signal that is sent to one connection reaches it whatever its match rules are."""

    async def check() -> None:
        async with served_vm(bus.address) as served, client(bus.address) as forger:
            served.vm.boot()
            waiting = Waiting("demo", "shutdown", "--timeout", "1")
            vm = await forger.call("", "GetNameOwner", "s", [bus_name("demo")], **DAEMON)
            change = [INTERFACE, {"State": Variant("s", "shutdown")}, []]
            stopped = (OBJECT_PATH, PROPERTIES, "PropertiesChanged", "sa{sv}as", change)
            gone = (DAEMON["path"], DAEMON["interface"], "NameOwnerChanged", "sss", [bus_name("demo"), vm, ""])
            while not waiting.over:
                listed = await forger.call("", "ListNames", "", [], **DAEMON)
                victims = {name for name in listed if name.startswith(":")} - {vm, forger.bus.unique_name}
                for victim, forged in itertools.product(victims, (stopped, gone)):
                    message = Message.new_signal(*forged)
                    message.destination = victim
                    await forger.bus.send(message)
            assert await waiting.status() == 75
            assert capsys.readouterr().err.endswith("; it is running\n")

    asyncio.run(check())


def test_wait_ends_with_the_bus(own_bus: PrivateBus, capsys: Output) -> None:
    async def check() -> None:
        own_bus.start()
        async with watched(own_bus.address) as asked:
            waiting = Waiting("demo", "running")
            await heard(asked)
            own_bus.kill()
            assert await waiting.status() == 69
        assert capsys.readouterr().err.splitlines()[-1] == "vmservice: the connection to the system bus was lost"

    asyncio.run(check())


# Whole processes


@pytest.fixture
def sim(bus: PrivateBus, tmp_path: Path) -> Iterator[VmProcess]:
    with running_sim(tmp_path / "demo.toml", bus.address) as process:
        yield process


def test_a_script(bus: PrivateBus, sim: VmProcess) -> None:
    environment = {ADDRESS: bus.address}
    said = json.loads(vmservice("status", "demo", "--json", environment=environment).stdout)
    assert (said["state"], said["pid"]) == ("running", sim.pid)
    assert vmservice("power-button", "demo", environment=environment).returncode == 0
    waited = vmservice("wait", "demo", "shutdown", "--timeout", "10", environment=environment)
    assert (waited.returncode, waited.stdout, waited.stderr) == (0, "", "")
    assert sim.wait() == 0


def test_an_interrupted_wait_ends_quietly(bus: PrivateBus) -> None:
    async def check() -> None:
        async with watched(bus.address) as asked:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "vmservice", "wait", "demo", "running"),
                stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTHONWARNINGS": "ignore::DeprecationWarning"},
            )
            await heard(asked)
            process.send_signal(signal.SIGINT)
            _, errors = await asyncio.wait_for(process.communicate(), TIMEOUT_SEC)
            assert process.returncode == 130
            assert b"Traceback" not in errors

    asyncio.run(check())


@pytest.mark.parametrize(("extra", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colour_on_a_terminal(bus: PrivateBus, sim: VmProcess, extra: dict[str, str], coloured: bool) -> None:
    ours, theirs = pty.openpty()
    try:
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "TERM": "xterm", ADDRESS: bus.address, **extra}
        command = [sys.executable, "-W", "ignore", "-m", "vmservice", "list"]
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=theirs, env=environment, check=True, timeout=TIMEOUT_SEC)
        assert (b"\x1b[32mrunning\x1b[0m" in os.read(ours, 4096)) is coloured
    finally:
        os.close(ours)
        os.close(theirs)


def test_run_does_not_wait_for_the_clients() -> None:
    program = "import sys, vmservice.cli, vmservice.service.main; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert not [name for name in loaded.stdout.split() if name.startswith("vmservice.client")]
