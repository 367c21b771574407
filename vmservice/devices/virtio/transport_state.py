"""What a driver has told a transport, whichever bus it is on (virtio 1.2 §2.1, §2.2)."""

from __future__ import annotations

from vmservice.devices.state import DeviceState
from vmservice.devices.virtio.queue import QueueState


class TransportState(DeviceState):
    """As after a reset. The transport sizes `queues` to its device.

    `generation` counts on over resets: how often `config`, the configuration as the driver was last told of it, was another.
    """

    __slots__ = (
        "config",
        "device_features_select",
        "driver_features",
        "driver_features_select",
        "generation",
        "queue_select",
        "queues",
        "status",
    )

    PARTS: dict[str, type[DeviceState]] = {"queues": QueueState}  # noqa: RUF012

    def __init__(self, queue_max_sizes: tuple[int, ...], config: bytes = b"") -> None:
        self.config = bytearray(config)
        self.device_features_select = 0
        self.driver_features = 0
        self.driver_features_select = 0
        self.generation = 0
        self.queue_select = 0
        self.queues = [QueueState(size) for size in queue_max_sizes]
        self.status = 0
