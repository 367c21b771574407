"""Who serves an active device's virtqueues: the ring owner. Here the simplest one; one with threads is in `board/rings.py`.

An owner is asked four things, and the same four are what vhost and vhost-user have messages for. The transport calls it with
its lock held, and a stopped owner touches no ring: its next chain is in `QueueState.next_available`, from where any other
goes on.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from vmservice.devices.virtio.device import VirtioDevice
    from vmservice.devices.virtio.queue import Queue
    from vmservice.errors import GuestError

    class RingOwner(Protocol):
        def start(self, rings: Sequence[Ring], features: int, lost: Callable[[GuestError], None]) -> None:
            """Serve `rings`, the virtqueues that are ready, from now on: first what is available already.

            `lost` may be called from any thread, with no lock held: nothing is served any more until the next start, because
            the driver broke the rules.
            """

        def notify(self, index: int) -> None:
            """The driver has made something available in virtqueue `index`. A GuestError says that it broke the rules."""

        def stop(self) -> list[int]:
            """Let go of the rings; where each of them would have gone on, in the order of `start`. Nothing when stopped.

            HostError when that cannot be had in time; then they are served as before.
            """


class Ring:
    """A virtqueue that is ready, and its number. `signal` tells the driver of used buffers, from any thread, and never waits
    for long.
    """

    __slots__ = ("index", "queue", "signal")

    def __init__(self, index: int, queue: Queue, signal: Callable[[], None]) -> None:
        self.index = index
        self.queue = queue
        self.signal = signal


class Inline:
    """The device itself, in the thread that notifies or in the event loop's: for devices that never wait for the host."""

    def __init__(self, device: VirtioDevice) -> None:
        self._device = device
        self._rings: Sequence[Ring] = ()

    def start(self, rings: Sequence[Ring], features: int, lost: Callable[[GuestError], None]) -> None:
        """What is available already is met by the transport's first turn."""
        self._rings = rings
        for ring in rings:
            ring.queue.backlog = True

    def notify(self, index: int) -> None:
        self._device.notify(index)

    def stop(self) -> list[int]:
        rings, self._rings = self._rings, ()
        return [ring.queue.state.next_available for ring in rings]
