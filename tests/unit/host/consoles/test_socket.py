"""Consoles at sockets: one client at a time, several in turn, and nobody, neither gone nor stuck, who holds the guest up."""

from __future__ import annotations

import os
import select
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.console_log import Log
from support.movers import MoveNow

from vmservice.errors import ConfigError, HostError
from vmservice.host.consoles import socket as console_socket
from vmservice.host.consoles.base import WAITING_LIMIT_BYTES
from vmservice.host.consoles.open import open_console
from vmservice.host.consoles.socket import BUSY, SocketConsole, open_socket_console
from vmservice.host.listen_fds import take_listen_fds

TIMEOUT_SEC = 60.0
MIB = 1 << 20


Make = Callable[..., SocketConsole]


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def make(tmp_path: Path, log: Log) -> Iterator[Make]:
    consoles: list[SocketConsole] = []

    def make(label: str = "serial", *, is_stream: bool = False) -> SocketConsole:
        consoles.append(open_socket_console(log, MoveNow(), label, directory=str(tmp_path), passed_fd=-1, is_stream=is_stream))
        return consoles[-1]

    yield make
    for console in consoles:
        console.close()


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Callable[[], socket.socket]]:
    clients: list[socket.socket] = []

    def connect() -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(TIMEOUT_SEC)
        client.connect(str(tmp_path / "serial.sock"))
        clients.append(client)
        return client

    yield connect
    for client in clients:
        client.close()


def take(console: SocketConsole) -> bytes:
    """What the event loop does when `input_fd` is readable."""
    assert select.select([console.input_fd], [], [], TIMEOUT_SEC)[0]
    try:
        data = console.read(100)
    except BlockingIOError:
        return b""
    console.took(len(data), console.visit)
    return data


def is_quiet(console: SocketConsole) -> bool:
    return not select.select([console.input_fd], [], [], 0)[0]


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_several_in_turn(make: Make, connect: Callable[[], socket.socket], log: Log, tmp_path: Path) -> None:
    console = make()
    assert log.messages == [f"the serial console is at the socket {tmp_path}/serial.sock"]
    console.write(b"login: ")
    fds = open_fds()
    for visit in range(3):
        client = connect()
        assert take(console) == b""
        assert console.is_attached
        client.sendall(b"root\n")
        assert take(console) == b"root\n"
        console.write(b"# ")
        assert client.recv(100) == (b"login: # " if visit == 0 else b"meanwhile # ")
        client.close()
        assert take(console) == b""
        assert not console.is_attached
        assert is_quiet(console)
        console.write(b"meanwhile ")
    assert open_fds() == fds
    assert console.size() == (0, 0)


def test_who_may_connect(make: Make, tmp_path: Path) -> None:
    console = make()
    status = (tmp_path / "serial.sock").stat()
    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o660
    console.close()
    console.close()
    assert os.listdir(tmp_path) == []


def test_a_further_client_is_told_that_it_is_busy(make: Make, connect: Callable[[], socket.socket]) -> None:
    console = make()
    first = connect()
    take(console)
    fds = open_fds()
    for _ in range(20):
        second = connect()
        take(console)
        assert second.recv(100) + second.recv(100) == BUSY
        second.close()
    first.sendall(b"x")
    assert take(console) == b"x"
    assert open_fds() == fds


def test_a_program_at_a_stream_is_told_nothing_it_could_take_for_an_answer(
    make: Make, connect: Callable[[], socket.socket]
) -> None:
    console = make(is_stream=True)
    first = connect()
    take(console)
    second = connect()
    take(console)
    assert second.recv(100) == b""
    console.write(b"{}")
    assert first.recv(100) == b"{}"


def test_what_was_typed_before_leaving_arrives(make: Make, connect: Callable[[], socket.socket]) -> None:
    console = make()
    client = connect()
    client.sendall(b"x" * 150)
    client.close()
    assert [take(console), take(console), take(console), take(console)] == [b"", b"x" * 100, b"x" * 50, b""]
    assert not console.is_attached


