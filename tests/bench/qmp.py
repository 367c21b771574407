"""QEMU's monitor protocol, as little of it as the bench needs."""

from __future__ import annotations

import json
import socket


class Qmp:
    """Commands, one at a time; events are passed over."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(path)
        self._file = self._socket.makefile("rb")
        self._file.readline()  # the greeting
        self.execute("qmp_capabilities")

    def execute(self, command: str) -> None:
        self._socket.sendall(b'{"execute": "%s"}\n' % command.encode())
        while "return" not in (reply := json.loads(self._file.readline())):
            if "error" in reply:
                raise SystemExit(f"QMP {command}: {reply['error']}")
