"""An old passt in a thread of the test's own: frames on a stream, each behind its length."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from pathlib import Path

TIMEOUT_SEC = 60.0
ARP = b"\x08\x06"


class StreamPasst:
    """Listens at `path`, and answers who asks by ARP. `frames` are the others that have come; `send` gives the guest one.

    With `hangs_up` it ends each connection at once.
    """

    def __init__(self, path: Path) -> None:
        self.frames: list[bytes] = []
        self.connections = 0
        self.hangs_up = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._outgoing: list[bytes] = []
        self._is_cut = self._ending = False
        self._thread = threading.Thread(target=self._main, name="passt double")
        self._thread.start()

    def send(self, frame: bytes) -> None:
        self._outgoing.append(frame)
        os.eventfd_write(self._wake, 1)

    def cut(self) -> None:
        """Die, as a process does; what listens, listens on."""
        self._is_cut = True
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        self._ending = True
        self.cut()
        self._thread.join(TIMEOUT_SEC)
        assert not self._thread.is_alive()
        self._listener.close()
        os.close(self._wake)

    def _main(self) -> None:
        while not self._ending:
            ready = select.select([self._listener.fileno(), self._wake], [], [])[0]
            if self._wake in ready:
                os.eventfd_read(self._wake)
            if self._listener.fileno() in ready:
                with self._listener.accept()[0] as connection, contextlib.suppress(ConnectionError):
                    self.connections += 1
                    self._is_cut = self.hangs_up
                    self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        while not self._is_cut:
            ready = select.select([connection.fileno(), self._wake], [], [])[0]
            if self._wake in ready:
                os.eventfd_read(self._wake)
            while self._outgoing and not self._is_cut:
                frame = self._outgoing.pop(0)
                connection.sendall(len(frame).to_bytes(4, "big") + frame)
            if connection.fileno() in ready and not self._take(connection):
                return

    def _take(self, connection: socket.socket) -> bool:
        head = connection.recv(4, socket.MSG_WAITALL)
        if len(head) < 4:
            return False
        frame = connection.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
        if frame[12:14] == ARP:
            self._outgoing.append(frame[6:12] + b"\x9a\x55" * 3 + frame[12:])
            os.eventfd_write(self._wake, 1)
        else:
            self.frames.append(frame)
        return True
