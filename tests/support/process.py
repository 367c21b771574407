"""`vmservice run` as a process of its own, with a service manager and a bus that the test controls."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
TIMEOUT_SEC = 60.0

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
    """A service manager's notification socket, which is read at once. `messages` are those that were taken."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="vmservice-notify-")
        self.address = os.path.join(self._folder.name, "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self.messages: list[dict[str, str]] = []
        self._end = os.eventfd(0, os.EFD_CLOEXEC)
        self._waiting: queue.Queue[dict[str, str]] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        """What comes with a barrier is closed, and so the sender knows that the rest has been read."""
        while self._end not in select.select([self._socket.fileno(), self._end], [], [])[0]:
            text = self._socket.recv(4096).decode()
            if text != "BARRIER=1":
                self._waiting.put(dict(line.split("=", 1) for line in text.splitlines()))

    def _stop_reading(self) -> None:
        os.eventfd_write(self._end, 1)
        self._reader.join()

    def wait_for(self, field: str, value: str = "") -> dict[str, str]:
        """The first message from now on that has `field`, with `value` in its value."""
        deadline = time.monotonic() + TIMEOUT_SEC
        with contextlib.suppress(queue.Empty):
            while True:
                message = self._waiting.get(timeout=max(deadline - time.monotonic(), 0))
                self.messages.append(message)
                if value in message.get(field, "\0"):
                    return message
        raise AssertionError(f"no {field}={value}; there were {self.messages}")

    def rest(self) -> list[dict[str, str]]:
        """The messages of a process that has ended which were not taken yet."""
        messages = []
        with contextlib.suppress(queue.Empty):
            while True:
                messages.append(self._waiting.get_nowait())
        return messages

    def fill(self) -> None:
        """Read no more, and leave no room for another message."""
        self._stop_reading()
        other = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        with other, contextlib.suppress(BlockingIOError):
            while True:
                other.sendto(b"X=1", self.address)

    def vanish(self) -> None:
        os.unlink(self.address)

    def close(self) -> None:
        self._stop_reading()
        os.close(self._end)
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


@contextlib.contextmanager
def running_sim(config: Path, bus: str, more: str = "") -> Iterator[VmProcess]:
    """The VM `demo`, simulated, on the bus at the address `bus`, once it is ready; `more` is configured besides."""
    config.write_text(SIM_CONFIG + more)
    manager = Manager()
    process = VmProcess(config, "--sim", "--bus", bus, manager=manager)
    try:
        manager.wait_for("READY", "1")
        yield process
    finally:
        process.close()
        manager.close()
