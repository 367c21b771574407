"""A datagram socket that a manager or a journal would listen at."""

from __future__ import annotations

import os
import socket
import struct
import tempfile
from types import TracebackType


class Listener:
    """Receives what is sent to `path`, with no buffering beyond the socket's own."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="vmservice-")
        self.path = os.path.join(self._folder.name, "socket")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._socket.settimeout(10)

    def receive(self) -> bytes:
        return self._socket.recv(1 << 20)

    def entry(self) -> dict[str, str]:
        """One entry of the journal's native protocol."""
        return decode(self.receive())

    def waiting(self) -> list[bytes]:
        """All that is there now."""
        found = []
        self._socket.setblocking(False)
        try:
            while True:
                found.append(self._socket.recv(1 << 20))
        except BlockingIOError:
            return found
        finally:
            self._socket.settimeout(10)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()
        self._folder.cleanup()


def decode(datagram: bytes) -> dict[str, str]:
    """The fields of an entry, as journald reads them: https://systemd.io/JOURNAL_NATIVE_PROTOCOL."""
    fields = {}
    while datagram:
        line, _, datagram = datagram.partition(b"\n")
        name, separator, value = line.partition(b"=")
        if not separator:
            (length,) = struct.unpack_from("<Q", datagram)
            value = datagram[8 : 8 + length]
            assert datagram[8 + length : 9 + length] == b"\n"
            datagram = datagram[9 + length :]
        fields[name.decode()] = value.decode()
    return fields
