"""A machine with a network, from its configuration on: frames with and without eventfds of KVM, paused, saved and restored."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.disks import waiting
from support.kvm_guest import needs_kvm
from support.net_space import Wire, frame, make_tap, net_space, number_of
from support.plugged_vm import PluggedVm, notify, plug_of, start_driver

from vmservice.memory.guest_memory import GuestMemory, Region
from vmservice.plug.network import NetworkPlug
from vmservice.vm import builder, state_tree

pytestmark = [pytest.mark.kvm, needs_kvm]

MIB = 1 << 20


class Bench(PluggedVm):
    def __init__(self, folder: Path, transport: str) -> None:
        super().__init__(folder, transport, '[[network]]\nname = "lan"\ntap = "vt-web"\nmac = "02:00:00:00:00:01"\n')


@pytest.fixture(params=["pci", "mmio"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    with net_space():
        make_tap("vt-web")
        bench = Bench(tmp_path, request.param)
        yield bench
        bench.close()


def test_a_machine_with_a_network(bench: Bench) -> None:
    machine = bench.build()
    machine.start()
    plug = plug_of(machine, "lan")
    queue = start_driver(plug, machine.memory)
    wire = Wire("vt-web")
    wire.wait_running()
    for _ in range(8):
        queue.add([], [2000])
    notify(plug)
    for number in range(3):
        wire.send(frame(number))
    taken: list[int] = []
    for _ in waiting():
        taken += [number_of(data[12:]) for _, _, data in queue.take_used()]
        if len(taken) == 3:
            break
    assert taken == [0, 1, 2]

    machine.pause()
    wire.send(frame(3))
    tree = json.loads(json.dumps(state_tree.collect(machine, bench.kvm)))
    saved = tree["devices"]["lan"]["device"]
    assert (saved["mac"], saved["announces"]) == ({"bytes": "020000000001"}, False)
    fd = os.dup(machine.memory.fd)
    mappings = [mmap.mmap(fd, region.size_bytes, offset=region.offset) for region in machine.memory.regions]
    regions = [Region(old.gpa, mapping) for old, mapping in zip(machine.memory.regions, mappings, strict=True)]
    machine.close()
    restored = builder.restore(bench.config, bench.services, tree, GuestMemory(regions, fd))
    restored.start()
    plug = plug_of(restored, "lan")
    assert isinstance(plug, NetworkPlug)
    assert plug.device.state.announces is True, "switches are to learn where the guest is now"
    queue.memory = restored.memory
    for _ in waiting():
        taken += [number_of(data[12:]) for _, _, data in queue.take_used()]
        if len(taken) == 4:
            break
    assert taken == [0, 1, 2, 3], "what came meanwhile has waited in the tap"
    assert plug.stats()["received"] == 1
    restored.close()
    wire.close()
    assert bench.warnings == []
