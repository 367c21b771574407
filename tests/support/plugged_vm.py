"""What a VM's process holds for its machines, without the service round it; and a driver for a device of one."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from support.payload import build as build_payload
from support.virtqueue import DRIVER_READY, DriverQueue, offered

from vmservice.board.slot import Plugged
from vmservice.board.timers import Timers
from vmservice.config.load import check_files, load_config
from vmservice.host.consoles.mover import Mover
from vmservice.kvm.system import Kvm
from vmservice.memory.guest_memory import GuestMemory, Region
from vmservice.plug.backend import Backends, Host
from vmservice.vm import builder
from vmservice.vm.events import EventQueue
from vmservice.vm.host_services import HostServices
from vmservice.vm.machine import KvmMachine
from vmservice.vm.vcpu import install_kick_handler

MIB = 1 << 20
QUEUE_GPA = 8 * MIB


class PluggedVm:
    """The VM `demo` of 16 MiB, whose firmware is idle, with the devices of `sections`; relative paths start at `folder`."""

    def __init__(self, folder: Path, transport: str, sections: str) -> None:
        install_kick_handler()
        firmware = build_payload("idle", folder)
        (folder / "vm.toml").write_text(
            f'[firmware]\npath = "{firmware}"\n[serial]\nmode = "null"\n[memory]\nsize = "16M"\n[virtio]\n'
            f'transport = "{transport}"\n{sections}'
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

    def build(self) -> KvmMachine:
        return builder.build(self.config, self.services, 1)

    def close(self) -> None:
        self.backends.close()
        for part in (self.mover, self.events, self.timers, self.kvm):
            part.close()


def ram_of(machine: KvmMachine) -> GuestMemory:
    """The same RAM, mapped once more, for the machine that goes on when this one is closed."""
    fd = os.dup(machine.memory.fd)
    regions = [region for region in machine.memory.regions if region.is_ram]
    return GuestMemory([Region(ram.gpa, mmap.mmap(fd, ram.size_bytes, offset=ram.offset)) for ram in regions], fd)


def plug_of(machine: KvmMachine, name: str) -> Plugged:
    (plug,) = (device for device in machine.devices if device.label == name)
    return plug


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


def notify(plug: Plugged) -> None:
    with plug.lock:
        plug.transport.virtio.notify(0)
