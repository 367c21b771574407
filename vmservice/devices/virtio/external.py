"""A virtio device that another process is: features and configuration space are that one's, and it serves the virtqueues.

What is left here is what the driver sees of it when nobody serves: so it stays the same device while its back end ends and is
started anew.
"""

from __future__ import annotations

from vmservice.devices.state import DeviceState
from vmservice.devices.virtio.device import cut_config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.devices.virtio.device import DriverPort
    from vmservice.devices.virtio.queue import Queue


class ExternalState(DeviceState):
    """`features` without those of the transport, the sizes of the virtqueues, and the configuration space."""

    __slots__ = ("config", "features", "queue_sizes")

    def __init__(self, features: int, queue_sizes: list[int], config: bytes) -> None:
        self.features = features
        self.queue_sizes = queue_sizes
        self.config = config


class External:
    """A device of virtio's type `device_type`. What a driver writes into its configuration space changes nothing."""

    def __init__(self, device_type: int, state: ExternalState) -> None:
        self.device_type = device_type
        self.state = state
        self._interrupt: DriverPort | None = None

    @property
    def features(self) -> int:
        return self.state.features

    @property
    def queue_max_sizes(self) -> tuple[int, ...]:
        return tuple(self.state.queue_sizes)

    def set_config(self, config: bytes) -> None:
        """The back end has another one; the driver is told if it is."""
        if config != self.state.config:
            self.state.config = config
            if self._interrupt is not None:
                self._interrupt.interrupt_config()

    def read_config(self, offset: int, size: int) -> bytes:
        return cut_config(self.state.config, offset, size)

    def write_config(self, offset: int, data: bytes) -> None:
        """Read-only."""

    def activate(self, queues: list[Queue], interrupt: DriverPort, features: int) -> None:
        self._interrupt = interrupt

    def reset(self) -> None:
        self._interrupt = None

    def notify(self, index: int) -> None:
        """The ring owner is notified instead."""
