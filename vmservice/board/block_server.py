"""The virtqueues of a disk, served: requests taken, begun and given back, each virtqueue's by the thread that it has."""

from __future__ import annotations

from vmservice.devices.virtio import block

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Protocol

    from vmservice.devices.virtio.block import Block, Request
    from vmservice.devices.virtio.queue import Queue

    class Lane(Protocol):
        """The image, as one virtqueue has it. A request returns 0 or an errno, or None: it is in flight."""

        @property
        def in_flight(self) -> int: ...

        def read(self, token: Request, views: Sequence[memoryview], offset: int, length: int) -> int | None: ...

        def write(self, token: Request, views: Sequence[memoryview], offset: int, length: int, durable: bool) -> int | None: ...

        def flush(self, token: Request) -> int | None: ...

        def discard(self, token: Request, offset: int, length: int) -> int | None: ...

        def write_zeroes(self, token: Request, offset: int, length: int, unmap: bool, durable: bool) -> int | None: ...

        def push(self) -> None:
            """Begin them, if that has not been done yet."""

        def take_done(self) -> Iterator[tuple[Request, int]]:
            """Those that were in flight, with their errno, or 0."""


class Counters:
    """Of one virtqueue, whose thread alone changes them: requests that were done, their bytes, and those that were not."""

    __slots__ = ("discards", "errors", "flushes", "read_bytes", "reads", "writes", "written_bytes")

    def __init__(self) -> None:
        self.discards = self.errors = self.flushes = self.read_bytes = self.reads = self.writes = self.written_bytes = 0

    def count(self, request: Request, answer: int) -> None:
        kind = request.kind
        if answer:
            self.errors += 1
        elif kind == block.IN:
            self.reads += 1
            self.read_bytes += request.length
        elif kind == block.OUT:
            self.writes += 1
            self.written_bytes += request.length
        elif kind == block.T_FLUSH:
            self.flushes += 1
        elif kind != block.GET_ID:
            self.discards += 1


class BlockServer:
    """`serve` and `finish` are for `ThreadRings`. `lanes` are the image by virtqueue; `on_error(kind, errno)` is told, in a
    virtqueue's thread, of each request that the host has refused."""

    def __init__(self, device: Block, lanes: Sequence[Lane], on_error: Callable[[int, int], None]) -> None:
        self._device = device
        self._lanes = lanes
        self._on_error = on_error
        self._counters = [Counters() for _ in device.queue_max_sizes]

    def stats(self) -> dict[str, float]:
        """Of all virtqueues."""
        return {name: sum(getattr(one, name) for one in self._counters) for name in Counters.__slots__}

    def serve(self, index: int, queue: Queue) -> bool:
        """Give back what is done, take what a slice has room for; whether to interrupt."""
        device, lane, counters = self._device, self._lanes[index], self._counters[index]
        if lane.in_flight:
            self._give_back(queue, lane, counters)
        # An honest driver cannot have more of them under way than there are entries.
        room = queue.state.size - lane.in_flight
        if room > 0:
            for chain in queue.take():
                request = device.parse(chain)
                answer = request.answer
                if answer is None:
                    number = self._begin(lane, request)
                    if number is None:
                        room -= 1
                        if not room:
                            break
                        continue
                    answer = block.OK if not number else self._refused(request, number)
                counters.count(request, answer)
                device.complete(queue, request, answer)
            lane.push()
        return queue.publish()

    def finish(self, index: int, queue: Queue) -> tuple[bool, bool]:
        """Take nothing, give back what is done; whether to interrupt, and whether nothing is in flight any more."""
        lane = self._lanes[index]
        lane.push()
        self._give_back(queue, lane, self._counters[index])
        return queue.publish(), not lane.in_flight

    def _give_back(self, queue: Queue, lane: Lane, counters: Counters) -> None:
        for request, number in lane.take_done():
            answer = block.OK if not number else self._refused(request, number)
            counters.count(request, answer)
            self._device.complete(queue, request, answer)

    def _begin(self, lane: Lane, request: Request) -> int | None:
        kind = request.kind
        if kind == block.IN:
            return lane.read(request, request.views, request.offset, request.length)
        durable = self._device.is_durable
        if kind == block.OUT:
            return lane.write(request, request.views, request.offset, request.length, durable)
        if kind == block.T_FLUSH:
            return lane.flush(request)
        if kind == block.T_DISCARD:
            return lane.discard(request, request.offset, request.length)
        return lane.write_zeroes(request, request.offset, request.length, request.unmap, durable)

    def _refused(self, request: Request, number: int) -> int:
        self._on_error(request.kind, number)
        return block.answer_of(number)
