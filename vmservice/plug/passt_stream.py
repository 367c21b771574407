"""`[[network]]` with mode = "passt" at a passt of before November 2024, which serves no vhost-user: frames on a stream socket.

A thread of ours moves them between that and the driver's buffers, as it does for a tap. docs/passt.md says what it costs.
"""

from __future__ import annotations

import os
import struct
import time

from vmservice.board.net_rings import NetRings
from vmservice.board.net_server import Counters, Pair
from vmservice.board.slot import Plugged
from vmservice.devices.limited_warnings import INTERVAL_SEC
from vmservice.devices.virtio.net import Net, NetState
from vmservice.errors import HostError
from vmservice.host.frame_stream import HEADER_BYTES, FrameStream
from vmservice.host.vhost_user_link import FIRST_ANSWER_SEC

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmservice.board.slot import Slot
    from vmservice.config.sections.network import NetworkDevice
    from vmservice.devices.timer import Timer
    from vmservice.host.consoles.base import Console

# A passt that ends is started anew at once, and one that ends soon after 1 second, 2, 4 and so on.
FIRST_PAUSE_SEC = 1.0
LONGEST_PAUSE_SEC = 60.0
SETTLED_SEC = 10.0
# How often it is looked whether one that is being started has said something, or ended.
LOOK_SEC = 0.2

# Whom passt is asked for, to see that it lives: an address that it answers for, whatever the host's is (RFC 3927).
_ANYBODY = bytes((169, 254, 1, 1))
_ARP_PROBE = struct.Struct(">6s6sHHHBBH6s4s6s4s")


class StreamBackend:
    """The way to passt: its socket at `path`, and the connection, which outlives a machine; `name` is what it is called."""

    consoles: Sequence[Console] = ()

    def __init__(self, path: str, name: str, advice: str, mac: bytes) -> None:
        self.path = path
        self.name = name
        self.stream = FrameStream()
        self._advice = advice
        self._mac = mac

    def fds(self) -> dict[str, int]:
        return {"stream": self.stream.fd}

    def close(self) -> None:
        self.stream.close()

    def open(self) -> None:
        """Connect, and wait until passt says something. HostError, with nothing open, when it does not."""
        try:
            self.ask()
            if not self.stream.wait(FIRST_ANSWER_SEC):
                raise HostError(f"{self.name} does not answer in time; {self._advice}")
            if self.stream.is_at_end():
                raise HostError(f"{self.name} has closed the connection; {self._advice}")
        except BaseException:
            self.close()
            raise

    def ask(self) -> None:
        """Connect, and have passt answer. HostError when nobody listens."""
        try:
            self.stream.connect(self.path, 0.0)
        except OSError as error:
            number = error.errno or 0
            what = f"cannot be reached at {self.path}: {os.strerror(number)}"
            raise HostError(f"{self.name} {what}; {self._advice}", number) from error
        try:
            self.stream.writev(0, [memoryview(bytes(HEADER_BYTES)), memoryview(arp_probe(self._mac))])
        except OSError as error:
            self.stream.cut()
            raise HostError(f"{self.name} has closed the connection; {self._advice}", error.errno or 0) from error


class StreamPlug(Plugged):
    """Its link is up while there is a passt, unless the configuration says "down"."""

    def __init__(self, section: NetworkDevice, backend: StreamBackend, slot: Slot) -> None:
        self._backend = backend
        self._slot = slot
        self._wants_link = section.link == "up"
        self._timer: Timer | None = None
        self._failures = 0  # since one has served for SETTLED_SEC
        self._there_since = time.monotonic()
        self._asked_at = 0.0
        self._said_at = float("-inf")
        self._has_said_so = False
        stream = backend.stream
        self._pair = Pair(stream.fd, lambda number: None, stream.readv, stream.writev)
        self._is_gone = self._pair.is_gone = not stream.is_connected
        state = slot.state_of(NetState) or NetState(section.mac, section.mtu, offloads=False, is_up=self._link)
        self.device = Net(section.mac, 1, state, lambda offloads, pairs: None)
        self._rings = NetRings(
            slot.label,
            [self._pair],
            serve=self.device.serve,
            in_use=self.device.pairs_in_use,
            host_gone=lambda: slot.post(self._look_again),
            bug=slot.bug,
        )
        try:
            super().__init__(slot, self.device, self._rings)
        except BaseException:
            self._rings.close()
            raise

    @property
    def _link(self) -> bool:
        return self._wants_link and not self._is_gone

    def start(self) -> None:
        if self._backend.stream.is_at_end():  # which nobody has read while there was no driver
            self._pair.is_gone = True
        super().start()
        with self.lock:
            self._look_again()
            self._follow_link()

    def stats(self) -> dict[str, float]:
        return {name: getattr(self._pair.counters, name) for name in Counters.__slots__}

    def reconfigure(self, section: NetworkDevice) -> None:
        """A reload: the link may be another, and a passt that could not be started may be startable now."""
        with self.lock:
            self._wants_link = section.link == "up"
            self._follow_link()
            if self._timer is not None:
                self._call(0.0)

    def close(self) -> None:
        super().close()
        if self._timer is not None:
            self._timer.cancel()
        self._rings.close()

    # With the lock held

    def _follow_link(self) -> None:
        self._rings.hold(not self._link)
        self.device.set_link(self._link)

    def _look_again(self) -> None:
        """Whether passt has ended; then it is looked for, unless it is already."""
        if not self._pair.is_gone or self._timer is not None:
            return
        now = time.monotonic()
        if now - self._there_since >= SETTLED_SEC:
            self._failures = 0
        self._is_gone = True
        self._backend.stream.cut()
        self._follow_link()
        if now - self._said_at >= INTERVAL_SEC:
            self._said_at, self._has_said_so = now, True
            self._slot.warn(f"{self._backend.name} has ended; the guest's link is down until it is there again")
        self._pause()

    def _pause(self) -> None:
        """Ask for it anew, later and later."""
        doublings = min(self._failures - 1, 16)
        pause_sec = min(FIRST_PAUSE_SEC * 2**doublings, LONGEST_PAUSE_SEC) if self._failures else 0.0
        self._failures += 1
        self._call(pause_sec)

    def _call(self, pause_sec: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._slot.call_later(pause_sec, self._ask)

    def _ask(self) -> None:
        try:
            self._backend.ask()
        except HostError:
            self._pause()
            return
        self._asked_at = time.monotonic()
        self._timer = self._slot.call_later(LOOK_SEC, self._look)

    def _look(self) -> None:
        """Whether the one that was asked has said something."""
        if not self._backend.stream.wait(0.0):
            if time.monotonic() - self._asked_at < FIRST_ANSWER_SEC:
                self._timer = self._slot.call_later(LOOK_SEC, self._look)
                return
        elif not self._backend.stream.is_at_end():
            self._timer = None
            self._there_since = time.monotonic()
            self._is_gone = self._pair.is_gone = False
            self._follow_link()
            self.device.announce()
            if self._has_said_so:
                self._has_said_so = False
                self._slot.warn(f"{self._backend.name} is there again")
            return
        self._backend.stream.cut()
        self._pause()


def arp_probe(mac: bytes) -> bytes:
    """Who has that address? (RFC 5227), by a station that has none yet."""
    return _ARP_PROBE.pack(b"\xff" * 6, mac, 0x0806, 1, 0x0800, 6, 4, 1, mac, bytes(4), bytes(6), _ANYBODY)
