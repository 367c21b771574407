"""A machine with persistent memory, from its configuration on: a guest's own instructions reach the file, and it is kept."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.disks import IN, header, waiting
from support.kvm_guest import needs_kvm, wait_until
from support.plugged_vm import PluggedVm, notify, plug_of, ram_of, start_driver
from support.virtqueue import NEXT, WRITE, DriverQueue

from vmservice.arch.x86_64 import gdt, layout, paging, registers
from vmservice.arch.x86_64.boot_params import e820
from vmservice.board.pci_slots import PciSlots
from vmservice.board.slot import Plugged
from vmservice.errors import ConfigError, HostError, KvmError
from vmservice.kvm import abi
from vmservice.vm import builder, state_tree
from vmservice.vm.events import EventKind
from vmservice.vm.machine import KvmMachine

pytestmark = [pytest.mark.kvm, needs_kvm]

MIB = 1 << 20
GIB = 1 << 30
QUEUE_GPA = 8 * MIB
TABLE, CODE = 0x10_0000, 0x11_0000


class Bench(PluggedVm):
    """`data` may be written to, `image` may not."""

    def __init__(self, folder: Path, transport: str) -> None:
        self.data, self.image, self.disk = folder / "data.img", folder / "image.img", folder / "disk.raw"
        self.data.write_bytes(b"data".ljust(2 * MIB, b"\0"))
        self.image.write_bytes(b"image".ljust(4 * MIB, b"\0"))
        self.image.chmod(0o400)
        self.disk.write_bytes(b"disk" * 1024)
        super().__init__(
            folder,
            transport,
            '[[pmem]]\nname = "data"\npath = "data.img"\n[[pmem]]\nname = "image"\npath = "image.img"\nreadonly = true\n'
            '[[disk]]\nname = "disk"\nformat = "raw"\npath = "disk.raw"\n',
        )


@pytest.fixture(params=["pci", "mmio"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path, request.param)
    yield bench
    bench.close()


def place_of(machine: KvmMachine, name: str) -> tuple[int, int]:
    """Start and size, as a driver reads them."""
    start, size = struct.unpack("<QQ", plug_of(machine, name).transport.virtio.read_config(0, 16))
    return start, size


def run_guest(machine: KvmMachine, code: str, **values: int) -> abi.kvm_regs:
    """Have the machine's vCPU, which nobody runs, do a few instructions in long mode, up to an OUT; its registers then.

    `values` are the registers at the beginning. 4 to 6 GiB are mapped where they are.
    """
    memory, vcpu = machine.memory, machine.vcpu_set.first
    gdt.write_gdt(memory, gdt.LONG_MODE)
    paging.write_page_tables(memory)
    for number in range(2):
        large_pages = (4 * GIB + number * GIB + (index << 21) | 0x83 for index in range(512))
        memory.write(TABLE + 0x1000 * number, struct.pack("<512Q", *large_pages))
        memory.write(layout.PDPT + 8 * (4 + number), struct.pack("<Q", TABLE + 0x1000 * number | 3))
    memory.write(CODE, bytes.fromhex(code) + b"\xe6\x80")  # out 0x80, al
    registers.set_long_mode_registers(vcpu, CODE)
    regs = vcpu.regs()
    for name, value in values.items():
        setattr(regs, name, value)
    vcpu.set_regs(regs)
    assert vcpu.run() == abi.KVM_EXIT_IO
    return vcpu.regs()


EXCHANGE = "48 8b 07 48 89 37"  # mov rax, [rdi]; mov [rdi], rsi


def text(word: bytes) -> int:
    return int.from_bytes(word.ljust(8, b"\0"), "little")


def flush(plug: Plugged, queue: DriverQueue) -> bytes:
    queue.add([bytes(4)], [4])
    notify(plug)
    for _ in waiting():
        for _, _, data in queue.take_used():
            return data
    raise AssertionError("no answer came")


def test_where_it_is(bench: Bench) -> None:
    """Behind RAM, in no memory map, below the addresses of PCI, and seen by all devices."""
    machine = bench.build()
    assert (place_of(machine, "data"), place_of(machine, "image")) == ((4 * GIB, 2 * MIB), (5 * GIB, 4 * MIB))
    assert machine.board.resources.mmio64.base == 6 * GIB
    assert max(start + size for start, size, _ in e820(machine.memory)) <= 4 * GIB
    assert machine.memory.size_bytes == 16 * MIB
    assert machine.memory.read(4 * GIB, 4) == b"data"
    data = machine.memory.regions[1]
    assert os.path.samestat(os.fstat(data.fd), bench.data.stat()), "another process can map it"
    assert machine.memory.regions[2].fd == -1, "nobody else can have what the guest writes here"
    if isinstance(machine.slots, PciSlots):
        reserved = machine.slots.bus._bar_map._reserved
        assert (4 * GIB, 2 * MIB, "a device's memory") in reserved
        assert (0, 16 * MIB, "RAM") in reserved
    machine.close()


def test_a_guest_reads_and_writes_it(bench: Bench) -> None:
    machine = bench.build()
    for name, before in (("data", b"data"), ("image", b"image")):
        start, size = place_of(machine, name)
        assert run_guest(machine, EXCHANGE, rdi=start, rsi=text(b"guest")).rax == text(before)
        assert run_guest(machine, EXCHANGE, rdi=start + size - 8, rsi=text(b"the end")).rax == 0
        assert run_guest(machine, EXCHANGE, rdi=start, rsi=0).rax == text(b"guest")
    assert bench.data.read_bytes() == bytes(2 * MIB - 8) + b"the end\0"
    assert bench.image.read_bytes() == b"image".ljust(4 * MIB, b"\0")
    machine.close()

    machine = bench.build()
    assert machine.memory.read(place_of(machine, "data")[0] + 2 * MIB - 8, 7) == b"the end"
    assert machine.memory.read(place_of(machine, "image")[0], 5) == b"image", "nothing of it is kept"
    machine.close()
    assert bench.warnings == []


@pytest.mark.parametrize("name", ["data", "image"])
def test_a_disk_is_read_straight_into_it(bench: Bench, name: str) -> None:
    """Linux does so for a file on a file system with DAX that is opened with O_DIRECT, or mapped."""
    machine = bench.build()
    machine.start()
    plug = plug_of(machine, "disk")
    queue = start_driver(plug, machine.memory)
    start, _ = place_of(machine, name)
    queue.describe(0, queue.place(header(IN, 1)), 16, NEXT, 1)
    queue.describe(1, start + 512, 1024, NEXT | WRITE, 2)
    queue.describe(2, queue.place(b"\xff"), 1, WRITE)
    queue.make_available(0)
    notify(plug)
    for _ in waiting():
        if queue.used_index():
            break
    assert machine.memory.read(start + 512, 1028) == b"disk" * 256 + bytes(4)
    machine.close()
    assert bench.warnings == []


def test_a_balloon_gives_none_of_it_away(bench: Bench) -> None:
    """A hole in the file would be what is left."""
    machine = bench.build()
    for name in ("data", "image"):
        machine.memory.discard(*place_of(machine, name))
    machine.memory.close(lambda: None)
    assert bench.data.read_bytes()[:4] == b"data"
    machine.close()


def test_it_is_flushed_saved_and_goes_on(bench: Bench) -> None:
    machine = bench.build()
    machine.start()
    plug = plug_of(machine, "data")
    queue = start_driver(plug, machine.memory)
    start, _ = place_of(machine, "data")
    machine.memory.write(start, b"kept")
    assert flush(plug, queue) == bytes(4)

    machine.pause()
    tree = json.loads(json.dumps(state_tree.collect(machine, bench.kvm)))
    assert tree["devices"]["data"]["device"] == {"start": 4 * GIB, "size": 2 * MIB}
    assert tree["memory"] == [[0, 16 * MIB]]
    queue.add([bytes(4)], [4])  # for the machine that comes
    memory = ram_of(machine)
    machine.close()
    # As a machine of another order would have it: the guest knows the address.
    bench.config.devices = bench.config.devices[::-1]
    restored = builder.restore(bench.config, bench.services, tree, memory)
    restored.start()
    assert place_of(restored, "data") == (4 * GIB, 2 * MIB)
    assert restored.memory.read(4 * GIB, 4) == b"kept"
    assert restored.memory.read(5 * GIB, 5) == b"image"
    queue.memory = restored.memory
    for _ in waiting():
        taken = queue.take_used()
        if taken:
            break
    assert taken[0][2] == bytes(4)
    restored.close()
    assert bench.data.read_bytes()[:4] == b"kept"
    assert bench.warnings == []


def test_a_file_of_another_size_is_not_what_the_state_is_of(bench: Bench) -> None:
    machine = bench.build()
    machine.start()
    machine.pause()
    tree = state_tree.collect(machine, bench.kvm)
    memory = ram_of(machine)
    machine.close()
    os.truncate(bench.data, 4 * MIB)
    with pytest.raises(
        HostError, match=r"^pmem data: .*/data.img has 4194304 bytes, and had 2097152 when the state was taken$"
    ):
        builder.restore(bench.config, bench.services, tree, memory)
    larger = bench.build()
    assert place_of(larger, "data") == (4 * GIB, 4 * MIB), "a new machine has what there is now"
    larger.close()


@pytest.mark.parametrize("name", ["data", "image"])
def test_a_file_that_is_cut_short_ends_its_guest_with_a_sentence(bench: Bench, name: str) -> None:
    machine = bench.build()
    machine.start()
    file = bench.data if name == "data" else bench.image
    os.truncate(file, 4096)
    event = wait_until(lambda: next(iter(bench.events.drain()), None), "the guest goes on")
    assert (event.source, event.kind) == (machine, EventKind.ERROR)
    assert event.detail == f"the guest's memory has lost pages; somebody has cut short {file}, which is its pmem {name}"
    machine.close()
    with pytest.raises(ConfigError, match=re.escape(f"pmem {name}: {file} has 4096 bytes; expected a multiple of 2 MiB")):
        bench.build()


def test_why_a_vcpu_failed_is_said(bench: Bench) -> None:
    """It may meet the lost page before anybody is told that the file is shorter."""
    machine = bench.build()
    os.truncate(bench.data, 4096)
    machine._guest.failed(KvmError("KVM_RUN failed for vCPU 0: Bad address"))
    (event,) = bench.events.drain()
    said = f"KVM_RUN failed for vCPU 0: Bad address; somebody has cut short {bench.data}, which is its pmem data"
    assert event.detail == said
    machine.close()


def test_the_last_page_of_the_processors_reach(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmservice.vm.builder.physical_address_bits", lambda _: 32)
    with pytest.raises(
        ConfigError, match=r"vm\.toml: memory and the memory of devices would end at 0x180000000, but .* 32 address bits"
    ):
        bench.build()
