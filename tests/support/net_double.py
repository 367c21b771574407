"""A network's back end of vhost-user in a thread of the test's own: as much of passt as its front end can tell apart."""

from __future__ import annotations

import os
from pathlib import Path

from support.vhost_user_double import DiskBackEnd

from vmservice.devices.virtio.queue import Chain

# MRG_RXBUF, LOG_ALL, VERSION_1, and protocol features: all that passt of 2025 has.
FEATURES = 1 << 15 | 1 << 26 | 1 << 32 | 1 << 30
PROTOCOL = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 19  # LOG_SHMFD, RARP, REPLY_ACK, DEVICE_STATE
HEADER = bytes(10) + b"\1\0"  # of a frame in one buffer
RECEIVE, TRANSMIT = 0, 1


class NetBackEnd(DiskBackEnd):
    """`frames` are what the driver has sent; `send` gives it one."""

    def __init__(self, path: Path) -> None:
        self.frames: list[bytes] = []
        self._outgoing: list[bytes] = []
        super().__init__(path)
        self.features, self.protocol = FEATURES, PROTOCOL
        self.puts_back = True

    def send(self, frame: bytes) -> None:
        self._outgoing.append(frame)
        os.eventfd_write(self._wake, 1)

    def can_execute(self, chain: Chain) -> bool:
        return not chain.writable_bytes or bool(self._outgoing)

    def execute(self, chain: Chain) -> int:
        if chain.writable_bytes:
            return chain.write(HEADER + self._outgoing.pop(0))
        self.frames.append(chain.read(1 << 17)[len(HEADER) :])
        return 0
