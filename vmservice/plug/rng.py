"""`[rng]`: virtio-rng, from the host's own generator."""

from __future__ import annotations

import os

from vmservice.board.slot import Plugged
from vmservice.devices.virtio.rng import Rng, RngState
from vmservice.plug.backend import NoBackend

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.board.slot import Slot
    from vmservice.config.sections.rng import RngDevice
    from vmservice.plug.backend import Backend, Host


def open(section: RngDevice, host: Host) -> Backend:
    return NoBackend()


def build(section: RngDevice, backend: Backend, slot: Slot) -> Plugged:
    return Plugged(slot, Rng(os.urandom, slot.call_later, slot.state_of(RngState)))
