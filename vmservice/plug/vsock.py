"""`[vsock]`: virtio-vsock, whose packets the kernel moves."""

from __future__ import annotations

from vmservice.board.slot import Plugged
from vmservice.board.vhost_rings import VhostRings
from vmservice.devices.virtio.vsock import Vsock, VsockState
from vmservice.errors import HostError
from vmservice.host.vsock_device import VsockEnd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.board.slot import Slot
    from vmservice.config.sections.vsock import VsockDevice
    from vmservice.plug.backend import Details, Host


class VsockPlug(Plugged):
    """`end` outlives it, but no connection does."""

    def __init__(self, end: VsockEnd, slot: Slot) -> None:
        end.open()
        self._end = end
        self._slot = slot
        state = slot.state_of(VsockState)
        self.device = Vsock(state or VsockState(end.cid), end.vhost.features)
        if state is not None:
            self.device.move(end.cid)
        self._rings = VhostRings(
            slot.label,
            len(self.device.queue_max_sizes),
            [end.vhost],
            slot.memory,
            serve=self.device.serve,
            bug=slot.bug,
        )
        try:
            super().__init__(slot, self.device, self._rings)
        except BaseException:
            self._rings.close()
            raise

    def start(self) -> None:
        self._rings.begin()
        super().start()

    def close(self) -> None:
        super().close()
        self._rings.close()
        try:
            self._end.renew()
        except HostError as error:
            self._slot.warn(f"vsock: {error}")


def open(section: VsockDevice, host: Host) -> VsockEnd:
    end = VsockEnd(host.vm_name, section.cid)
    end.open()
    return end


def build(section: VsockDevice, backend: VsockEnd, slot: Slot) -> Plugged:
    return VsockPlug(backend, slot)


def details(section: VsockDevice, backend: VsockEnd) -> dict[str, Details]:
    return {section.name: {"cid": backend.cid}}
