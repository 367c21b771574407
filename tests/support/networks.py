"""A network card of ours with its threads at a real tap, worked by the driver-side virtqueue: no guest, no KVM."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from support.disks import DiskSlot, waiting
from support.guest_ram import MIB, guest_ram
from support.net_space import Wire
from support.timers import FakeTimers
from support.virtqueue import DriverQueue

from vmservice.config.sections.network import NetworkDevice
from vmservice.plug import network

MAC = bytes.fromhex("020000000001")
HEADER = bytes(12)


class NetSlot(DiskSlot):
    """`posted` is what the event loop would call, from any thread."""

    def __init__(self, tree: dict[str, Any] | None = None) -> None:
        super().__init__(tree, guest_ram((0, 4 * MIB)))
        self.label = "lan"
        self.posted: list[Callable[[], None]] = []
        self.timers = FakeTimers()
        self.call_later = self.timers.call_later
        self.has_posted = threading.Event()

    def post(self, callback: Callable[[], None]) -> None:
        self.posted.append(callback)
        self.has_posted.set()

    def run_posted(self) -> None:
        while self.posted:
            with self.lock:
                self.posted.pop(0)()


class Network:
    """The network of `section`, opened and plugged in; `queues` are its driver's after `start`. `wire` is the host."""

    def __init__(self, section: NetworkDevice, passed: dict[str, list[int]] | None = None, *, wire: bool = True) -> None:
        self.section = section
        given = passed or {}
        host = SimpleNamespace(vm_name="web", take_passed=lambda name: given.get(name, []))
        self.backend = network.open(section, host)  # type: ignore[arg-type]
        self.plug_in()
        if wire:
            self.wire = Wire(section.tap)

    def plug_in(self, tree: dict[str, Any] | None = None) -> None:
        self.slot = NetSlot(tree)
        plug = network.build(self.section, self.backend, self.slot)  # type: ignore[arg-type]
        assert isinstance(plug, network.NetworkPlug)
        self.plug = plug
        assert self.slot.driver is not None
        self.driver = self.slot.driver
        self.queues: list[DriverQueue] = []

    def start(self, features: int | None = None) -> None:
        self.plug.start()
        with self.slot.lock:
            self.queues = self.driver.start(features)
        if hasattr(self, "wire") and self.section.link == "up":
            self.wire.wait_running()

    def kick(self, index: int) -> None:
        with self.slot.lock:
            self.driver.kick(index)

    def give_buffers(self, count: int, size: int = 1600, pair: int = 0) -> None:
        for _ in range(count):
            self.queues[2 * pair].add([], [size])
        self.kick(2 * pair)

    def received(self, count: int = 1, pair: int = 0) -> list[bytes]:
        """That many frames, without headers, each of which is in one buffer; as soon as they are there."""
        taken: list[bytes] = []
        for _ in waiting():
            taken += [data[12:] for _, _, data in self.queues[2 * pair].take_used()]
            if len(taken) >= count:
                return taken
        raise AssertionError(f"{len(taken)} of {count} frames came")

    def send(self, frame: bytes, pair: int = 0, header: bytes = HEADER) -> None:
        self.queues[2 * pair + 1].add([header, frame])
        self.kick(2 * pair + 1)

    def sent(self, count: int = 1, pair: int = 0) -> None:
        """The device has given that many of them back."""
        left = count
        for _ in waiting():
            left -= len(self.queues[2 * pair + 1].take_used())
            if left <= 0:
                return
        raise AssertionError(f"{left} frames are not sent")

    def command(self, *parts: bytes) -> bytes:
        index = len(self.queues) - 1
        self.queues[index].add(parts, [1])
        self.kick(index)
        for _ in waiting():
            for _, _, answer in self.queues[index].take_used():
                return answer
        raise AssertionError("no answer came")

    def unplug(self) -> None:
        self.plug.close()
        self.slot.memory.close()

    def close(self) -> None:
        self.unplug()
        self.backend.close()
        if hasattr(self, "wire"):
            self.wire.close()


def section(tap: str = "vt-web", mac: bytes = MAC, **keys: Any) -> NetworkDevice:
    return NetworkDevice("lan", mac, tap=tap, **keys)
