"""Virtqueues that another process serves, seen from outside: by their rings' indices, which are in guest memory."""

from __future__ import annotations

from vmservice.devices.virtio.queue import AVAILABLE, USED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmservice.devices.virtio.rings import Lost, Ring
    from vmservice.host.vhost_user import VhostUser
    from vmservice.memory.guest_memory import GuestMemory


class HandedOver:
    """What one `start` of a ring owner is about. `is_lost`: the driver has to begin anew, and nothing is served any more.

    `bases` are where those would have gone on that the back end has been told to stop; requests before them may be in flight.
    `served_by` is the connection that has served them last, in this start or in `before`; None for virtqueues that begin.
    """

    __slots__ = ("_memory", "bases", "features", "is_lost", "lost", "rings", "served_by")

    def __init__(
        self, memory: GuestMemory, rings: Sequence[Ring], features: int, lost: Lost, before: HandedOver | None = None
    ) -> None:
        self.rings = rings
        self.features = features
        self.lost = lost
        self.is_lost = False
        self.bases: dict[int, int] = {}
        self.served_by: VhostUser | None = None
        if before is not None and [ring.queue for ring in before.rings] == [ring.queue for ring in rings]:
            self.served_by = before.served_by
        self._memory = memory

    def base(self, ring: Ring) -> int:
        """Where the ring is to go on."""
        return self.bases.get(ring.index, ring.queue.state.next_available)

    def in_flight(self) -> int:
        """How many requests have not been given back, whether the back end has taken them or not."""
        return sum((self._index(ring, AVAILABLE) - self._index(ring, USED)) & 0xFFFF for ring in self.rings)

    def missing(self) -> int:
        """How many requests stopped rings have not given back of those that were taken."""
        return sum((self.bases[ring.index] - self._index(ring, USED)) & 0xFFFF for ring in self.rings)

    def rewind(self) -> None:
        """The back end is gone, with nothing in flight: whoever comes next goes on behind what was given back."""
        self.bases = {ring.index: self._index(ring, USED) for ring in self.rings}

    def save(self) -> None:
        """All is stopped and given back: the virtqueues' own states say where any owner goes on."""
        for ring in self.rings:
            state = ring.queue.state
            state.next_available = self.bases[ring.index]
            state.next_used = state.published_used = self._index(ring, USED)

    def _index(self, ring: Ring, which: int) -> int:
        return int.from_bytes(self._memory.read(ring.queue.state.addresses[which] + 2, 2), "little")
