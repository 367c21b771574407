"""Who serves an active device's virtqueues: the ring owner. Here the simplest one; one with threads is in `board/rings.py`.

What an owner is asked is what vhost and vhost-user have messages for. The transport calls it with its lock held, and a stopped
owner touches no ring: `QueueState` says where any other goes on.
"""

from __future__ import annotations

from vmservice.devices.virtio.ids import EVENT_IDX, INDIRECT_DESC, VERSION_1

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from vmservice.devices.virtio.device import VirtioDevice
    from vmservice.devices.virtio.queue import Queue
    from vmservice.errors import GuestError, HostError

    Lost = Callable[[GuestError | HostError], None]

    class RingOwner(Protocol):
        @property
        def transport_features(self) -> int:
            """Which of TRANSPORT_FEATURES it can serve a driver with."""

        @property
        def kicks(self) -> Sequence[int]:
            """Eventfds by virtqueue: a write of 1 is a notification, by `notify` or by KVM (ioeventfd). None: only `notify`."""

        def start(self, rings: Sequence[Ring], features: int, lost: Lost) -> None:
            """Serve `rings`, the virtqueues that are ready, from now on: first what is available already.

            `lost` may be called from any thread, with no lock held: nothing is served any more until the next start, because
            the driver broke the rules, or the host failed. HostError when it cannot be; then nothing is served.
            """

        def notify(self, index: int) -> None:
            """The driver has made something available in virtqueue `index`. A GuestError says that it broke the rules."""

        def stop(self, timeout_sec: float) -> bool:
            """Let go of the rings; whether that was done in time, as it is when there are none.

            If not, it is still asked to: nothing new is begun, and another `stop` waits for the rest.
            """

        def go_on(self) -> None:
            """Take the request to stop back, after a `stop` that was not done in time."""


# What all owners in this program know.
TRANSPORT_FEATURES = VERSION_1 | INDIRECT_DESC | EVENT_IDX


class Ring:
    """A virtqueue that is ready, and its number. `signal` tells the driver of used buffers, from any thread, and never waits
    for long. `eventfd` is for an owner outside of this process: a write of 1 to it is the same; None where only `signal` is.
    """

    __slots__ = ("eventfd", "index", "queue", "signal")

    def __init__(self, index: int, queue: Queue, signal: Callable[[], None], eventfd: int | None = None) -> None:
        self.index = index
        self.queue = queue
        self.signal = signal
        self.eventfd = eventfd


class Inline:
    """The device itself, in the thread that notifies or in the event loop's: for devices that never wait for the host."""

    transport_features = TRANSPORT_FEATURES
    kicks: Sequence[int] = ()

    def __init__(self, device: VirtioDevice) -> None:
        self._device = device

    def start(self, rings: Sequence[Ring], features: int, lost: Lost) -> None:
        """What is available already is met by the transport's first turn."""
        for ring in rings:
            ring.queue.backlog = True

    def notify(self, index: int) -> None:
        self._device.notify(index)

    def stop(self, timeout_sec: float) -> bool:
        return True

    def go_on(self) -> None:
        """A stop is always done."""
