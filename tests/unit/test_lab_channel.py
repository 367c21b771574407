"""The near end of the channel to the lab's host, with a socket in place of a host."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab.channel import Channel, HostDied

# In which a channel that pinged every time would have sent many.
UNREAD_SEC = 0.5


class Port:
    """The far end: what QEMU is to a port of its guest. Nothing is read before read_line."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self.channel = Channel(path, lambda: True)
        self._end, _ = self._listener.accept()
        self._end.settimeout(10)
        self._lines = self._end.makefile("rb")

    def read_line(self) -> dict[str, object]:
        """The next message, which an empty line may precede; an empty one at the end of the connection."""
        while line := self._lines.readline():
            if line.strip():
                return dict(json.loads(line))
        return {}

    def answer(self, **message: object) -> None:
        self._end.sendall(json.dumps(message).encode() + b"\n")

    def answer_pings(self) -> None:
        """Until the near end is closed: another ping may be under way already when one is answered."""
        while ping := self.read_line():
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.answer(id=ping["id"], pong=ping["ping"])

    def unread(self) -> bytes:
        self._end.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            return self._end.recv(65536)
        return b""

    def close(self) -> None:
        self.channel.close()
        self._lines.close()
        self._end.close()
        self._listener.close()


@pytest.fixture
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Port]:
    monkeypatch.setattr(Channel, "_PING_SEC", 0.001)
    port = Port(tmp_path / "channel")
    yield port
    port.close()


def in_background(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_host_that_reads_nothing_is_sent_one_ping(port: Port) -> None:
    begin = time.monotonic()
    with pytest.raises(HostDied, match="did not come up in"):
        port.channel.wait_ready(UNREAD_SEC)
    assert time.monotonic() - begin >= UNREAD_SEC
    assert port.unread().count(b"ping") == 1


def test_a_host_that_opens_the_port_late_is_ready(port: Port) -> None:
    def open_late() -> None:
        time.sleep(UNREAD_SEC)
        port.answer_pings()

    agent = in_background(open_late)
    port.channel.wait_ready(60)
    port.channel.close()
    agent.join()


def test_a_ping_that_was_read_and_lost_is_sent_again(port: Port) -> None:
    def lose_two() -> None:
        port.read_line()
        port.read_line()
        port.answer_pings()

    agent = in_background(lose_two)
    port.channel.wait_ready(60)
    port.channel.close()
    agent.join()


def test_an_answer_to_an_earlier_connection_is_not_taken(port: Port) -> None:
    def answer_other() -> None:
        ping = port.read_line()
        port.answer(id=1, pong=1)
        port.answer(id=ping["id"], exit=0, timeout=False)

    agent = in_background(answer_other)
    with pytest.raises(HostDied, match="did not come up"):
        port.channel.wait_ready(UNREAD_SEC)
    agent.join()


def test_a_request_waits_for_a_host_that_is_slow_to_read(port: Port) -> None:
    """More than the socket holds, to an agent that does something else for longer than one look at the answers takes."""

    def read_late() -> None:
        time.sleep(1.5)
        request = port.read_line()
        port.answer(id=request["id"], exit=0, timeout=False)

    agent = in_background(read_late)
    # An answer that did not come: the socket's timeout is then that of a read.
    assert port.channel._receive(time.monotonic() + 0.01) is None
    assert port.channel.run("cat", 60, bytes(4 << 20), None).returncode == 0
    agent.join()
