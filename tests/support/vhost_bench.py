"""Virtqueues that the kernel serves, with a driver on one side and a double of the kernel on the other."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator

from support.guest_ram import MIB, guest_ram
from support.vhost_double import RECEIVE, SEND, VhostDevice, VhostKernel
from support.virtqueue import Driver, DriverQueue

from vmservice.board.vhost_rings import VhostRings
from vmservice.devices.state import DeviceState
from vmservice.devices.virtio.queue import Chain, Queue
from vmservice.devices.virtio.transport import VirtioTransport
from vmservice.errors import GuestError
from vmservice.host import vhost
from vmservice.host.vhost import VhostNet, VhostVsock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.devices.virtio.device import DriverPort

TIMEOUT_SEC = 60.0
CONTROL = 4
NEEDS_RESET = 0x40
MQ = 1 << 22


class Device:
    """`queues` virtqueues, none of which it serves where it is notified."""

    device_type = 1
    features = MQ

    def __init__(self, queues: int) -> None:
        self.state = DeviceState()
        self.queue_max_sizes = (16,) * queues

    def read_config(self, offset: int, size: int) -> bytes:
        return bytes(size)

    def write_config(self, offset: int, data: bytes) -> None: ...

    def activate(self, queues: list[Queue], interrupt: DriverPort, features: int) -> None: ...

    def reset(self) -> None: ...

    def notify(self, index: int) -> None:
        raise AssertionError("the ring owner is notified instead")


class Bench:
    """A driver and a network of two pairs with a control queue behind them, or sockets with an event queue."""

    def __init__(self, kernel: VhostKernel, kind: str) -> None:
        self.kernel = kernel
        self.memory = guest_ram((0, 2 * MIB), (4 << 30, MIB))
        self.bugs: list[Exception] = []
        self.commands: list[bytes] = []
        self.gate = threading.Event()
        self.gate.set()
        self.tap = os.memfd_create("tap")
        self.vhosts: list[vhost.Vhost] = []
        for _ in range(2 if kind == "vhost-net" else 1):
            fd = kernel.open(kind)
            self.vhosts.append(VhostNet(fd, "network0", self.tap) if kind == "vhost-net" else VhostVsock(fd, "vsock"))
        for one in self.vhosts:
            one.look()
        self.queues = RINGS_OF[kind]
        self.rings = self.owner()
        self.driver = Driver(Device(self.queues), self.memory, rings=self.rings)

    def owner(self) -> VhostRings:
        rings = VhostRings(
            "network0",
            self.queues,
            self.vhosts,
            self.memory,
            serve=self.serve,
            in_use=lambda features: len(self.vhosts) if features & MQ else 1,
            bug=self.bugs.append,
        )
        rings.begin()
        return rings

    def serve(self, index: int, queue: Queue) -> bool:
        return queue.drain(self.answer)

    def answer(self, chain: Chain) -> int:
        command = chain.read(100)
        self.commands.append(command)
        if command == b"wrong":
            raise GuestError("there is no such command")
        assert self.gate.wait(TIMEOUT_SEC)
        return chain.write(b"\0")

    @property
    def transport(self) -> VirtioTransport:
        return self.driver.transport

    @property
    def devices(self) -> list[VhostDevice]:
        return self.kernel.devices

    def start(self, features: int | None = None) -> list[DriverQueue]:
        with self.transport.lock:
            return self.driver.start(features)

    def send(self, data: bytes, index: int = SEND) -> None:
        self.driver.queues[index].add([data], [])
        self.driver.kick(index)

    def make_room(self, index: int = RECEIVE) -> None:
        self.driver.queues[index].add([], [64])
        self.driver.kick(index)

    def received(self, index: int = RECEIVE) -> bytes:
        for _ in wait():
            for _, _, data in self.driver.queues[index].take_used():
                return data
        raise AssertionError(f"nothing came; {self.driver.warnings} {self.bugs}")

    def command(self, data: bytes, index: int = CONTROL) -> None:
        self.driver.queues[index].add([data], [1])
        self.driver.kick(index)

    def broken(self) -> str:
        """Wait until the driver is told that the device needs a reset; the warning."""
        for _ in wait():
            self.driver.run_posted()
            if self.transport.status & NEEDS_RESET:
                return self.driver.warnings[-1]
        raise AssertionError(f"the device is whole; {self.bugs}")

    def close(self) -> None:
        self.gate.set()
        self.transport.close()
        self.rings.close()
        for one in self.vhosts:
            one.close()
        os.close(self.tap)
        self.memory.close()
        assert self.bugs == []


RINGS_OF = {"vhost-net": 5, "vhost-vsock": 3}


def wait() -> Iterator[None]:
    deadline = time.monotonic() + TIMEOUT_SEC
    while time.monotonic() < deadline:
        yield
        time.sleep(0.001)


def until(holds: Callable[[], object]) -> None:
    assert any(holds() for _ in wait())
