"""A kind of device that nobody here knows is four files and nothing else: read, checked, plugged in, shown, reloaded, saved."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.kvm_guest import needs_kvm
from support.payload import build as build_payload

from vmservice import host as host_package
from vmservice import plug as plug_package
from vmservice.board.timers import Timers
from vmservice.config import load, sections
from vmservice.devices import virtio as virtio_package
from vmservice.errors import ConfigError
from vmservice.host.consoles.mover import Mover
from vmservice.kvm.system import Kvm
from vmservice.plug.backend import Backends, Host
from vmservice.service.reload import _differences
from vmservice.vm import builder, state_tree
from vmservice.vm.events import EventQueue
from vmservice.vm.host_services import HostServices
from vmservice.vm.vcpu import install_kick_handler

pytestmark = [pytest.mark.kvm, needs_kvm]

SECTION = """
import os

from vmservice.errors import ConfigError

KEYS = ("name", "file", "volume")
ARRAY = True
LIVE = ("volume",)
PLUG = "vmservice.plug.bell"
ORDER = 50


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


def check_live(device, path, memory_bytes):
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


class BellState(DeviceState):
    __slots__ = ("volume",)

    def __init__(self, volume):
        self.volume = volume


class Bell:
    device_type = 42
    features = 0
    queue_max_sizes = (16,)

    def __init__(self, state):
        self.state = state

    def read_config(self, offset, size):
        return bytes((self.state.volume, *range(255)))[offset : offset + size]

    def write_config(self, offset, data): ...
    def activate(self, queues, interrupt, features): ...
    def reset(self): ...
    def notify(self, index): ...
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
            self.device.state.volume = section.volume

    def stats(self):
        return {"rings": 3}


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
    install_kick_handler()
    yield
    for package, _text in PLACES:
        sys.modules.pop(f"{package.__name__}.bell", None)
        if hasattr(package, "bell"):
            delattr(package, "bell")


@pytest.mark.usefixtures("bell")
@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_a_new_kind_of_device(tmp_path: Path, transport: str) -> None:
    firmware = build_payload("idle", tmp_path)
    file = tmp_path / "vm.toml"

    def read(volume: int) -> load.Config:
        file.write_text(
            f'[firmware]\npath = "{firmware}"\n[serial]\nmode = "null"\n[memory]\nsize = "16M"\n[virtio]\n'
            f'transport = "{transport}"\n[[bell]]\nname = "door"\nfile = "sound"\nvolume = {volume}\n'
        )
        return load.load_config("demo", str(file))

    config = read(7)
    assert [(device.kind, device.name) for device in config.devices] == [("rng", "rng"), ("bell", "door")]
    with pytest.raises(ConfigError, match="the bell door has no file"):
        load.check_files(config)
    (tmp_path / "sound").touch()
    load.check_files(config)
    assert _differences(config, read(3)) == [], "the volume may change while the VM runs"

    mover, events, timers, kvm = Mover(), EventQueue(), Timers(), Kvm()
    log = SimpleNamespace(info=lambda text: None, warning=lambda text: None)
    backends = Backends(config, Host("demo", log, mover, []))
    assert backends.of(config.devices[1]).fds()["file"] >= 0
    shown = ("bell", "door", {"file": str(tmp_path / "sound"), "volume": 7})
    assert backends.details() == [("console", "serial", {"mode": "null"}), shown]
    services = HostServices(
        kvm, events, timers, backends, on_input_room=lambda label: None, info=lambda text: None, warn=pytest.fail
    )
    machine = builder.build(config, services, 1)
    machine.start()
    machine.reconfigure(read(3).devices[1])
    assert machine.stats()["bell.door.rings"] == 3
    machine.pause()
    tree = state_tree.collect(machine, kvm)
    assert tree["devices"]["door"]["device"] == {"volume": 3}
    machine.close()
    backends.close()
    for part in (mover, events, timers, kvm):
        part.close()


@pytest.mark.usefixtures("bell")
def test_its_keys_are_known_where_a_mistake_is_told(tmp_path: Path) -> None:
    file = tmp_path / "vm.toml"
    for text, words in (
        ('[[bell]]\nfile = "x"\nvolumes = 1', r"bell\[0\]\.volumes is not a known key; did you mean volume\?"),
        ('[[bell]]\nfile = "x"\nvolume = 11', r"bell\[0\]\.volume is 11; expected a whole number from 0 to 10"),
        ("[bel]\nx = 1", r"\[bel\] is not a known section; did you mean \[bell\]\?"),
    ):
        file.write_text(f'[firmware]\npath = "x"\n{text}\n')
        with pytest.raises(ConfigError, match=words):
            load.load_config("demo", str(file))
