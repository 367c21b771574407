"""A UNIX socket in place of a vsock: what a guest's service manager connects to."""

from __future__ import annotations

import _socket
import os
import socket
from pathlib import Path

from vmservice.host.guest_listener import GuestListener, Stranger


class UnixListener(GuestListener):
    """As a GuestListener, at a path. Who connects is the guest's root, until `strangers` says otherwise."""

    def __init__(self, path: Path, backlog: int = 16) -> None:
        self.path = path
        self.strangers = False
        self.accepted = 0
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        listener.bind(str(path))
        listener.listen(backlog)
        listener.setblocking(False)
        self._listener = listener

    @property
    def address(self) -> str:
        return "vsock-stream:2:1234"

    def accept(self) -> _socket.socket:
        fd, _ = self._listener._accept()  # type: ignore[attr-defined]
        self.accepted += 1
        if self.strangers:
            os.close(fd)
            raise Stranger("a test")
        connection = _socket.socket(fileno=fd)
        connection.setblocking(False)
        return connection


def say(path: Path, data: bytes, timeout_sec: float = 10.0) -> bytes:
    """As systemd does it: connect, send, shut the way there, and wait until the other side has closed. What it answered."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_sec)
        connection.connect(str(path))
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return connection.recv(1)
