"""The socket where a guest's service manager connects to: AF_VSOCK, vsock(7)."""

from __future__ import annotations

import _socket  # not `socket`, which costs milliseconds before the guest runs
import os

from vmservice.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# What systemd calls the socket that it passes: `start-back-ends` has made it, for the unit's sandbox has no AF_VSOCK.
PASSED_NAME = "vsock/notify"

_HOST_CID = 2  # VMADDR_CID_HOST
_ANY = 0xFFFFFFFF  # VMADDR_CID_ANY, and VMADDR_PORT_ANY
_BACKLOG = 16
# As with TCP: only who has CAP_NET_BIND_SERVICE in the guest has such a port, and systemd takes one where it can.
_FIRST_UNPRIVILEGED_PORT = 1024


class Stranger(Exception):
    """Whoever has connected is not the guest's service manager, and is hung up on."""


class GuestListener:
    """Takes connections of root in the guest whose context id `cid` answers at that moment. Owns the socket."""

    # By which the guest is told `address`: systemd(1), since 254.
    credential = "vmm.notify_socket"

    def __init__(self, listener: _socket.socket) -> None:
        self.cid: Callable[[], int] = _no_guest
        self._listener = listener
        listener.setblocking(False)
        self._port = int(listener.getsockname()[1])

    @property
    def fd(self) -> int:
        return self._listener.fileno()

    @property
    def address(self) -> str:
        """What the guest's credential has."""
        return f"vsock-stream:{_HOST_CID}:{self._port}"

    def accept(self) -> _socket.socket:
        """The next connection, which does not wait. BlockingIOError where there is none; Stranger; OSError."""
        fd, (cid, port) = self._listener._accept()  # type: ignore[attr-defined]  # what socket.accept is made of
        if cid != self.cid() or port >= _FIRST_UNPRIVILEGED_PORT:
            os.close(fd)
            raise Stranger(f"port {port} of CID {cid}")
        connection = _socket.socket(fileno=fd)
        connection.setblocking(False)
        return connection

    def close(self) -> None:
        self._listener.close()


def make_socket() -> _socket.socket:
    """A listening socket at a port that is free; OSError."""
    listener = _socket.socket(_socket.AF_VSOCK, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        listener.bind((_ANY, _ANY))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def open_listener(passed_fd: int) -> GuestListener:
    """At the socket that systemd has passed, or, where that is -1, at one of its own. HostError."""
    try:
        if passed_fd < 0:
            return GuestListener(make_socket())
        passed = _socket.socket(fileno=passed_fd)
    except OSError as error:
        raise HostError.from_os(
            'cannot listen on a vsock for the guest\'s READY=1, as service.ready = "guest" wants', error
        ) from error
    if passed.family != _socket.AF_VSOCK or not passed.getsockopt(_socket.SOL_SOCKET, _socket.SO_ACCEPTCONN):
        passed.close()
        raise HostError(f"systemd passed something called {PASSED_NAME} that is no listening vsock")
    return GuestListener(passed)


def _no_guest() -> int:
    return _ANY
