"""A whole machine as a tree of plain values, written as JSON, and a machine that goes on from it over the same memory."""

from __future__ import annotations

import json
import mmap
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.backends import SinkConsole, fake_backends
from support.kvm_guest import Guest, needs_kvm, running_guest
from support.payload import BANNER

from vmservice.config.core import ConsoleConfig, MemoryConfig
from vmservice.config.sections.balloon import BalloonDevice
from vmservice.config.sections.console import ConsoleDevice
from vmservice.config.sections.rng import RngDevice
from vmservice.errors import Busy
from vmservice.memory.guest_memory import GuestMemory, Region
from vmservice.vm import builder, state_tree
from vmservice.vm.host_services import HostServices
from vmservice.vm.machine import KvmMachine

pytestmark = [pytest.mark.kvm, needs_kvm]

MIB = 1 << 20
Payloads = Callable[[str], Path]


def same_memory(memory: GuestMemory) -> GuestMemory:
    """The same pages, mapped once more: guest memory is a memfd."""
    fd, offset, regions = os.dup(memory.fd), 0, []
    for region in memory.regions:
        mapping = mmap.mmap(fd, region.size_bytes, flags=mmap.MAP_SHARED, offset=offset)
        regions.append(Region(region.gpa, mapping, mmap.MADV_REMOVE))
        offset += region.size_bytes
    return GuestMemory(regions, fd)


def hand_over(guest: Guest) -> KvmMachine:
    """Stop the guest's machine, and go on with another one, as a successor of the process would."""
    old = guest.machines[-1]
    old.pause()
    text = json.dumps(state_tree.collect(old, guest.kvm))
    memory = same_memory(old.memory)
    old.close()
    new = builder.restore(guest.config, _host(guest), json.loads(text), memory)
    # The Vm goes on with it as if nothing had been.
    guest.machines.append(new)
    guest.vm._holder.machine = new
    new.start()
    return new


def beats(data: bytes) -> list[int]:
    return [int(number) for number in re.findall(rb"beat (\d+)\n", data)]


@contextmanager
def guest_of(payloads: Payloads, variant: str, vcpus: int = 1, max_vcpus: int = 0) -> Iterator[Guest]:
    memory = MemoryConfig(16 * MIB, shared=True)
    with running_guest(payloads(variant), vcpus=vcpus, max_vcpus=max_vcpus, memory=memory) as guest:
        guest.output.wait_for(BANNER)
        yield guest


@pytest.mark.parametrize(("variant", "vcpus"), [("beat", 1), ("busy", 1), ("smp", 2)])
def test_no_beat_is_lost_over_ten_handovers(payloads: Payloads, variant: str, vcpus: int) -> None:
    with guest_of(payloads, variant, vcpus) as guest:
        seen = guest.output.wait_for(b"beat 1\n")
        for _ in range(10):
            hand_over(guest)
            seen = guest.output.wait_for(b"beat ", seen)
        guest.output.wait_for(b"\n", seen)
        numbers = beats(guest.output.data)
        assert numbers == list(range(1, len(numbers) + 1))
        assert guest.output.data.count(BANNER) == 1


def test_what_is_typed_goes_along(payloads: Payloads) -> None:
    with guest_of(payloads, "echo") as guest:
        for letter in b"123456":
            seen = len(guest.output.data)
            guest.tell(bytes((letter,)))
            hand_over(guest)
            guest.output.wait_for(bytes((letter,)), seen)


def test_a_machine_without_a_break_is_the_same_as_before(payloads: Payloads) -> None:
    """Taking the state changes nothing: twice in a row is the same, and the guest goes on."""
    with guest_of(payloads, "idle") as guest:
        machine = guest.machines[-1]
        machine.pause()
        first, second = (state_tree.collect(machine, guest.kvm) for _ in range(2))
        for tree in (first, second):
            for vcpu in tree["vcpus"].values():  # time goes on
                vcpu.pop("msrs")
                vcpu.pop("lapic")
            tree["kvm"].pop("clock")
        assert first == second
        machine.resume()


def test_devices_are_built_from_the_tree_and_answer_the_same(payloads: Payloads) -> None:
    with guest_of(payloads, "idle") as guest:
        devices = (ConsoleDevice(ConsoleConfig("null", None)), RngDevice(), BalloonDevice(4 * MIB))
        for transport in ("pci", "mmio"):
            guest.vm.shutdown()
            guest.config.transport, guest.config.devices = transport, devices
            guest.machines.clear()
            guest.vm._holder._build = lambda count: guest._remember(builder.build(guest.config, _host(guest), count))
            guest.vm.boot()
            before = guest.machines[-1]
            before.pause()
            expected = {device.label: device.collect() for device in before.devices}
            slots = before.slots.collect() if before.slots is not None else None
            after = hand_over(guest)
            after.pause()
            assert {device.label: device.collect() for device in after.devices} == expected
            assert after.slots is not None
            assert after.slots.collect() == slots
            after.resume()


def _host(guest: Guest) -> HostServices:
    return HostServices(
        guest.kvm,
        guest.events,
        guest.timers,
        fake_backends(SinkConsole(guest.output.write), hvc=[SinkConsole(lambda data: None, "hvc")]),
        on_input_room=lambda console: None,
        info=guest.messages.append,
        warn=guest.warnings.append,
    )


def test_a_resize_under_way_is_waited_for(payloads: Payloads) -> None:
    with guest_of(payloads, "idle", 1, 2) as guest:
        guest.vm.resize(2)
        machine = guest.machines[-1]
        machine.pause()
        with pytest.raises(Busy, match="a Resize is under way"):
            state_tree.collect(machine, guest.kvm)
        machine.resume()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": 2}, "the state of a machine of model 2; 1 is known here"),
        ({"devices": {"disk0": {}}}, "the machine has no devices, and this is the state of one with disk0"),
    ],
)
def test_a_tree_of_another_machine_is_refused(payloads: Payloads, change: dict[str, object], words: str) -> None:
    with guest_of(payloads, "idle") as guest:
        machine = guest.machines[-1]
        machine.pause()
        tree = {**state_tree.collect(machine, guest.kvm), **change}
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(ValueError, match=words):
            builder.restore(guest.config, _host(guest), tree, same_memory(machine.memory))
        assert len(os.listdir("/proc/self/fd")) == before
        machine.resume()
