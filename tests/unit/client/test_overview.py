"""What state a VM is shown in, and why it failed, of what it, its unit and its configuration say."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from vmservice.client import overview, usage
from vmservice.client.overview import Overview
from vmservice.client.units import UnitState, why_failed
from vmservice.client.usage import Usage, cpu_percent
from vmservice.client.vms import Facts, is_configured
from vmservice.config import names

RUNNING = Facts("demo", "running", last_exit="")
CLD_EXITED, CLD_KILLED, CLD_DUMPED = 1, 2, 3


def unit(active: str, sub: str = "", **more: object) -> UnitState:
    return UnitState("vm@demo.service", active, sub, 0, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "of_unit", "condition"),
    [
        (RUNNING, None, "running"),
        (RUNNING, unit("active", "running"), "running"),
        (RUNNING, unit("deactivating", "stop-sigterm"), "stopping"),
        (None, unit("deactivating", "stop-post"), "stopping"),
        (RUNNING, unit("activating", "start"), "starting"),
        (None, unit("activating", "start-pre"), "starting"),
        (None, unit("activating", "auto-restart"), "restarting"),
        (None, unit("activating", "auto-restart-queued"), "restarting"),
        (RUNNING, unit("reloading", "reload"), "running"),
        (Facts("demo", "paused", last_exit="panic"), unit("active", "running"), "panicked"),
        (Facts("demo", "paused", last_exit="reset"), None, "paused"),
        (Facts("demo", "shutdown", last_exit="poweroff"), unit("inactive", "dead"), "shutdown"),
        (Facts("demo", error="it hangs"), unit("active", "running"), None),
        (None, unit("active", "running"), None),
        (None, unit("failed", "failed"), "failed"),
        (None, unit("inactive", "dead"), "stopped"),
        (None, None, "stopped"),
    ],
)
def test_the_condition(facts: Facts | None, of_unit: UnitState | None, condition: str | None) -> None:
    assert Overview("demo", facts=facts, unit=of_unit).condition == condition


def test_a_guest_whose_console_tells_of_a_panic_runs_and_is_told_of() -> None:
    of_unit = unit("active", "running", status_text="running; 1 vCPU, 64 MiB; its kernel has panicked, as its console says")
    vm = Overview("demo", facts=RUNNING, unit=of_unit)
    assert (vm.condition, vm.reason) == ("running", "its kernel has panicked, as its console says")
    assert Overview("demo", facts=RUNNING, unit=unit("active", "running", status_text="running; 1 vCPU")).reason == ""


def exited(status: int, text: str = "", result: str = "exit-code") -> UnitState:
    return unit("failed", "failed", result=result, exit_code=CLD_EXITED, exit_status=status, status_text=text)


@pytest.mark.parametrize(
    ("of_unit", "reason"),
    [
        (exited(134), "the guest panicked, or did not feed its watchdog (exit status 134)"),
        (exited(134, "the guest panicked"), "the guest panicked (exit status 134)"),
        (exited(78, "/etc/x.toml: no such key"), "/etc/x.toml: no such key (exit status 78)"),
        (exited(1, "the VM runs"), "exit status 1"),  # what it said last is no reason
        (exited(226), "systemd could not set its process up (exit status 226)"),
        (exited(133, result="success"), "the guest asked for a reset (exit status 133)"),
        (exited(78, result="start-limit-hit"), "it was started too often; `systemctl reset-failed` allows more"),
        (unit("failed", result="signal", exit_code=CLD_KILLED, exit_status=9, status_text="the VM runs"), "SIGKILL ended it"),
        (unit("failed", result="core-dump", exit_code=CLD_DUMPED, exit_status=6), "SIGABRT ended it"),
        (unit("failed", result="signal", exit_code=CLD_KILLED, exit_status=99), "signal 99 ended it"),
        (unit("failed", result="timeout", exit_code=CLD_KILLED, exit_status=9), "it did not start or stop in time"),
        (unit("failed", result="new-kind"), "new-kind"),
        (unit("inactive", result="success"), ""),
        (exited(0, result="success"), ""),
    ],
)
def test_why_a_unit_failed(of_unit: UnitState, reason: str) -> None:
    assert why_failed(of_unit) == reason


def test_who_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "SYSTEM_DIRECTORY", str(tmp_path))
    (tmp_path / "demo.toml").touch()
    assert Overview("demo").exists
    assert not Overview("nosuch").exists
    assert not Overview("nosuch", unit=unit("inactive", "dead")).exists, "our own look has loaded it"
    assert Overview("nosuch", unit=unit("failed", "failed")).exists
    assert Overview("nosuch", facts=RUNNING).exists


@pytest.mark.parametrize(
    ("of_unit", "sentence"),
    [
        (unit("deactivating"), "the VM web is stopping: its process is not on the bus"),
        (unit("activating", "start-pre"), "the VM web is starting: its process is not on the bus"),
        (unit("active"), "the unit of the VM web is active, but its process is not on the bus"),
        (exited(134), "the VM web is not running, and its configuration {}/web.toml does not exist"),
    ],
)
def test_what_is_said_of_one_without_a_process(
    of_unit: UnitState, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "SYSTEM_DIRECTORY", str(tmp_path))
    assert str(Overview("web", unit=of_unit).missing()) == sentence.format(tmp_path)


def test_names_are_sorted_as_a_person_counts() -> None:
    wanted = ["2", "9lives", "10", "a", "web", "web1.2", "web1.10", "web02", "web2", "web2b", "web10", "web-1"]
    mixed = wanted[::-1]
    assert sorted(mixed, key=names.natural_key) == wanted


def test_names_come_from_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "SYSTEM_DIRECTORY", str(tmp_path / "etc"))
    assert names.configured_names(user=False) == []
    (tmp_path / "etc").mkdir()
    for file in ("web10.toml", "web2.toml", ".hidden.toml", "web3.toml~", "web4", "a b.toml", ".toml"):
        (tmp_path / "etc" / file).touch()
    for folder in ("web5.toml.d", "web6.toml.d", "common.d"):
        (tmp_path / "etc" / folder).mkdir()
    for file in ("web5.toml.d/cpus.toml", "web6.toml.d/notes", "common.d/memory.toml"):
        (tmp_path / "etc" / file).touch()
    assert names.configured_names(user=False) == ["web2", "web5", "web10"], "drop-ins alone are enough"
    assert [is_configured(name, user=False) for name in ("web2", "web5", "web6", "common")] == [True, True, False, False]


def test_drop_ins_that_cannot_be_looked_into_hide_no_other_vm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "SYSTEM_DIRECTORY", str(tmp_path))
    (tmp_path / "web.toml").touch()
    (tmp_path / "demo.toml.d").symlink_to("demo.toml.d")
    assert names.configured_names(user=False) == ["demo", "web"]
    assert is_configured("demo", user=False)


@pytest.mark.parametrize("closed", ["", ".d"])
def test_what_may_not_be_read_is_no_fault_of_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    monkeypatch.setattr(names, "SYSTEM_DIRECTORY", str(tmp_path))
    path = tmp_path / "demo.toml"
    path.write_text("[cpus]\nboot = 0\n")
    (tmp_path / "demo.toml.d").mkdir()
    (found,) = overview.without_bus("no bus", user=False)
    assert found.config_error, "it is wrong, to who may read it"
    monkeypatch.setattr(os, "access", lambda place, _mode: place != f"{path}{closed}")  # root may read all
    (found,) = overview.without_bus("no bus", user=False)
    assert found.config_error is None


def test_a_file_that_we_fail_at_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "SYSTEM_DIRECTORY", str(tmp_path))
    for name in ("demo", "web"):
        (tmp_path / f"{name}.toml").touch()

    def load(name: str, _path: str) -> None:
        if name == "demo":
            raise KeyError("credentials.a[b]")

    monkeypatch.setattr(overview, "load_config", load)
    found = [(vm.name, vm.config_error) for vm in overview.without_bus("no bus", user=False)]
    assert found == [("demo", "internal error: KeyError('credentials.a[b]')"), ("web", None)]


def test_what_a_group_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "CGROUPS", str(tmp_path))
    (tmp_path / "vm").mkdir()
    gone = usage.usage("/vm", None)
    assert (gone.cpu_sec, gone.memory_bytes) == (None, None)
    (tmp_path / "vm/cpu.stat").write_text("usage_usec 1500000\nuser_usec 7\n")
    uncounted = usage.usage("/vm", os.getpid())
    assert uncounted.cpu_sec == 1.5
    assert uncounted.memory_bytes, "the kernel does not count the group's"
    (tmp_path / "vm/memory.current").write_text("4096\n")
    found = usage.usage("/vm", os.getpid())
    assert (found.cpu_sec, found.memory_bytes) == (1.5, 4096)


def test_what_a_process_uses() -> None:
    process = subprocess.Popen(["sh", "-c", "read -r _; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo; read -r _"],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        before = usage.usage("", process.pid)
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.stdout.readline()
        after = usage.usage("", process.pid)
        process.stdin.close()
    assert before.cpu_sec is not None
    assert after.cpu_sec is not None
    assert after.cpu_sec > before.cpu_sec
    assert before.memory_bytes is not None
    assert before.memory_bytes > 0
    share = cpu_percent(before, after)
    assert share is not None
    assert share > 0
    gone = usage.usage("", process.pid)
    assert (gone.cpu_sec, gone.memory_bytes) == (None, None)


def test_the_share_of_a_processor() -> None:
    assert cpu_percent(Usage(1.0, 0, 10.0), Usage(1.5, 0, 10.25)) == 200.0
    assert cpu_percent(Usage(1.0, 0, 10.0), Usage(0.5, 0, 11.0)) is None, "another process has its place"
    assert cpu_percent(Usage(None, 0, 10.0), Usage(0.5, 0, 11.0)) is None
    assert cpu_percent(None, Usage(0.5, 0, 11.0)) is None