def test_who_types_no_more_may_still_read(make: Make, connect: Callable[[], socket.socket]) -> None:
    console = make()
    client = connect()
    take(console)
    client.sendall(b"ls\n")
    client.shutdown(socket.SHUT_WR)
    assert [take(console), take(console)] == [b"ls\n", b""]
    assert is_quiet(console)
    console.write(b"etc usr\n")
    assert client.recv(100) == b"etc usr\n"
    client.close()
    assert take(console) == b""
    assert not console.is_attached


def test_a_client_who_does_not_read_loses_the_oldest(make: Make, connect: Callable[[], socket.socket]) -> None:
    console = make()
    client = connect()
    take(console)
    for number in range(40_000):
        console.write(b"line %05d\r\n" % number)
    assert len(console._waiting) <= WAITING_LIMIT_BYTES
    seen = b""
    while not seen.endswith(b"line 39999\r\n"):
        seen += client.recv(MIB)
        console.move()
    assert seen.startswith(b"line 00000\r\n")
    assert len(seen) < 40_000 * 12
    assert console.has_room()


def test_a_stream_loses_nothing_and_says_when_it_is_full(make: Make, connect: Callable[[], socket.socket]) -> None:
    console = make(is_stream=True)
    console.write(b"to nobody")
    client = connect()
    take(console)
    sent = b""
    while console.has_room():
        sent += b"%07d " % len(sent) * 1000
        console.write(sent[-8000:])
    assert len(console._waiting) >= WAITING_LIMIT_BYTES
    seen = b""
    while len(seen) < len(sent):
        seen += client.recv(MIB)
        console.move()
    assert seen == sent
    assert console.has_room()


def test_the_next_conversation_at_a_stream_is_its_own(make: Make, connect: Callable[[], socket.socket]) -> None:
    console = make(is_stream=True)
    client = connect()
    take(console)
    while console.has_room():
        console.write(b"x" * 8000)
    client.close()
    take(console)
    client = connect()
    take(console)
    console.write(b"new")
    assert client.recv(100) == b"new"


def test_a_guest_that_takes_nothing_keeps_nobody_from_the_console(make: Make, connect: Callable[[], socket.socket]) -> None:
    """Its keyboard does not read then, and `flush` does what is to be done."""
    console = make()
    first = connect()
    take(console)
    first.sendall(b"never read")
    second = connect()
    console.move()
    assert second.recv(100) == BUSY
    first.close()
    third = connect()
    console.move()
    console.write(b"hello")
    assert third.recv(100) == b"hello"
    third.sendall(b"me")
    assert take(console) == b"me"


def test_what_the_guest_has_not_taken_stays_with_who_typed_it(make: Make, connect: Callable[[], socket.socket]) -> None:
    """It was read for a guest that did not listen, and became the next client's; also when that one waits already."""
    console = make()
    first = connect()
    take(console)
    first.sendall(b"x" * 150)
    assert console.read(100) == console.read(100) == b"x" * 100
    console.took(20, console.visit)
    assert console.read(1000) == b"x" * 130
    visit = console.visit
    first.close()
    second = connect()
    second.sendall(b"mine")
    assert console.read(1000) == b"x" * 130
    assert console.visit == visit, "what is answered is of the visit that is said"
    console.move()
    assert console.visit == visit + 1
    console.took(4, visit)
    assert console.read(1000) == b"mine", "what the first one typed was taken too late"


