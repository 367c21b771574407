"""The host's end of a guest's network: it tells the guest what to do, and measures how fast that goes.

The guest connects again and again (bench_init.sh). The first line that it is sent is what it does with the connection: "send"
bytes without end, "take" them until there are no more, or "echo" what comes.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable

MESSAGE_BYTES = 64
# The first part of a transfer, in which TCP finds out how much there may be under way, is not counted.
WARM_UP_SEC = 0.5
TRANSFER_SEC = 2.5
ECHO_SEC = 2.0
TIMEOUT_SEC = 60.0


class GuestLink:
    """Listens at `address` of this host, for one guest. `port` is where."""

    def __init__(self, address: str) -> None:
        self._listener = socket.create_server((address, 0))
        self._listener.settimeout(TIMEOUT_SEC)
        self.port: int = self._listener.getsockname()[1]
        self._next: socket.socket | None = None

    def close(self) -> None:
        self._listener.close()
        if self._next is not None:
            self._next.close()

    def wait(self) -> None:
        """Until the guest has connected."""
        if self._next is None:
            self._next, _ = self._listener.accept()
            self._next.settimeout(TIMEOUT_SEC)
            self._next.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def is_ready(self, timeout_sec: float) -> bool:
        """Whether the guest has connected by then."""
        self._listener.settimeout(timeout_sec)
        try:
            self.wait()
        except TimeoutError:
            return False
        finally:
            self._listener.settimeout(TIMEOUT_SEC)
        return True

    def throughput(self, job: str, cpu_sec: Callable[[], float]) -> tuple[float, float]:
        """MiB/s that the guest sends or takes, and seconds of `cpu_sec`, a clock, for each GiB."""
        connection = self._begin(job)
        buffer = bytearray(1 << 18)
        move = (lambda: connection.recv_into(buffer)) if job == "send" else (lambda: connection.send(buffer))
        with connection:
            _move_for(WARM_UP_SEC, move)
            before, begin = cpu_sec(), time.monotonic()
            moved = _move_for(TRANSFER_SEC, move)
            taken, spent = time.monotonic() - begin, cpu_sec() - before
        self.wait()
        return moved / 2**20 / taken, spent / (moved / 2**30)

    def echo_us(self) -> float:
        """Median of the microseconds that a small message takes to the guest and back."""
        connection = self._begin("echo")
        message, taken = bytes(MESSAGE_BYTES), list[float]()
        end = time.monotonic() + ECHO_SEC
        with connection:
            while (begin := time.perf_counter()) and time.monotonic() < end:
                connection.sendall(message)
                left = MESSAGE_BYTES
                while left:
                    left -= _some(connection.recv(left))
                taken.append(time.perf_counter() - begin)
        self.wait()
        return statistics.median(taken) * 1e6

    def _begin(self, job: str) -> socket.socket:
        self.wait()
        assert self._next is not None
        connection, self._next = self._next, None
        connection.sendall(job.encode() + b"\n")
        return connection


def _move_for(seconds: float, move: Callable[[], int]) -> int:
    """Bytes moved."""
    moved, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        count = move()
        if count == 0:
            raise ConnectionError("the guest has closed its connection")
        moved += count
    return moved


def _some(data: bytes) -> int:
    if not data:
        raise ConnectionError("the guest has closed its connection")
    return len(data)
