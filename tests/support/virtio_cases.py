"""Each virtio device with everything around it, for tests that do to all of them what no driver would do."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable, Iterator, Sequence

from support.timers import FakeTimer, FakeTimers

from vmservice.board.block_server import BlockServer
from vmservice.board.net_server import FRAME_MAX_BYTES, Pair
from vmservice.devices.state import DeviceState
from vmservice.devices.virtio.balloon import Balloon, BalloonState
from vmservice.devices.virtio.block import Block, BlockShape, BlockState, Request
from vmservice.devices.virtio.console import Console, ConsoleState, Port
from vmservice.devices.virtio.net import Net, NetState
from vmservice.devices.virtio.pmem import Pmem, PmemState
from vmservice.devices.virtio.rng import Rng, RngState
from vmservice.devices.virtio.vsock import Vsock, VsockState
from vmservice.memory.guest_memory import GuestMemory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from vmservice.devices.virtio.device import DriverPort, VirtioDevice
    from vmservice.devices.virtio.queue import Queue

    class StatefulDevice(VirtioDevice, Protocol):
        @property
        def state(self) -> DeviceState: ...


class VirtioRig:
    """`said` is what the device did to the host, in order. `poke` does something from the host's side."""

    device: StatefulDevice
    state_class: type[DeviceState]
    answers_more_than = 3  # of a thousand random accesses

    def __init__(self) -> None:
        self.said: list[object] = []

    def poke(self, rng: random.Random) -> None:
        raise NotImplementedError

    def request(self, rng: random.Random) -> tuple[bytes, int]:
        """What the device is to read, and how many bytes it may write, in a request of its kind; nothing for no request."""
        return b"", 0

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
        self.device: Rng = Rng(self.source, self.call_later, state, bytes_per_sec=1000, clock=self.timers.now)

    def call_later(self, delay_sec: float, callback: Callable[[], None]) -> FakeTimer:
        """All times are such as a float has exactly: two rigs whose clocks differ are to give the same away."""
        return self.timers.call_later(math.ceil(delay_sec * 1024) / 1024, callback)

    def source(self, size: int) -> bytes:
        self.said.append(size)
        return bytes(size)

    def poke(self, rng: random.Random) -> None:
        self.timers.advance(rng.choice((1 / 128, 1 / 8)))

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


class InlineBlock(Block):
    """Served where it is notified, by the same server that a ring owner's threads call."""

    server: BlockServer
    queues: Sequence[Queue] = ()

    def activate(self, queues: list[Queue], interrupt: DriverPort, features: int) -> None:
        super().activate(queues, interrupt, features)
        self.queues, self.port = queues, interrupt

    def reset(self) -> None:
        super().reset()
        self.queues = ()

    def notify(self, index: int) -> None:
        if self.queues and self.server.serve(index, self.queues[index]):
            self.port.interrupt_queue(index)


