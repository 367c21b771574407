"""The agent in the lab's host: runs what the channel asks for and sends back what it printed.

One JSON object a line, in both directions; bytes are in base64, and requests run side by side.

asked:    {"id", "ping"} or {"id", "run", "timeout", "stdin"}
answered: {"id", "pong"}; {"id", "out"} and {"id", "err"} as output comes, and at the end {"id", "exit", "timeout"}: the exit
          status (negative for a signal), and whether the command was killed for taking too long
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import threading
import time
from typing import IO, Any

PORT = "/dev/virtio-ports/org.vmservice.lab"
# A command that prints more than this on a stream is read on, and the rest is dropped.
OUTPUT_LIMIT = 16 * 2**20
ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PAGER": "cat",
    "SYSTEMD_COLORS": "0",
    "COLUMNS": "160",
    "DEBIAN_FRONTEND": "noninteractive",
}


class Agent:
    """The port and the lock that keeps lines whole."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._lock = threading.Lock()

    def serve(self) -> None:
        """Answers for ever. While nobody is connected to the other end, a read gives nothing at once."""
        pending = b""
        while True:
            data = os.read(self._port, 65536)
            if not data:
                time.sleep(0.1)
                continue
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                self._take(line)

    def send(self, **message: object) -> None:
        with self._lock:
            data = json.dumps(message).encode() + b"\n"
            while data:
                data = data[os.write(self._port, data) :]

    def _take(self, line: bytes) -> None:
        try:
            request = json.loads(line)
        except ValueError:
            return
        if "ping" in request:
            self.send(id=request["id"], pong=request["ping"])
        elif "run" in request:
            threading.Thread(target=self._run, args=(request,), daemon=True).start()

    def _run(self, request: dict[str, Any]) -> None:
        ident = request["id"]
        process = subprocess.Popen(
            ["/bin/bash", "-c", request["run"]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            cwd="/root",
            env={**os.environ, **ENVIRONMENT},
        )
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        readers = [
            threading.Thread(target=self._forward, args=(ident, name, stream), daemon=True)
            for name, stream in (("out", process.stdout), ("err", process.stderr))
        ]
        for reader in readers:
            reader.start()
        feeder = threading.Thread(target=_feed, args=(process.stdin, base64.b64decode(request.get("stdin", ""))), daemon=True)
        feeder.start()
        timed_out = False
        try:
            process.wait(request["timeout"])
        except subprocess.TimeoutExpired:
            timed_out = True
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        # A command that left something running in the background keeps the pipes open: what it has said by now is enough.
        for reader in readers:
            reader.join(5)
        self.send(id=ident, exit=process.returncode, timeout=timed_out)

    def _forward(self, ident: int, name: str, stream: IO[bytes]) -> None:
        sent = 0
        while data := os.read(stream.fileno(), 65536):
            if sent < OUTPUT_LIMIT:
                self.send(**{"id": ident, name: base64.b64encode(data).decode()})
            sent += len(data)
        stream.close()


def _feed(stream: IO[bytes], data: bytes) -> None:
    try:
        stream.write(data)
        stream.close()
    except BrokenPipeError:
        return


if __name__ == "__main__":
    Agent(os.open(PORT, os.O_RDWR | os.O_CLOEXEC)).serve()
