"""`vmservice list --all` and the answers for programs, whatever runs; with a bus and a service manager of the test's."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from support.bus_client import served_vm
from support.fake_systemd import FAILED, INACTIVE, RUNNING, systemd
from support.private_bus import PrivateBus
from support.process import SIM_CONFIG

from vmservice.cli import main
from vmservice.client import overview
from vmservice.config import names

Output = pytest.CaptureFixture[str]
KEYS = {
    *("name", "bus_name", "condition", "state", "vcpus", "max_vcpus", "memory", "last_exit", "guest_ready", "devices", "pid"),
    *("cpu_percent", "cpu_sec", "memory_used", "unit", "reason", "error"),
}


@pytest.fixture(autouse=True)
def folder(bus: PrivateBus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of the configurations; the bus of the tests is the system bus."""
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)
    monkeypatch.setattr(names, "SYSTEM_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(overview, "WINDOW_SEC", 0.01)
    return tmp_path


async def run(*arguments: str) -> int:
    return await asyncio.to_thread(main, arguments)


def configure(folder: Path, *vms: str) -> None:
    for name in vms:
        (folder / f"{name}.toml").write_text(SIM_CONFIG)


UNITS: dict[str, dict[str, object]] = {
    "web1": {**RUNNING, "ActiveState": "deactivating", "SubState": "stop-sigterm"},
    "web3": {**RUNNING, "ActiveState": "activating", "SubState": "start-pre"},
    "web4": {**FAILED, "ExecMainStatus": 134, "StatusText": "the guest panicked"},
    "web5": INACTIVE,
    "gone": {**FAILED, "Result": "signal", "ExecMainCode": 2, "ExecMainStatus": 9},
}


def test_all_there_is(bus: PrivateBus, folder: Path, capsys: Output) -> None:
    """In their natural order: what runs, with a unit or without, is on its way, has failed, is configured, well or not."""
    configure(folder, "web1", "web2", "web3", "web4", "web5", "web10")
    (folder / "web9.toml").write_text("[kernel\n")

    async def check() -> None:
        async with served_vm(bus.address, "web1"), served_vm(bus.address, "web2") as two, systemd(bus.address, UNITS):
            two.vm.boot()
            assert await run("list", "--all") == 0
            said = capsys.readouterr()
            assert said.err == ""
            header, *lines = said.out.splitlines()
            assert header.split() == ["NAME", "STATE", "VCPUS", "CPU", "MEMORY", "USED", "LAST-EXIT", "REASON"]
            start = header.index("REASON")
            assert [(*line.split()[:2], line[start:]) for line in lines] == [
                ("gone", "failed", "SIGKILL ended it"),
                ("web1", "stopping", ""),
                ("web2", "running", ""),
                ("web3", "starting", ""),
                ("web4", "failed", "the guest panicked (exit status 134)"),
                ("web5", "stopped", ""),
                ("web9", "stopped", lines[6][start:]),
                ("web10", "stopped", ""),
            ]
            assert lines[6][start:].startswith(f"the configuration {folder}/web9.toml is not valid TOML: ")
            assert await run("list") == 0
            assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == ["web1", "web2", "web3"]
            assert await run("list", "--all", "--json") == 0
            found = json.loads(capsys.readouterr().out)
            assert all(set(vm) == KEYS for vm in found)
            four = found[4]
            assert (four["condition"], four["state"], four["unit"]["exit_status"]) == ("failed", None, 134)
            assert [vm["unit"] is None for vm in found] == [False, False, True, False, False, False, True, True]

    asyncio.run(check())


def test_all_where_there_is_nothing(folder: Path, capsys: Output) -> None:
    assert main(["list", "--all"]) == 0
    assert capsys.readouterr() == ("", f"vmservice: there is no VM: none runs, and {folder} has no NAME.toml\n")
    assert main(["list", "--all", "--json"]) == 0
    assert capsys.readouterr() == ("[]\n", "")


def test_programs_are_answered_without_a_bus(folder: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(folder, "demo")
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={folder}/none")
    sentence = f"there is no system bus: nothing answers at {folder}/none: No such file or directory"
    for words, known in ((["list"], []), (["list", "--all"], ["demo"])):
        assert main([*words, "--json"]) == 69
        said = capsys.readouterr()
        assert said.err == f"vmservice: {sentence}\n"
        found = json.loads(said.out)
        assert [(vm["name"], vm["condition"], vm["error"]) for vm in found] == [(name, None, sentence) for name in known]
    assert main(["status", "demo", "--json"]) == 69
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {*KEYS, "stats", "journal"}
    assert (found["name"], found["condition"], found["error"]) == ("demo", None, sentence)
    assert main(["list", "--all"]) == 69
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["demo", "?"]


def test_status_for_programs_has_the_same_keys(bus: PrivateBus, folder: Path, capsys: Output) -> None:
    configure(folder, "web1", "web4", "web5")

    async def check() -> None:
        async with served_vm(bus.address, "web1"), systemd(bus.address, UNITS):
            for name, status, condition in (
                ("web1", 0, "stopping"),
                ("web3", 69, "starting"),
                ("web4", 69, "failed"),
                ("web5", 69, "stopped"),
                ("nosuch", 69, None),
            ):
                assert await run("status", name, "--json") == status
                said = capsys.readouterr()
                found = json.loads(said.out)
                assert set(found) == {*KEYS, "stats", "journal"}
                assert (found["name"], found["condition"]) == (name, condition)
                assert said.err == (f"vmservice: {found['error']}\n" if status else "")
                assert ("systemctl start" in said.err) is (name in ("web4", "web5"))

    asyncio.run(check())
