"""`[balloon]`: virtio-balloon."""

from __future__ import annotations

from vmservice.board.slot import Plugged
from vmservice.devices.virtio.balloon import Balloon, BalloonState
from vmservice.plug.backend import NoBackend

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.board.slot import Slot
    from vmservice.config.sections.balloon import BalloonDevice
    from vmservice.plug.backend import Backend, Host


class BalloonPlug(Plugged):
    def __init__(self, section: BalloonDevice, slot: Slot) -> None:
        state = slot.state_of(BalloonState)
        self.device = Balloon(slot.memory, slot.memory.discard, state)
        if state is None:
            self.device.set_target_bytes(section.size)
        super().__init__(slot, self.device)

    def stats(self) -> dict[str, float]:
        """The guest's own figures are what it answered when it was last asked, which is each time."""
        with self.lock:
            self.device.request_statistics()
            return dict(self.device.statistics())

    def reconfigure(self, section: BalloonDevice) -> None:
        with self.lock:
            self.device.set_target_bytes(section.size)


def open(section: BalloonDevice, host: Host) -> Backend:
    return NoBackend()


def build(section: BalloonDevice, backend: Backend, slot: Slot) -> Plugged:
    return BalloonPlug(section, slot)
