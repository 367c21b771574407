"""What a reload says is different: sections by their content, and ports one by one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

import pytest
from support.clock import Clock
from support.machines import RecordingMachine

from vmservice.config import sections
from vmservice.config.load import Config, load_config
from vmservice.service import reload
from vmservice.service.journal import Log
from vmservice.service.reload import Reload, _differences
from vmservice.service.sd_notify import Notifier
from vmservice.vm.vm import Vm

KERNEL = '[kernel]\npath = "/boot/vmlinuz"\n'


def load(folder: Path, text: str) -> Config:
    (folder / "demo.toml").write_text(KERNEL + text)
    return load_config("demo", str(folder / "demo.toml"))


def test_the_same_ports_read_again_are_the_same(tmp_path: Path) -> None:
    text = '[[port]]\nname = "a"\n[[port]]\nname = "b"\nconsole = true\n'
    before = load(tmp_path, text)
    assert _differences(before, load(tmp_path, text)) == []
    other = load(tmp_path, text.replace("true", "false"))
    assert _differences(before, other) == ["[[port]]"]


class Quiet:
    """A log and a manager that keep what they are told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.level = ""

    def info(self, text: str) -> None:
        self.lines.append(text)

    error = info

    def limit(self, level: str) -> None:
        self.level = level

    def reloading(self) -> None:
        self.lines.append("reloading")

    def ready(self, status: str) -> None:
        self.lines.append(f"ready: {status}")


def test_a_balloon_that_is_there_changes_its_size_and_keeps_it(tmp_path: Path) -> None:
    machines: list[RecordingMachine] = []

    def build(_vcpus: int) -> RecordingMachine:
        machines.append(RecordingMachine())
        return machines[-1]

    config = load(tmp_path, '[balloon]\nsize = "64M"\n')
    vm = Vm(
        name="demo", vcpus=1, max_vcpus=1, memory_bytes=config.memory.size_bytes, build=build, call_later=Clock().call_later
    )
    vm.boot()
    told = Quiet()
    under_test = Reload(vm, config, cast(Log, told), cast(Notifier, told), lambda: "well")
    load(tmp_path, '[balloon]\nsize = "96M"\n[service]\nlog_level = "warning"\n')
    under_test.start()
    assert told.lines == ["reloading", "the configuration is reloaded", "ready: well"]
    assert told.level == "warning"
    assert machines[0].calls == ["start", "reconfigure balloon"]
    vm.reboot()
    assert machines[1].calls == ["reconfigure balloon", "start"]

    load(tmp_path, '[memory]\nsize = "2G"\n[balloon]\nsize = "1G"\n[service]\nlog_level = "err"\n')
    under_test.start()
    assert told.lines[-1].startswith("ready: not reloaded, and nothing has changed: ")
    assert f"balloon.size is {1 << 30} bytes, and this VM has {512 << 20} bytes" in told.lines[-1]
    assert told.level == "warning"
    assert len(machines[1].calls) == 2


def test_a_bug_in_reading_the_files_ends_no_vm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(tmp_path, "[cpus]\nmax = 2\n")
    machine = RecordingMachine()
    vm = Vm(name="demo", vcpus=1, max_vcpus=2, memory_bytes=1 << 20, build=lambda _: machine, call_later=Clock().call_later)
    vm.boot()
    told = Quiet()
    under_test = Reload(vm, config, cast(Log, told), cast(Notifier, told), lambda: "well")

    def fail(_name: str, _path: str) -> Config:
        raise KeyError("credentials.a[b]")

    monkeypatch.setattr(reload, "load_config", fail)
    under_test.start()
    trouble = "not reloaded, and nothing has changed: internal error; the journal has the details"
    assert told.lines[0] == "reloading"
    assert told.lines[1].startswith("internal error: Traceback (most recent call last):\n")
    assert told.lines[1].endswith("KeyError: 'credentials.a[b]'\n")
    assert told.lines[2:] == [trouble, f"ready: {trouble}"]
    assert machine.calls == ["start"]
    monkeypatch.undo()
    under_test.start()
    assert told.lines[-1] == "ready: well", "the next one is as any other"


def test_a_balloon_that_comes_or_goes_waits_for_a_restart(tmp_path: Path) -> None:
    with_balloon = load(tmp_path, '[console]\nmode = "off"\n[balloon]\nsize = "64M"\n')
    without = load(tmp_path, '[console]\nmode = "off"\n')
    assert _differences(with_balloon, without) == ["[balloon]"]
    other = load(tmp_path, '[console]\nmode = "off"\n[balloon]\nsize = "32M"\n')
    assert _differences(with_balloon, other) == []


def test_a_disk_is_told_of_each_reload(tmp_path: Path) -> None:
    """Its image may have grown, though nothing in the file has changed."""
    machine = RecordingMachine()
    config = load(tmp_path, '[balloon]\nsize = "64M"\n[[disk]]\nformat = "raw"\npath = "root.raw"\n')
    vm = Vm(
        name="demo",
        vcpus=1,
        max_vcpus=1,
        memory_bytes=config.memory.size_bytes,
        build=lambda vcpus: machine,
        call_later=Clock().call_later,
    )
    vm.boot()
    told = Quiet()
    Reload(vm, config, cast(Log, told), cast(Notifier, told), lambda: "well").start()
    assert told.lines == ["reloading", "the configuration is reloaded", "ready: well"]
    assert machine.calls == ["start", "reconfigure disk0"]


TUNED = """\
KEYS, ARRAY, LIVE, PLUG, ORDER = ("pitch",), False, ("pitch",), "vmservice.plug.tuned", 90

class Tuned:
    kind = name = "tuned"
    plug = PLUG
    __slots__ = ("pitch",)

    def __init__(self, pitch):
        self.pitch = pitch

def read(reader, config):
    return (Tuned(reader.integer("tuned", "pitch", 0, 9, 0)),) if reader.has("tuned") else ()
"""


def test_a_kind_that_anybody_adds_changes_its_live_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that accepts whatever its section may say has no check_live."""
    (tmp_path / "tuned.py").write_text(TUNED)
    monkeypatch.setattr(sections, "__path__", [*sections.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "vmservice.config.sections.tuned", raising=False)
    config = load(tmp_path, "[tuned]\npitch = 1\n")
    machine = RecordingMachine()
    vm = Vm(
        name="demo",
        vcpus=1,
        max_vcpus=1,
        memory_bytes=config.memory.size_bytes,
        build=lambda _: machine,
        call_later=Clock().call_later,
    )
    vm.boot()
    told = Quiet()
    under_test = Reload(vm, config, cast(Log, told), cast(Notifier, told), lambda: "well")
    load(tmp_path, "[tuned]\npitch = 2\n")
    under_test.start()
    assert told.lines == ["reloading", "the configuration is reloaded", "ready: well"]
    assert machine.calls == ["start", "reconfigure tuned"]
    sys.modules.pop("vmservice.config.sections.tuned")
