"""Each virtio device with everything around it, for tests that do to all of them what no driver would do."""

from __future__ import annotations

import random
from collections.abc import Callable

from support.timers import FakeTimers

from vmservice.devices.state import DeviceState
from vmservice.devices.virtio.balloon import Balloon, BalloonState
from vmservice.devices.virtio.console import Console, ConsoleState, Port
from vmservice.devices.virtio.rng import Rng, RngState
from vmservice.memory.guest_memory import GuestMemory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from vmservice.devices.virtio.device import VirtioDevice

    class StatefulDevice(VirtioDevice, Protocol):
        @property
        def state(self) -> DeviceState: ...


class VirtioRig:
    """`said` is what the device did to the host, in order. `poke` does something from the host's side."""

    device: StatefulDevice
    state_class: type[DeviceState]

    def __init__(self) -> None:
        self.said: list[object] = []

    def poke(self, rng: random.Random) -> None:
        raise NotImplementedError

    def settle(self) -> None:
        """Time passes, until nothing that comes depends on when it began."""


class ConsoleRig(VirtioRig):
    state_class = ConsoleState

    def __init__(self, memory: GuestMemory, state: ConsoleState | None = None) -> None:
        super().__init__()
        ports = [Port(self.said.append, name="a"), Port(self.said.append, is_console=False)]
        self.device: Console = Console(ports, state)

    def poke(self, rng: random.Random) -> None:
        port = rng.randrange(2)
        taken = self.device.receive(port, rng.randbytes(rng.randrange(40)))
        assert 0 <= taken <= 40
        self.said.append(taken)
        self.device.resize(rng.randrange(1 << 16), rng.randrange(1 << 16), port)
        self.device.set_open(port, rng.random() < 0.5)


class RngRig(VirtioRig):
    state_class = RngState

    def __init__(self, memory: GuestMemory, state: RngState | None = None) -> None:
        super().__init__()
        self.timers = FakeTimers()
        self.device: Rng = Rng(self.source, self.timers.call_later, state, bytes_per_sec=1000, clock=self.timers.now)

    def source(self, size: int) -> bytes:
        self.said.append(size)
        return bytes(size)

    def poke(self, rng: random.Random) -> None:
        self.timers.advance(rng.choice((0.01, 0.1)))

    def settle(self) -> None:
        self.timers.advance(10)


class BalloonRig(VirtioRig):
    state_class = BalloonState

    def __init__(self, memory: GuestMemory, state: BalloonState | None = None) -> None:
        super().__init__()
        self.memory = memory
        self.device: Balloon = Balloon(memory, self.discard, state)

    def discard(self, gpa: int, size_bytes: int) -> None:
        assert self.memory.contains(gpa, size_bytes)
        assert size_bytes
        assert not gpa % 4096 and not size_bytes % 4096
        self.said.append((gpa, size_bytes))

    def poke(self, rng: random.Random) -> None:
        self.device.set_target_bytes(rng.randrange(self.memory.size_bytes))
        self.device.request_statistics()
        self.said.append(self.device.statistics())


CASES: dict[str, Callable[..., VirtioRig]] = {"console": ConsoleRig, "entropy": RngRig, "balloon": BalloonRig}
