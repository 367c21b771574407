"""virtio-pmem, persistent memory (virtio 1.2 §5.19): a range of guest memory that the host keeps, and requests to keep it.

The driver reads and writes the range as it does any memory; its only request is for all of that to be on the host's disk.
"""

from __future__ import annotations

import struct

from vmservice.devices.state import DeviceState
from vmservice.devices.virtio.device import cut_config
from vmservice.devices.virtio.ids import TYPE_PMEM
from vmservice.errors import GuestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmservice.devices.virtio.device import DriverPort
    from vmservice.devices.virtio.queue import Chain, Queue

QUEUE_SIZE = 64

# Types of requests (§5.19.6)
FLUSH = 0

_CONFIG = struct.Struct("<QQ")  # start, size
_TYPE_BYTES = 4

_DONE = bytes(4)
_FAILED = b"\xff\xff\xff\xff"


class PmemState(DeviceState):
    """Where the range begins, a gpa, and how many bytes it has: never 0, for a driver takes that for something else."""

    __slots__ = ("size", "start")

    def __init__(self, start: int, size: int) -> None:
        self.start = start
        self.size = size


class Request:
    """A chain, checked; `is_flush` is False for a request that nobody knows."""

    __slots__ = ("chain", "is_flush")

    def __init__(self, chain: Chain, is_flush: bool) -> None:
        self.chain = chain
        self.is_flush = is_flush


class Pmem:
    """`flush()` returns when all that the guest wrote before is kept, or says False. It may wait for the host."""

    device_type = TYPE_PMEM
    features = 0
    queue_max_sizes = (QUEUE_SIZE,)

    def __init__(self, state: PmemState, flush: Callable[[], bool]) -> None:
        self.state = state
        self._flush = flush

    def read_config(self, offset: int, size: int) -> bytes:
        return cut_config(_CONFIG.pack(self.state.start, self.state.size), offset, size)

    def write_config(self, offset: int, data: bytes) -> None:
        """Read-only."""

    def activate(self, queues: Sequence[Queue], interrupt: DriverPort, features: int) -> None:
        """The virtqueue is its ring owner's."""

    def reset(self) -> None:
        """No request is remembered."""

    def notify(self, index: int) -> None:
        """The ring owner is notified instead."""

    def serve(self, index: int, queue: Queue) -> bool:
        """Do the requests of one slice; whether to interrupt. In a thread that may wait, with no lock held.

        One flush does for all of them: each was made before it begins.
        """
        requests = [self.parse(chain) for chain in queue.take()]
        is_kept = not any(request.is_flush for request in requests) or self._flush()
        for request in requests:
            answer = _DONE if request.is_flush and is_kept else _FAILED
            queue.add_used(request.chain.head, request.chain.write(answer))
        return queue.publish()

    def parse(self, chain: Chain) -> Request:
        """The request of a chain. GuestError where it cannot even be answered."""
        kind = chain.read(_TYPE_BYTES)
        if len(kind) < _TYPE_BYTES:
            raise GuestError(f"a request to persistent memory has {len(kind)} bytes to read; its type alone has {_TYPE_BYTES}")
        if chain.writable_bytes < len(_DONE):
            raise GuestError(f"a request to persistent memory has {chain.writable_bytes} of {len(_DONE)} bytes for its answer")
        return Request(chain, int.from_bytes(kind, "little") == FLUSH)
