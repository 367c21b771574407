"""A machine with a disk, from its configuration on: worked, paused, saved and restored, and its image kept from others."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.disks import OK, OUT, header, waiting
from support.kvm_guest import needs_kvm
from support.payload import build as build_payload
from support.virtqueue import DRIVER_READY, DriverQueue, offered

from vmservice.board.slot import Plugged
from vmservice.board.timers import Timers
from vmservice.config.load import check_files, load_config
from vmservice.errors import HostFacilityMissing
from vmservice.host.consoles.mover import Mover
from vmservice.kvm.system import Kvm
from vmservice.memory.guest_memory import GuestMemory, Region
from vmservice.plug.backend import Backends, Host
from vmservice.vm import builder, state_tree
from vmservice.vm.events import EventQueue
from vmservice.vm.host_services import HostServices
from vmservice.vm.vcpu import install_kick_handler

pytestmark = [pytest.mark.kvm, needs_kvm]

MIB = 1 << 20
QUEUE_GPA = 8 * MIB


class Bench:
    """A VM's process without the service round it."""

    def __init__(self, folder: Path, transport: str) -> None:
        self.image = folder / "root.raw"
        self.image.write_bytes(bytes(range(256)) * 4096)
        firmware = build_payload("idle", folder)
        (folder / "vm.toml").write_text(
            f'[firmware]\npath = "{firmware}"\n[serial]\nmode = "null"\n[memory]\nsize = "16M"\n[virtio]\n'
            f'transport = "{transport}"\n[[disk]]\nname = "root"\nformat = "raw"\npath = "root.raw"\nqueues = 2\n'
        )
        self.config = load_config("demo", str(folder / "vm.toml"))
        check_files(self.config)
        self.mover, self.events, self.timers, self.kvm = Mover(), EventQueue(), Timers(), Kvm()
        self.backends = self.open_backends()
        self.warnings: list[str] = []
        self.services = HostServices(
            self.kvm,
            self.events,
            self.timers,
            self.backends,
            on_input_room=lambda label: None,
            info=lambda text: None,
            warn=self.warnings.append,
        )

    def open_backends(self) -> Backends:
        log: Any = SimpleNamespace(info=lambda text: None, warning=lambda text: None)
        return Backends(self.config, Host("demo", log, self.mover, []))

    def close(self) -> None:
        self.backends.close()
        for part in (self.mover, self.events, self.timers, self.kvm):
            part.close()


@pytest.fixture(params=["pci", "mmio"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    install_kick_handler()
    bench = Bench(tmp_path, request.param)
    yield bench
    bench.close()


def start_driver(plug: Plugged, memory: GuestMemory) -> DriverQueue:
    """What a driver in the guest does with the registers, for the first virtqueue."""
    virtio = plug.transport.virtio
    if hasattr(plug.transport, "write_config"):
        plug.transport.write_config(4, b"\6\0")  # memory space, bus master
    with plug.lock:
        for status in (0, 1, 3):
            virtio.write_status(status)
        features = offered(virtio)
        for half in range(2):
            virtio.select_driver_features(half)
            virtio.write_driver_features(features >> 32 * half & 0xFFFF_FFFF)
        virtio.write_status(0x0B)
        memory.write(QUEUE_GPA, bytes(0x4000))
        queue = DriverQueue(memory, QUEUE_GPA, 64, features)
        virtio.set_queue_size(64)
        for ring, address in enumerate(queue.addresses):
            virtio.set_queue_address(ring, 0, address)
        virtio.set_queue_ready(True)
        virtio.write_status(DRIVER_READY)
        assert virtio.status == DRIVER_READY
    return queue


def ask(plug: Plugged, queue: DriverQueue, readable: list[bytes], writable: list[int]) -> bytes:
    queue.add(readable, writable)
    with plug.lock:
        plug.transport.virtio.notify(0)
    for _ in waiting():
        for _, _, data in queue.take_used():
            return data
    raise AssertionError("no answer came")


def test_a_machine_with_a_disk(bench: Bench) -> None:
    machine = builder.build(bench.config, bench.services, 1)
    machine.start()
    (plug,) = (device for device in machine.devices if device.label == "root")
    queue = start_driver(plug, machine.memory)
    assert ask(plug, queue, [header(0, 1)], [512, 1]) == bench.image.read_bytes()[512:1024] + OK
    assert ask(plug, queue, [header(OUT, 2), b"w" * 512], [1]) == OK
    with pytest.raises(HostFacilityMissing, match="disk root is in use"):
        bench.open_backends()

    machine.pause()
    tree = json.loads(json.dumps(state_tree.collect(machine, bench.kvm)))
    assert tree["devices"]["root"]["device"] == {"capacity": 2048}
    queue.add([header(0, 2)], [512, 1])  # for the machine that comes
    fd = os.dup(machine.memory.fd)
    mappings = [mmap.mmap(fd, region.size_bytes, offset=region.offset) for region in machine.memory.regions]
    regions = [Region(old.gpa, mapping) for old, mapping in zip(machine.memory.regions, mappings, strict=True)]
    machine.close()
    restored = builder.restore(bench.config, bench.services, tree, GuestMemory(regions, fd))
    restored.start()
    queue.memory = restored.memory
    for _ in waiting():
        taken = queue.take_used()
        if taken:
            break
    assert taken[0][2] == b"w" * 512 + OK
    os.truncate(bench.image, 2 * MIB)
    restored.reconfigure(bench.config.devices[-1])
    (plug,) = (device for device in restored.devices if device.label == "root")
    assert int.from_bytes(plug.transport.virtio.read_config(0, 8), "little") == 4096
    restored.close()
    assert bench.warnings == []
