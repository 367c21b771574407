"""virtio-net, the network card (virtio 1.2 §5.1): its configuration space, and the commands of its control virtqueue.

Frames are the business of whoever serves its other virtqueues: a thread with a tap (`board/net_rings.py`), or the kernel.
"""

from __future__ import annotations

import struct

from vmservice.devices.state import DeviceState
from vmservice.devices.virtio.device import cut_config
from vmservice.devices.virtio.ids import TYPE_NET
from vmservice.errors import GuestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.devices.virtio.device import DriverPort
    from vmservice.devices.virtio.queue import Chain, Queue

QUEUE_SIZE = 256
CONTROL_QUEUE_SIZE = 64

# Feature bits (§5.1.3)
CSUM = 1 << 0
GUEST_CSUM = 1 << 1
CTRL_GUEST_OFFLOADS = 1 << 2
MTU = 1 << 3
MAC = 1 << 5
GUEST_TSO4 = 1 << 7
GUEST_TSO6 = 1 << 8
GUEST_ECN = 1 << 9
HOST_TSO4 = 1 << 11
HOST_TSO6 = 1 << 12
HOST_ECN = 1 << 13
MRG_RXBUF = 1 << 15
STATUS = 1 << 16
CTRL_VQ = 1 << 17
GUEST_ANNOUNCE = 1 << 21
MQ = 1 << 22
CTRL_MAC_ADDR = 1 << 23

# What the guest takes, and what it leaves to the host.
GUEST_OFFLOADS = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN
_OFFLOADS = GUEST_OFFLOADS | CTRL_GUEST_OFFLOADS | CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN

# Status in the configuration space (§5.1.4)
LINK_UP = 1
ANNOUNCE = 2

# Commands (§5.1.6.5): class and command
_MAC_ADDR_SET = (1, 1)
_ANNOUNCE_ACK = (3, 0)
_MQ_PAIRS_SET = (4, 0)
_OFFLOADS_SET = (5, 0)
_COMMAND_BYTES = 2
_LONGEST_BYTES = 64  # a command of ours, and more
OK = b"\0"
ERR = b"\1"

MAC_BYTES = 6
_MULTICAST = 0x01

# struct virtio_net_config: mac, status, max_virtqueue_pairs, mtu
_CONFIG = struct.Struct("<6sHHH")


class NetState(DeviceState):
    """`mac` is what the driver has made of the address, `mtu` 0 where none is told, `offloads` whether any are offered.

    `is_up`: the link; `announces`: the driver is asked to make itself known. `pairs` are in use, of which `guest_offloads` is
    what the driver takes, -1 before it has said anything but its features.
    """

    __slots__ = ("announces", "guest_offloads", "is_up", "mac", "mtu", "offloads", "pairs")

    def __init__(self, mac: bytes, mtu: int = 0, *, offloads: bool = True, is_up: bool = True) -> None:
        self.mac = mac
        self.mtu = mtu
        self.offloads = offloads
        self.is_up = is_up
        self.announces = False
        self.pairs = 1
        self.guest_offloads = -1


