"""A kind of device that nobody here knows is four files: read, checked, plugged in, driven, shown, reloaded, saved, rebuilt."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.kvm_guest import needs_kvm
from support.plugged_vm import PluggedVm, notify, plug_of, ram_of, start_driver

from vmservice import host as host_package
from vmservice import plug as plug_package
from vmservice.config import load, sections
from vmservice.devices import virtio as virtio_package
from vmservice.errors import ConfigError
from vmservice.service.reload import _differences
from vmservice.vm import builder, state_tree

pytestmark = [pytest.mark.kvm, needs_kvm]

SECTION = """
import os

from vmservice.errors import ConfigError

KEYS = ("name", "file", "volume")
ARRAY = True
LIVE = ("volume",)
PLUG = "vmservice.plug.bell"
ORDER = 1000


class BellDevice:
    kind = "bell"
    plug = PLUG
    __slots__ = ("file", "name", "volume")

    def __init__(self, name, file, volume):
        self.name, self.file, self.volume = name, file, volume


def read(reader, _config):
    return tuple(
        BellDevice(
            reader.text(where, "name", f"bell{number}"),
            reader.required_file(where, "file"),
            reader.integer(where, "volume", 0, 10, 5),
        )
        for number, where in enumerate(reader.several("bell", 4))
    )


def check_files(device, path):
    if not os.path.exists(device.file):
        raise ConfigError(f"{path}: the bell {device.name} has no file {device.file}")


def check_live(device, memory_bytes):
    pass
"""
BACK_END = """
import os


class BellFile:
    consoles = ()

    def __init__(self, path):
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def fds(self):
        return {"file": self._fd}

    def close(self):
        os.close(self._fd)
"""
DEVICE = """
from vmservice.devices.state import DeviceState
from vmservice.errors import GuestError


class BellState(DeviceState):
    __slots__ = ("rings", "volume")

    def __init__(self, volume, rings=0):
        self.rings, self.volume = rings, volume


class Bell:
    device_type = 42
    features = 0
    queue_max_sizes = (64,)

    def __init__(self, state):
        self.state = state
        self._queue = self._interrupt = None

    def read_config(self, offset, size):
        return bytes((self.state.volume, *range(255)))[offset : offset + size]

    def write_config(self, offset, data): ...

    def activate(self, queues, interrupt, features):
        (self._queue,), self._interrupt = queues, interrupt

    def reset(self):
        self._queue = self._interrupt = None

    def notify(self, index):
        if self._queue.drain(self._ring):
            self._interrupt.interrupt_queue(0)

    def set_volume(self, volume):
        self.state.volume = volume
        if self._interrupt is not None:
            self._interrupt.interrupt_config()

    def _ring(self, chain):
        if chain.readable or not chain.writable:
            raise GuestError("a ring has something to read, or no room for its number")
        self.state.rings += 1
        return chain.write(bytes((self.state.rings % 256,)))
"""
PLUG = """
from vmservice.board.slot import Plugged
from vmservice.devices.virtio.bell import Bell, BellState
from vmservice.host.bell import BellFile


class BellPlug(Plugged):
    def __init__(self, section, slot):
        self.device = Bell(slot.state_of(BellState) or BellState(section.volume))
        super().__init__(slot, self.device)

    def reconfigure(self, section):
        with self.lock:
            self.device.set_volume(section.volume)

    def stats(self):
        with self.lock:
            return {"rings": self.device.state.rings}


def open(section, host):
    return BellFile(section.file)


def build(section, backend, slot):
    return BellPlug(section, slot)


def details(section, backend):
    return {section.name: {"file": section.file, "volume": section.volume}}
"""
PLACES = ((sections, SECTION), (host_package, BACK_END), (virtio_package, DEVICE), (plug_package, PLUG))


@pytest.fixture
def bell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The four files, each in a folder that its package has beside its own."""
    for package, text in PLACES:
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / "bell.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    yield
    for package, _text in PLACES:
        sys.modules.pop(f"{package.__name__}.bell", None)
        if hasattr(package, "bell"):
            delattr(package, "bell")


SECTIONS = '[[bell]]\nname = "door"\nfile = "sound"\nvolume = 7\n'


@pytest.fixture(params=["pci", "mmio"])
def vm(request: pytest.FixtureRequest, tmp_path: Path, bell: None) -> Iterator[PluggedVm]:
    (tmp_path / "sound").touch()
    vm = PluggedVm(tmp_path, request.param, SECTIONS)
    yield vm
    vm.close()


def test_a_new_kind_of_device(tmp_path: Path, vm: PluggedVm) -> None:
    rng, door = vm.config.devices
    assert [(device.kind, device.name) for device in (rng, door)] == [("rng", "rng"), ("bell", "door")]
    assert vm.backends.of(door).fds()["file"] >= 0
    assert ("bell", "door", {"file": str(tmp_path / "sound"), "volume": 7}) in vm.backends.details()

    machine = vm.build()
    machine.start()
    plug = plug_of(machine, "door")
    queue = start_driver(plug, machine.memory)
    for ring in (b"\1", b"\2"):
        queue.add([], [1])
        notify(plug)
        assert [data for _, _, data in queue.take_used()] == [ring]
    assert machine.stats()["bell.door.rings"] == 2

    text = Path(vm.config.path).read_text().replace("volume = 7", "volume = 3")
    Path(vm.config.path).write_text(text)
    changed = load.load_config("demo", vm.config.path)
    assert _differences(vm.config, changed) == [], "the volume may change while the VM runs"
    machine.reconfigure(changed.devices[1])
    assert plug.transport.virtio.read_config(0, 1) == b"\3"

    machine.pause()
    tree, memory = state_tree.collect(machine, vm.kvm), ram_of(machine)
    machine.close()
    assert tree["devices"]["door"]["device"] == {"rings": 2, "volume": 3}
    restored = builder.restore(vm.config, vm.services, tree, memory)
    assert plug_of(restored, "door").transport.virtio.device.state.values() == {"rings": 2, "volume": 3}
    restored.close()
    assert vm.warnings == []


@pytest.mark.usefixtures("bell")
def test_its_file_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "vm.toml").write_text(f'[firmware]\npath = "x"\n{SECTIONS}')
    with pytest.raises(ConfigError, match="the bell door has no file"):
        load.section_module("bell").check_files(load.load_config("demo", str(tmp_path / "vm.toml")).devices[-1], "demo.toml")


@pytest.mark.usefixtures("bell")
def test_its_keys_are_known_where_a_mistake_is_told(tmp_path: Path) -> None:
    file = tmp_path / "vm.toml"
    for text, words in (
        ('[[bell]]\nfile = "x"\nvolumes = 1', r"bell\[0\]\.volumes is not a known key; did you mean volume\?"),
        ('[[bell]]\nfile = "x"\nvolume = 11', r"bell\[0\]\.volume is 11; expected a whole number from 0 to 10"),
        ("[bel]\nx = 1", r"\[bel\] is not a known section; did you mean \[\[bell\]\]\?"),
    ):
        file.write_text(f'[firmware]\npath = "x"\n{text}\n')
        with pytest.raises(ConfigError, match=words):
            load.load_config("demo", str(file))
