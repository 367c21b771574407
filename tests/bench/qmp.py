"""QEMU's monitor protocol, as little of it as the bench needs."""

from __future__ import annotations

import json
import socket
from typing import Any


class QmpError(Exception):
    """QEMU refused a command."""


class Qmp:
    """Commands, one at a time; events are kept until somebody waits for them."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(60.0)
        self._socket.connect(path)
        self._file = self._socket.makefile("rb")
        self._events: list[dict[str, Any]] = []
        self._file.readline()  # the greeting
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: object) -> Any:
        """What the command returns; argument names have `-` where Python's have `_`."""
        request: dict[str, object] = {"execute": command}
        if arguments:
            request["arguments"] = {name.replace("_", "-"): value for name, value in arguments.items()}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while "return" not in (reply := json.loads(self._file.readline())):
            if "error" in reply:
                raise QmpError(f"QMP {command}: {reply['error']}")
            self._events.append(reply)
        return reply["return"]

    def wait_event(self, name: str) -> None:
        """Takes the next event of that name, which may have come already."""
        for event in self._events:
            if event.get("event") == name:
                self._events.remove(event)
                return
        while (event := json.loads(self._file.readline())).get("event") != name:
            self._events.append(event)
