"""virtio-vsock, sockets between host and guest (virtio 1.2 §5.10): what is left of it where the kernel moves the packets.

That is the guest's number, and the event queue: after a restore the driver is told that its connections are gone, or they would
hang for ever.
"""

from __future__ import annotations

import struct

from vmservice.devices.state import DeviceState
from vmservice.devices.virtio.device import cut_config
from vmservice.devices.virtio.ids import TYPE_VSOCK
from vmservice.errors import GuestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmservice.devices.virtio.device import DriverPort
    from vmservice.devices.virtio.queue import Queue

# Virtqueues (§5.10.2)
RECEIVE, SEND, EVENT = range(3)
QUEUE_SIZE = 256

# Feature bits (§5.10.3). Without STREAM streams are meant, and it is not among those that Linux' vhost knows.
SEQPACKET = 1 << 1

# Events (§5.10.6.7)
_TRANSPORT_RESET = struct.pack("<I", 0)

_CONFIG = struct.Struct("<Q")  # the guest's CID


class VsockState(DeviceState):
    """`is_reset_due`: the driver is still to be told that its connections are gone, and its CID may be another one."""

    __slots__ = ("cid", "is_reset_due")

    def __init__(self, cid: int) -> None:
        self.cid = cid
        self.is_reset_due = False


class Vsock:
    """`features` are those of whoever serves the virtqueues RECEIVE and SEND. The ring owner calls `serve` for the other."""

    device_type = TYPE_VSOCK
    queue_max_sizes = (QUEUE_SIZE,) * 3

    def __init__(self, state: VsockState, features: int = SEQPACKET) -> None:
        self.state = state
        self.features = features & SEQPACKET

    def move(self, cid: int) -> None:
        """The guest goes on where its connections are gone, and where it has this CID. Before the device is active."""
        self.state.cid = cid
        self.state.is_reset_due = True

    def read_config(self, offset: int, size: int) -> bytes:
        return cut_config(_CONFIG.pack(self.state.cid), offset, size)

    def write_config(self, offset: int, data: bytes) -> None:
        """Read-only."""

    def activate(self, queues: Sequence[Queue], interrupt: DriverPort, features: int) -> None:
        """The virtqueues are their ring owner's."""

    def reset(self) -> None:
        """A driver that begins has no connections."""
        self.state.is_reset_due = False

    def notify(self, index: int) -> None:
        """The ring owner is notified instead."""

    def serve(self, index: int, queue: Queue) -> bool:
        """Tell the driver what it is to be told, in the event queue; whether to interrupt. In any thread, with no lock held.

        Its buffers stay in the virtqueue until there is something to say.
        """
        if index != EVENT or not self.state.is_reset_due:
            return False
        chain = queue.pop()
        if chain is None:
            return False
        if chain.writable_bytes < len(_TRANSPORT_RESET):
            raise GuestError(f"a buffer for an event has {chain.writable_bytes} bytes to write; an event has 4")
        self.state.is_reset_due = False
        queue.add_used(chain.head, chain.write(_TRANSPORT_RESET))
        return queue.publish()
