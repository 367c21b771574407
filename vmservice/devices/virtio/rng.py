"""virtio-rng, the entropy device (virtio 1.2 §5.4): random bytes of the host for whoever asks, at a bounded rate."""

from __future__ import annotations

import time

from vmservice.devices.state import DeviceState
from vmservice.devices.virtio.ids import TYPE_ENTROPY
from vmservice.errors import GuestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.devices.timer import CallLater, Timer
    from vmservice.devices.virtio.device import DriverPort
    from vmservice.devices.virtio.queue import Chain, Queue

# Linux asks for 64 bytes at a time.
QUEUE_SIZE = 64

# More than a Linux guest asks for while it boots; and making a megabyte costs the host some milliseconds.
DEFAULT_BYTES_PER_SEC = 1 << 20

# What one request gets at most; the device may always give less than there is room for (§5.4.6.1).
MAX_REQUEST_BYTES = 64 * 1024


# How long a request waits that found nothing left to give.
_HELD_BACK_SEC = 0.1


class RngState(DeviceState):
    """How many bytes may be given away at once."""

    __slots__ = ("allowance",)

    def __init__(self, allowance: float) -> None:
        self.allowance = allowance


class Rng:
    """`source(size)` gives that many random bytes. No more than `bytes_per_sec` are given away, nor saved up.

    Requests past that stay in the virtqueue, and a timer is set for them.
    """

    device_type = TYPE_ENTROPY
    features = 0
    queue_max_sizes = (QUEUE_SIZE,)

    def __init__(
        self,
        source: Callable[[int], bytes],
        call_later: CallLater,
        state: RngState | None = None,
        *,
        bytes_per_sec: int = DEFAULT_BYTES_PER_SEC,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state = state or RngState(float(bytes_per_sec))
        self._source = source
        self._call_later = call_later
        self._timer: Timer | None = None
        self._bytes_per_sec = bytes_per_sec
        self._clock = clock
        self._allowance_at = clock()
        self._queue: Queue | None = None
        self._interrupt: DriverPort | None = None

    def read_config(self, offset: int, size: int) -> bytes:
        return bytes(size)

    def write_config(self, offset: int, data: bytes) -> None:
        """There is none."""

    def activate(self, queues: list[Queue], interrupt: DriverPort, features: int) -> None:
        self._queue, self._interrupt = queues[0], interrupt

    def reset(self) -> None:
        self._queue = self._interrupt = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def notify(self, index: int) -> None:
        queue, interrupt = self._queue, self._interrupt
        if queue is None or interrupt is None:
            return
        self._refill()
        if queue.drain(self._give):
            interrupt.interrupt_queue(0)

    def _go_on(self) -> None:
        self._timer = None
        try:
            self.notify(0)
        except GuestError as error:
            if self._interrupt is not None:
                self._interrupt.needs_reset(error)

    def _give(self, chain: Chain) -> int | None:
        if chain.readable or not chain.writable:
            raise GuestError("a request for entropy has something to read, or nowhere to write")
        size_bytes = min(chain.writable_bytes, MAX_REQUEST_BYTES, int(self.state.allowance))
        if not size_bytes:
            if self._timer is None:
                self._timer = self._call_later(_HELD_BACK_SEC, self._go_on)
            return None
        self.state.allowance -= size_bytes
        return chain.write(self._source(size_bytes))

    def _refill(self) -> None:
        now = self._clock()
        gained = (now - self._allowance_at) * self._bytes_per_sec
        self.state.allowance = min(self.state.allowance + gained, float(self._bytes_per_sec))
        self._allowance_at = now