def test_who_is_let_in_by_the_loop_is_watched_by_the_mover(
    make: Make, connect: Callable[[], socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a guest that then takes nothing the loop reads no more, and nobody noticed that this client went."""
    console = make(is_stream=True)
    watched: list[int] = []
    monkeypatch.setattr(MoveNow, "wake", lambda _mover, console: watched.extend(fd for fd, _events in console.move()[0]))
    client = connect()
    take(console)
    assert console.fds()["client"] in watched
    client.close()


def test_a_host_without_descriptors_is_said_once_and_not_spun_on(
    make: Make, connect: Callable[[], socket.socket], log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = make()

    class Full:
        def fileno(self) -> int:
            return listener.fileno()

        def _accept(self) -> tuple[int, object]:
            raise OSError(24, "Too many open files")

    listener = console._listener
    client = connect()
    monkeypatch.setattr(console, "_listener", Full())
    assert take(console) == b""
    assert is_quiet(console)
    assert log.warnings == ["nobody can come to the serial console now: Too many open files"]
    monkeypatch.setattr(console, "_listener", listener)
    watches, due = console.move()
    assert due is not None and due > time.monotonic(), "not at once again"
    assert all(fd != listener.fileno() for fd, _events in watches)
    console._listens_again_at = time.monotonic()
    console.move()
    console.write(b"now")
    assert client.recv(100) == b"now"


def test_one_of_before_is_replaced_and_nothing_else(make: Make, connect: Callable[[], socket.socket], tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    left.bind(str(tmp_path / "serial.sock"))
    left.close()
    console = make()
    connect()
    take(console)
    assert console.is_attached
    (tmp_path / "agent.sock").mkdir()
    with pytest.raises(HostError, match=r"^cannot listen at .*/agent\.sock for the agent console: Address already in use"):
        make("agent")


def test_a_path_that_is_too_long_for_an_address(tmp_path: Path, log: Log) -> None:
    directory = tmp_path / ("d" * 64)
    directory.mkdir()
    label = "l" * 64
    console = open_socket_console(log, MoveNow(), label, directory=str(directory), passed_fd=-1, is_stream=False)
    assert os.listdir(directory) == [f"{label}.sock"]
    console.close()
    assert os.listdir(directory) == []


def test_without_a_directory(monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    with pytest.raises(ConfigError, match=r'^hvc: mode "socket" needs a directory for the socket'):
        open_console("socket", None, "demo", log, "hvc", mover=MoveNow())
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/nowhere")
    with pytest.raises(HostError, match=r"^cannot listen at /nowhere/hvc\.sock for the hvc console: No such file"):
        open_console("socket", None, "demo", log, "hvc", mover=MoveNow())


# Passed by systemd


def test_a_socket_of_systemds_is_used_and_stays(tmp_path: Path, log: Log) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        console = open_console("socket", None, "demo", log, mover=MoveNow(), passed_fd=os.dup(listener.fileno()))
        assert log.messages == [f"the serial console is at the socket {tmp_path}/s"]
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(TIMEOUT_SEC)
            client.connect(str(tmp_path / "s"))
            assert isinstance(console, SocketConsole)
            take(console)
            console.write(b"hello")
            assert client.recv(10) == b"hello"
        console.close()
        assert (tmp_path / "s").exists()


@pytest.mark.parametrize("kind", ["datagram", "connection", "file"])
def test_another_kind_of_descriptor_is_refused_and_closed(kind: str, log: Log) -> None:
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM)
    fd = os.open("/dev/null", os.O_RDONLY) if kind == "file" else os.dup(pair[0].fileno())
    with pytest.raises(ConfigError, match=r"^serial: what systemd passed under this name is no listening UNIX stream socket"):
        console_socket.check_listener(fd, "serial")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    for end in pair:
        end.close()


@pytest.mark.parametrize(
    ("pid", "count", "names", "expected"),
    [
        ("self", "2", "serial:org.test.agent", [("serial", 3), ("org.test.agent", 4)]),
        ("self", "2", "serial", [("serial", 3), ("unknown", 4)]),
        ("self", "1", None, [("unknown", 3)]),
        ("1", "1", "serial", []),
        ("self", "0", "", []),
        ("self", "-1", "", []),
        ("self", "x", "", []),
        ("", "1", "", []),
        ("self", "99999", "", []),
    ],
)
def test_what_systemd_passed(
    monkeypatch: pytest.MonkeyPatch, pid: str, count: str, names: str | None, expected: list[tuple[str, int]]
) -> None:
    kept: list[tuple[int, bool]] = []
    monkeypatch.setattr(os, "set_inheritable", lambda fd, value: kept.append((fd, value)))
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()) if pid == "self" else pid)
    monkeypatch.setenv("LISTEN_FDS", count)
    if names is not None:
        monkeypatch.setenv("LISTEN_FDNAMES", names)
    assert take_listen_fds() == expected
    assert kept == [(fd, False) for _, fd in expected]
    assert not {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} & os.environ.keys()
    assert take_listen_fds() == []
