"""A machine with a disk in qcow2, served by the real qemu-storage-daemon: built, paused, reset, ended, whatever that does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.disks import IN, header, waiting
from support.kvm_guest import needs_kvm
from support.payload import build as build_payload
from support.plugged_vm import notify, plug_of, start_driver
from support.storage_daemon import StorageDaemon
from support.virtqueue import NEXT, WRITE

from vmservice.board.timers import Timers
from vmservice.config import load
from vmservice.devices.virtio.external import External
from vmservice.errors import HostError
from vmservice.host.consoles.mover import Mover
from vmservice.kvm.system import Kvm
from vmservice.plug.backend import Backends, Host
from vmservice.plug.external import socket_path
from vmservice.vm import builder, state_tree
from vmservice.vm.events import EventQueue
from vmservice.vm.host_services import HostServices
from vmservice.vm.machine import KvmMachine
from vmservice.vm.vcpu import install_kick_handler

pytestmark = [pytest.mark.kvm, needs_kvm]

CONFIG_WCE = 1 << 11


class Vm:
    """What a process holds for the VM `demo` with a disk, and machines of it."""

    def __init__(self, folder: Path, transport: str, keys: str = "") -> None:
        firmware = build_payload("idle", folder)
        file = folder / "demo.toml"
        file.write_text(
            f'[firmware]\npath = "{firmware}"\n[serial]\nmode = "null"\n[memory]\nsize = "16M"\n[virtio]\n'
            f'transport = "{transport}"\n[[disk]]\nname = "root"\nformat = "qcow2"\npath = "disk.qcow2"\n{keys}'
        )
        self.config = load.load_config("demo", str(file))
        self.warnings: list[str] = []
        self.mover, self.events, self.timers, self.kvm = Mover(), EventQueue(), Timers(), Kvm()
        log = SimpleNamespace(info=lambda text: None, warning=self.warnings.append)
        self.backends: Backends | None = None
        try:
            self.backends = Backends(self.config, Host("demo", log, self.mover, []))
            self.services = HostServices(
                self.kvm,
                self.events,
                self.timers,
                self.backends,
                on_input_room=lambda label: None,
                info=lambda text: None,
                warn=self.warnings.append,
            )
        except BaseException:
            self.close()
            raise

    def machine(self) -> KvmMachine:
        return builder.build(self.config, self.services, 1)

    def close(self) -> None:
        if self.backends is not None:
            self.backends.close()
        for part in (self.mover, self.events, self.timers, self.kvm):
            part.close()


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StorageDaemon]:
    install_kick_handler()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "vmservice" / "demo"))
    path = Path(socket_path("disk", "demo", "root"))
    path.parent.mkdir(parents=True)
    daemon = StorageDaemon(tmp_path)
    path.symlink_to(daemon.path)
    daemon.start()
    yield daemon
    daemon.close()


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_a_machine_has_the_disk_and_gets_another_after_a_reset(tmp_path: Path, daemon: StorageDaemon, transport: str) -> None:
    vm = Vm(tmp_path, transport)
    assert vm.backends is not None
    values = {"path": f"{tmp_path}/disk.qcow2", "format": "qcow2", "readonly": False}
    assert ("disk", "root", {**values, "socket": socket_path("disk", "demo", "root")}) in vm.backends.details()
    for _ in range(3):
        machine = vm.machine()
        (disk,) = (device for device in machine.devices if device.label == "root")
        virtio = disk.transport.virtio
        assert isinstance(virtio.device, External)
        assert virtio.device.device_type == 2
        assert not virtio.offered_features & CONFIG_WCE
        assert virtio.device.read_config(0, 8) == ((16 << 20) // 512).to_bytes(8, "little")
        machine.start()
        machine.pause()
        assert state_tree.collect(machine, vm.kvm)["devices"]["root"]["device"]["features"] == virtio.device.features
        machine.resume()
        machine.close()
    vm.close()
    assert vm.warnings == []


def test_the_daemon_reads_into_persistent_memory(tmp_path: Path, daemon: StorageDaemon) -> None:
    """It has the file mapped, too; what only this process can have it is not told of, and goes on without."""
    for name in ("data", "image"):
        (tmp_path / name).write_bytes(b"\xff" * (2 << 20))
    pmem = '[[pmem]]\npath = "image"\nreadonly = true\n[[pmem]]\npath = "data"\n'
    vm = Vm(tmp_path, "pci", pmem)
    machine = vm.machine()
    machine.start()
    plug = plug_of(machine, "root")
    queue = start_driver(plug, machine.memory)
    start = int.from_bytes(plug_of(machine, "pmem1").transport.virtio.read_config(0, 8), "little")
    queue.describe(0, queue.place(header(IN, 0)), 16, NEXT, 1)
    queue.describe(1, start + 512, 512, NEXT | WRITE, 2)
    queue.describe(2, queue.place(b"\xff"), 1, WRITE)
    queue.make_available(0)
    notify(plug)
    for _ in waiting():
        if queue.used_index():
            break
    assert machine.memory.read(start, 1028) == b"\xff" * 512 + bytes(512) + b"\xff" * 4
    machine.close()
    vm.close()
    assert (tmp_path / "data").read_bytes()[508:516] == b"\xff" * 4 + bytes(4)
    assert vm.warnings == []


@pytest.mark.parametrize("stage", ["before a machine", "before it starts", "running", "paused", "at the end"])
def test_the_daemon_dies(tmp_path: Path, daemon: StorageDaemon, stage: str) -> None:
    """A guest without a driver loses nothing, and no machine is kept from its end; the next one has its disk."""
    vm = Vm(tmp_path, "pci")

    def may_die(now: str) -> None:
        if now == stage:
            daemon.kill()
            daemon.start()

    may_die("before a machine")
    machine = vm.machine()
    may_die("before it starts")
    machine.start()
    may_die("running")
    machine.pause()
    may_die("paused")
    machine.resume()
    may_die("at the end")
    machine.close()
    machine = vm.machine()
    machine.start()
    plug = plug_of(machine, "root")
    queue = start_driver(plug, machine.memory)
    queue.add([header(IN, 0)], [512, 1])
    notify(plug)
    answer = next((data for _ in waiting() for _, _, data in queue.take_used()), b"")
    assert answer == bytes(513), "a sector of zeros, and the status OK"
    machine.close()
    vm.close()
    assert vm.warnings == []


def test_without_a_daemon_the_vm_is_not_begun(tmp_path: Path, daemon: StorageDaemon) -> None:
    daemon.close()
    with pytest.raises(
        HostError, match=r"the qemu-storage-daemon of the disk root cannot be reached at .*: Connection refused"
    ):
        Vm(tmp_path, "pci")
