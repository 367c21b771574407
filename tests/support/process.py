"""`vmservice run` as a process of its own, with a service manager and a bus that the test controls."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
TIMEOUT_SEC = 20.0

SIM_CONFIG = """
[kernel]
path = "/nowhere/vmlinuz"
[cpus]
boot = 1
max = 4
"""


def vmservice(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "vmservice", *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SEC,
        stdin=subprocess.DEVNULL,
        check=False,
        env=_environment(environment or {}),
    )


class Manager:
    """A service manager's notification socket."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="vmservice-notify-")
        self.address = os.path.join(self._folder.name, "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self.messages: list[dict[str, str]] = []

    def wait_for(self, field: str, value: str = "") -> dict[str, str]:
        """The first message from now on that has `field`, with `value` in its value."""
        deadline = time.monotonic() + TIMEOUT_SEC
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            lines = self._socket.recv(4096).decode().splitlines()
            message = dict(line.split("=", 1) for line in lines)
            self.messages.append(message)
            if value in message.get(field, "\0"):
                return message
        raise AssertionError(f"no {field}={value}; there were {self.messages}")

    def rest(self) -> list[dict[str, str]]:
        """The messages that are there and were not taken yet."""
        self._socket.settimeout(0)
        messages = []
        with contextlib.suppress(BlockingIOError):
            while True:
                messages.append(dict(line.split("=", 1) for line in self._socket.recv(4096).decode().splitlines()))
        return messages

    def fill(self) -> None:
        """Leave no room for another message."""
        other = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        with other, contextlib.suppress(BlockingIOError):
            while True:
                other.sendto(b"X=1", self.address)

    def vanish(self) -> None:
        os.unlink(self.address)

    def close(self) -> None:
        self._socket.close()
        self._folder.cleanup()


class VmProcess:
    """One `vmservice run`; standard error is kept."""

    def __init__(
        self,
        config: Path,
        *options: str,
        manager: Manager | None = None,
        name: str = "demo",
        program: tuple[str, ...] = ("-m", "vmservice"),
    ) -> None:
        """`program` is what Python is to run in place of vmservice."""
        # Where its lock is: VMs of other tests have the same name.
        environment = {"STATE_DIRECTORY": os.environ.get("STATE_DIRECTORY", str(config.parent))}
        if manager:
            environment["NOTIFY_SOCKET"] = manager.address
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, *program, "run", "--config", str(config), *options, name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
            env=_environment(environment),
        )
        self.pid = self._process.pid

    @property
    def messages(self) -> str:
        # Not by seeking: the process writes at the same position.
        return os.pread(self._stderr.fileno(), 1 << 20, 0).decode()

    def wait_for(self, text: str) -> None:
        """Returns when it has said `text`."""
        deadline = time.monotonic() + TIMEOUT_SEC
        while text not in self.messages:
            assert time.monotonic() < deadline, f"no {text!r} in {self.messages!r}"
            time.sleep(0.02)

    def send(self, number: signal.Signals | int) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        return self._process.wait(TIMEOUT_SEC)

    def running(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        if self.running():
            self._process.kill()
        self._process.wait()
        self._stderr.close()


def _environment(more: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NOTIFY_SOCKET", "INVOCATION_ID")}
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join([str(CHECKOUT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]),
        "PYTHONWARNINGS": "ignore::DeprecationWarning",
        **more,
    }