class BlockRig(VirtioRig):
    """A disk of 64 sectors, each of which reads as its number, whatever is written; the host cannot use the 13th."""

    state_class = BlockState

    def __init__(self, memory: GuestMemory, state: BlockState | None = None) -> None:
        super().__init__()
        shape = BlockShape(physical_bytes=4096, queues=2, serial=b"rig")
        self.device: InlineBlock = InlineBlock(shape, state or BlockState(64))
        self.device.server = BlockServer(self.device, [self, self], lambda kind, number: self.said.append((kind, number)))

    in_flight = 0

    def request(self, rng: random.Random) -> tuple[bytes, int]:
        if rng.random() < 0.3:
            return b"", 0
        kind = rng.choice((0, 1, 4, 8, 11, 13, rng.randrange(1 << 32)))
        head = struct.pack("<IIQ", kind, 0, rng.choice((rng.randrange(130), rng.randrange(1 << 64))))
        if kind == 1:
            return head + rng.randbytes(rng.choice((0, 512, 1024, 100))), 1
        if kind in (11, 13):
            sectors = rng.choice((0, 1, 8, rng.randrange(1 << 32)))
            return head + struct.pack("<QII", rng.randrange(64), sectors, rng.randrange(3)), 1
        return head, rng.choice((1, 21, 513, 1025, 1000))

    def push(self) -> None:
        """Everything is done at once."""

    def take_done(self) -> Iterator[tuple[Request, int]]:
        return iter(())

    def read(self, token: Request, views: Sequence[memoryview], offset: int, length: int) -> int:
        self.check(views, offset, length)
        self.said.append(("read", offset, length))
        for view in views:
            view[:] = bytes((offset // 512,)) * len(view)
        return 5 * (offset == 13 * 512)

    def write(self, token: Request, views: Sequence[memoryview], offset: int, length: int, durable: bool) -> int:
        self.check(views, offset, length)
        self.said.append(("write", offset, b"".join(views), durable))
        return 5 * (offset == 13 * 512)

    def check(self, views: Sequence[memoryview], offset: int, length: int) -> None:
        assert length and length == sum(map(len, views))
        assert not offset % 512 and not length % 512
        assert offset + length <= 64 * 512

    def flush(self, token: Request) -> int:
        self.said.append("flush")
        return 0

    def discard(self, token: Request, offset: int, length: int) -> int:
        assert length and offset + length <= 64 * 512
        self.said.append(("discard", offset, length))
        return 95  # EOPNOTSUPP

    def write_zeroes(self, token: Request, offset: int, length: int, unmap: bool, durable: bool) -> int:
        assert length and offset + length <= 64 * 512
        self.said.append(("zero", offset, length, unmap, durable))
        return 0

    def poke(self, rng: random.Random) -> None:
        self.device.resize(rng.randrange(1, 65))


class InlinePmem(Pmem):
    """Served where it is notified, as its ring owner's thread would."""

    queue: Queue | None = None

    def activate(self, queues: Sequence[Queue], interrupt: DriverPort, features: int) -> None:
        self.queue, self.port = queues[0], interrupt

    def reset(self) -> None:
        self.queue = None

    def notify(self, index: int) -> None:
        if self.queue is not None and self.serve(index, self.queue):
            self.port.interrupt_queue(index)


class PmemRig(VirtioRig):
    """Every third flush fails."""

    state_class = PmemState

    def __init__(self, memory: GuestMemory, state: PmemState | None = None) -> None:
        super().__init__()
        self.device: InlinePmem = InlinePmem(state or PmemState(1 << 32, 2 << 20), self.flush)

    def flush(self) -> bool:
        self.said.append("flush")
        return len(self.said) % 3 != 0

    def request(self, rng: random.Random) -> tuple[bytes, int]:
        if rng.random() < 0.3:
            return b"", 0
        return struct.pack("<I", rng.choice((0, 0, rng.randrange(1 << 32)))), rng.choice((4, 4, 100))

    def poke(self, rng: random.Random) -> None:
        """The host says nothing to it."""


class InlineNet(Net):
    """Served where it is notified, by what a ring owner's threads call; `pairs` are its virtqueues' and `frames` in the tap."""

    queues: Sequence[Queue] = ()
    pairs: Sequence[Pair] = ()
    features_chosen = 0

    def activate(self, queues: list[Queue], interrupt: DriverPort, features: int) -> None:
        super().activate(queues, interrupt, features)
        self.queues, self.port, self.features_chosen = queues, interrupt, features
        for pair in self.pairs:
            pair.begin(features)

    def reset(self) -> None:
        super().reset()
        self.queues = ()

    def notify(self, index: int) -> None:
        if index >= len(self.queues):
            return
        queue = self.queues[index]
        number = self.pairs_in_use(self.features_chosen)
        if index == 2 * number:
            interrupts = self.serve(index, queue)
        elif index > 2 * number:
            return
        elif index % 2:
            interrupts = self.pairs[index // 2].send(queue, is_up=self.state.is_up)
        else:
            try:
                self.pairs[index // 2].receive(queue)
            finally:
                self.pairs[index // 2].let_go(queue)
            interrupts = queue.publish()
        if interrupts:
            self.port.interrupt_queue(index)


class NetRig(VirtioRig):
    """Two pairs, and a tap with frames of every length. The host refuses each frame of an odd length."""

    state_class = NetState
    answers_more_than = 0  # each kind of its virtqueues takes other buffers, and the first wrong one is the end

    def __init__(self, memory: GuestMemory, state: NetState | None = None) -> None:
        super().__init__()
        self.frames: list[bytes] = []
        mac = bytes.fromhex("020000000001")
        self.device: InlineNet = InlineNet(mac, 2, state or NetState(mac, 1500), self.apply)
        self.device.pairs = [Pair(-1, lambda number: None, self.readv, self.writev) for _ in range(2)]

    def apply(self, offloads: int, pairs: int) -> None:
        assert not offloads & ~0x382 and 1 <= pairs <= 2
        self.said.append((offloads, pairs))

    def readv(self, _fd: int, views: Sequence[memoryview]) -> int:
        assert sum(map(len, views)) >= FRAME_MAX_BYTES and len(views) <= 1024
        if not self.frames:
            raise BlockingIOError
        frame = self.frames.pop(0)
        done = 0
        for view in views:
            part = frame[done : done + len(view)]
            view[: len(part)] = part
            done += len(part)
        return len(frame)

    def writev(self, _fd: int, views: Sequence[memoryview]) -> int:
        frame = b"".join(views)
        assert 12 <= len(frame) <= FRAME_MAX_BYTES
        if len(frame) % 2:
            raise OSError(22, "no such frame")
        self.said.append(frame)
        return len(frame)

    def request(self, rng: random.Random) -> tuple[bytes, int]:
        """A command, or a frame; buffers for frames are what other random requests are."""
        if rng.random() < 0.4:
            return rng.randbytes(rng.choice((12, 26, 61, rng.randrange(1, 4096)))), 0
        if rng.random() < 0.8:
            return b"", 0
        command = rng.choice(((1, 1, 6), (3, 0, 0), (4, 0, 2), (5, 0, 8), (rng.randrange(256), rng.randrange(256), 3)))
        data = rng.choice((bytes((rng.randrange(4), *bytes(command[2]))), rng.randbytes(8)))[: command[2]]
        return bytes(command[:2]) + data, rng.choice((1, 1, 2))

    def poke(self, rng: random.Random) -> None:
        while len(self.frames) < 4:
            self.frames.append(
                rng.randbytes(rng.choice((0, 12, 13, 14, 16, 16, 60, rng.randrange(200), rng.randrange(FRAME_MAX_BYTES))))
            )
        self.device.set_link(rng.random() < 0.8)
        self.device.announce()

    def settle(self) -> None:
        """A frame that is kept for the next buffers is lost with the process that has it, and nothing is promised of frames.

        A device that goes on from a state tells the host what holds.
        """
        self.frames, self.said = [], []
        for pair in self.device.pairs:
            pair.begin(-1)
            pair.begin(self.device.features_chosen)


class InlineVsock(Vsock):
    """Its event queue is served where it is notified; the others are the kernel's."""

    queues: Sequence[Queue] = ()

    def activate(self, queues: Sequence[Queue], interrupt: DriverPort, features: int) -> None:
        self.queues, self.port = queues, interrupt

    def reset(self) -> None:
        super().reset()
        self.queues = ()

    def notify(self, index: int) -> None:
        if self.queues and self.serve(index, self.queues[index]):
            self.port.interrupt_queue(index)


class VsockRig(VirtioRig):
    """Over and over its connections are gone."""

    state_class = VsockState
    answers_more_than = 0  # it answers in one of its three virtqueues, once each time

    def __init__(self, memory: GuestMemory, state: VsockState | None = None) -> None:
        super().__init__()
        self.device: InlineVsock = InlineVsock(state or VsockState(3))

    def request(self, rng: random.Random) -> tuple[bytes, int]:
        return b"", rng.choice((4, 8, 3))

    def poke(self, rng: random.Random) -> None:
        self.device.move(rng.randrange(1 << 32))
        self.said.append(self.device.state.cid)


CASES: dict[str, Callable[..., VirtioRig]] = {
    "console": ConsoleRig,
    "entropy": RngRig,
    "balloon": BalloonRig,
    "block": BlockRig,
    "pmem": PmemRig,
    "vsock": VsockRig,
    "net": NetRig,
}
