"""A machine with a disk, from its configuration on: worked, paused, saved and restored, and its image kept from others."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.disks import OK, OUT, header, waiting
from support.kvm_guest import needs_kvm
from support.plugged_vm import PluggedVm, notify, plug_of, ram_of, start_driver
from support.virtqueue import DriverQueue

from vmservice.board.slot import Plugged
from vmservice.errors import HostFacilityMissing
from vmservice.vm import builder, state_tree

pytestmark = [pytest.mark.kvm, needs_kvm]

MIB = 1 << 20
QUEUE_GPA = 8 * MIB


class Bench(PluggedVm):
    def __init__(self, folder: Path, transport: str) -> None:
        self.image = folder / "root.raw"
        self.image.write_bytes(bytes(range(256)) * 4096)
        super().__init__(folder, transport, '[[disk]]\nname = "root"\nformat = "raw"\npath = "root.raw"\nqueues = 2\n')


@pytest.fixture(params=["pci", "mmio"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path, request.param)
    yield bench
    bench.close()


def ask(plug: Plugged, queue: DriverQueue, readable: list[bytes], writable: list[int]) -> bytes:
    queue.add(readable, writable)
    notify(plug)
    for _ in waiting():
        for _, _, data in queue.take_used():
            return data
    raise AssertionError("no answer came")


def test_a_machine_with_a_disk(bench: Bench) -> None:
    machine = bench.build()
    machine.start()
    plug = plug_of(machine, "root")
    queue = start_driver(plug, machine.memory)
    assert ask(plug, queue, [header(0, 1)], [512, 1]) == bench.image.read_bytes()[512:1024] + OK
    assert ask(plug, queue, [header(OUT, 2), b"w" * 512], [1]) == OK
    with pytest.raises(HostFacilityMissing, match="disk root is in use"):
        bench.open_backends()

    machine.pause()
    tree = json.loads(json.dumps(state_tree.collect(machine, bench.kvm)))
    assert tree["devices"]["root"]["device"] == {"capacity": 2048}
    queue.add([header(0, 2)], [512, 1])  # for the machine that comes
    memory = ram_of(machine)
    machine.close()
    restored = builder.restore(bench.config, bench.services, tree, memory)
    restored.start()
    queue.memory = restored.memory
    for _ in waiting():
        taken = queue.take_used()
        if taken:
            break
    assert taken[0][2] == b"w" * 512 + OK
    os.truncate(bench.image, 2 * MIB)
    restored.reconfigure(bench.config.devices[-1])
    plug = plug_of(restored, "root")
    assert int.from_bytes(plug.transport.virtio.read_config(0, 8), "little") == 4096
    restored.close()
    assert bench.warnings == []
