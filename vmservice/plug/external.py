"""What devices have in common that another process serves by vhost-user: the way to it, and the device in its slot."""

from __future__ import annotations

import os

from vmservice.board.slot import Plugged
from vmservice.board.vhost_user_rings import VhostUserRings
from vmservice.devices.virtio.external import External, ExternalState
from vmservice.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from vmservice.board.slot import Slot
    from vmservice.host.consoles.base import Console
    from vmservice.host.vhost_user_link import BackEndLink

# Linux' drivers need one for each segment of a request, and QEMU's back ends take 126 segments.
QUEUE_SIZE = 256


class ExternalBackend:
    """The back end's unit has a socket; `link` is the way there."""

    consoles: Sequence[Console] = ()

    def __init__(self, link: BackEndLink) -> None:
        self.link = link

    def fds(self) -> dict[str, int]:
        """Connections come and go, each with a machine."""
        return {}

    def close(self) -> None:
        self.link.close()


class ExternalPlug(Plugged):
    """A device of virtio's type `device_type`, with the `features` that its driver may see, behind `link`.

    `adapt` makes the configuration space that the driver sees of the back end's. A subclass may have another `make_rings`.
    """

    def __init__(
        self,
        slot: Slot,
        link: BackEndLink,
        device_type: int,
        features: int,
        *,
        is_volatile: bool,
        adapt: Callable[[bytes], bytes],
        queue_size: int = QUEUE_SIZE,
    ) -> None:
        state = slot.state_of(ExternalState)
        if state is None:
            state = ExternalState(features, [queue_size] * link.queues, adapt(link.config))
        if state.features & ~features or len(state.queue_sizes) > link.queues:
            raise HostError(f"{link.name} is not the device that it was when the guest's state was taken")
        self._slot = slot
        self._is_volatile = is_volatile
        self._adapt = adapt
        self.device = External(device_type, state)
        self._rings = self.make_rings(slot, link, len(state.queue_sizes))
        try:
            super().__init__(slot, self.device, self._rings)
        except BaseException:
            self._rings.close()
            raise

    def make_rings(self, slot: Slot, link: BackEndLink, queues: int) -> VhostUserRings:
        return VhostUserRings(
            slot.label,
            queues,
            link,
            slot.memory,
            is_volatile=self._is_volatile,
            on_config=lambda config: slot.post(lambda: self.device.set_config(self._adapt(config))),
            warn=slot.warn,
            bug=slot.bug,
        )

    def start(self) -> None:
        self._rings.begin()
        super().start()

    def reconfigure(self, section: Any) -> None:
        """A reload: the back end may have another configuration, as a disk that has grown, and not have said so."""
        try:
            self._rings.refresh()
        except HostError as error:
            self._slot.warn(str(error))

    def abandon(self) -> None:
        self._rings.abandon()

    def close(self) -> None:
        super().close()
        self._rings.close()


def socket_path(kind: str, vm_name: str, device: str) -> str:
    """Where the back end of a device listens, which vmservice's own `start-back-ends` has told its unit.

    In a folder that only this VM sees: whoever reaches the socket of a disk has the disk.
    """
    return f"{runtime_folder()}/vmservice-{kind}/{vm_name}/{device}"


def runtime_folder() -> str:
    """The system's, or the user's own."""
    unit = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if unit:  # …/vmservice/NAME
        return os.path.dirname(os.path.dirname(unit))
    return "/run" if os.geteuid() == 0 else os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}")