class Net:
    """A card with `max_pairs` pairs of virtqueues and the address `mac`.

    `apply(offloads, pairs)` is told what holds from now on, whenever that may have changed: of GUEST_OFFLOADS those that the
    driver takes, and how many pairs it uses. It is called in any thread, and takes no lock.
    """

    device_type = TYPE_NET

    def __init__(self, mac: bytes, max_pairs: int, state: NetState, apply: Callable[[int, int], None]) -> None:
        self.state = state
        self.queue_max_sizes = (QUEUE_SIZE,) * (2 * max_pairs) + (CONTROL_QUEUE_SIZE,)
        self._mac = mac
        self._max_pairs = max_pairs
        self._apply = apply
        self._features = 0
        self._interrupt: DriverPort | None = None

    @property
    def features(self) -> int:
        state = self.state
        features = MAC | STATUS | MRG_RXBUF | CTRL_VQ | CTRL_MAC_ADDR | GUEST_ANNOUNCE
        if state.offloads:
            features |= _OFFLOADS
        if state.mtu:
            features |= MTU
        if self._max_pairs > 1:
            features |= MQ
        return features

    # Configuration

    def read_config(self, offset: int, size: int) -> bytes:
        state = self.state
        status = (LINK_UP if state.is_up else 0) | (ANNOUNCE if state.announces else 0)
        return cut_config(_CONFIG.pack(state.mac, status, self._max_pairs, state.mtu), offset, size)

    def write_config(self, offset: int, data: bytes) -> None:
        """Read-only: the address is changed by a command."""

    def set_link(self, is_up: bool) -> None:
        state = self.state
        if is_up != state.is_up:
            state.is_up = is_up
            self._tell()

    def announce(self) -> None:
        """Have the driver tell the network where it is now; nothing from one that does not know how."""
        if self._features & GUEST_ANNOUNCE and self.state.is_up:
            self.state.announces = True
            self._tell()

    def _tell(self) -> None:
        if self._interrupt is not None:
            self._interrupt.interrupt_config()

    # The driver

    def pairs_in_use(self, features: int) -> int:
        """Of a driver with those features: where the control virtqueue is depends on it (§5.1.2)."""
        return self._max_pairs if features & MQ else 1

    def merges(self, features: int) -> bool:
        """Whether a frame may take several of the driver's buffers."""
        return bool(features & MRG_RXBUF)

    def activate(self, queues: list[Queue], interrupt: DriverPort, features: int) -> None:
        self._interrupt, self._features = interrupt, features
        self._tell_host()

    def reset(self) -> None:
        was_active, self._interrupt, self._features = self._interrupt is not None, None, 0
        state = self.state
        state.mac, state.pairs, state.guest_offloads, state.announces = self._mac, 1, -1, False
        if was_active:
            self._tell_host()

    def notify(self, index: int) -> None:
        """Its ring owner is notified instead."""

    def _tell_host(self) -> None:
        chosen = self.state.guest_offloads
        self._apply(_possible(self._features & GUEST_OFFLOADS if chosen < 0 else chosen), self.state.pairs)

    # Commands

    def serve(self, index: int, queue: Queue) -> bool:
        """One slice of the control virtqueue, in any thread; whether to interrupt."""
        return queue.drain(self._answer)

    def _answer(self, chain: Chain) -> int:
        command = chain.read(_LONGEST_BYTES)
        if len(command) < _COMMAND_BYTES or not chain.writable:
            raise GuestError("a command to the network card has no room for its answer, or says nothing")
        is_done = self._execute((command[0], command[1]), command[_COMMAND_BYTES:])
        return chain.write(OK if is_done else ERR)

    def _execute(self, command: tuple[int, int], data: bytes) -> bool:
        state, features = self.state, self._features
        if command == _MAC_ADDR_SET and features & CTRL_MAC_ADDR:
            return self._set_mac(data)
        if command == _ANNOUNCE_ACK and features & GUEST_ANNOUNCE:
            state.announces = False
            return True
        if command == _MQ_PAIRS_SET and features & MQ and len(data) == 2:
            pairs = int.from_bytes(data, "little")
            if not 0 < pairs <= self._max_pairs:
                return False
            state.pairs = pairs
        elif command == _OFFLOADS_SET and features & CTRL_GUEST_OFFLOADS and len(data) == 8:
            offloads = int.from_bytes(data, "little")
            # Checksums are taken where segments are (§5.1.3.1).
            if offloads & ~(features & GUEST_OFFLOADS) or (offloads and not offloads & GUEST_CSUM):
                return False
            state.guest_offloads = offloads
        else:
            return False
        self._tell_host()
        return True

    def _set_mac(self, data: bytes) -> bool:
        if len(data) != MAC_BYTES or data[0] & _MULTICAST or not any(data):
            return False
        self.state.mac = data
        return True


def _possible(offloads: int) -> int:
    """Without those that make no sense without others (§5.1.3.1), which a driver may have chosen all the same."""
    if not offloads & GUEST_CSUM:
        return 0
    return offloads if offloads & (GUEST_TSO4 | GUEST_TSO6) else offloads & ~GUEST_ECN
