"""Runs in a guest, by an interpreter without its library: serves sockets of the host, and asks the host for some.

Only modules that the interpreter has built in are there.
"""

from __future__ import annotations

import _socket
import _thread
import time
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

HOST, ANY = 2, 0xFFFF_FFFF
# Ports of the guest, and of the host.
COUNT, TALK, HOLD = 1000, 1001, 1002
HOST_ECHO, HOST_HOLD = 5000, 5001


def say(text: str) -> None:
    print(f"vsock: {text}", flush=True)


def everything(connection: _socket.socket) -> bytes:
    """All that comes until the other side has said its end: how much, and its checksum."""
    total = checksum = 0
    while data := connection.recv(1 << 16):
        total, checksum = total + len(data), zlib.crc32(data, checksum)
    return b"%d %d" % (total, checksum)


def count(connection: _socket.socket) -> None:
    """Answers when it has heard the end, on a connection that is half closed by then."""
    connection.sendall(everything(connection))


def talk(connection: _socket.socket) -> None:
    """Says its own end first, and hears on."""
    connection.sendall(b"from the guest")
    connection.shutdown(_socket.SHUT_WR)
    say(f"heard after its own end: {everything(connection).decode()}")


def hold(connection: _socket.socket) -> None:
    connection.recv(1)


def answer(handle: Callable[[_socket.socket], None], connection: _socket.socket) -> None:
    try:
        handle(connection)
    except OSError as error:
        say(f"{handle.__name__}: errno {error.errno}")
    connection.close()


def serve(port: int, handle: Callable[[_socket.socket], None]) -> None:
    listener = _socket.socket(_socket.AF_VSOCK, _socket.SOCK_STREAM)
    listener.bind((ANY, port))
    listener.listen(128)
    while True:
        fd, _ = listener._accept()  # type: ignore[attr-defined]
        _thread.start_new_thread(answer, (handle, _socket.socket(fileno=fd)))


def connect(port: int) -> _socket.socket:
    """A connection to the host, which may not listen yet."""
    while True:
        connection = _socket.socket(_socket.AF_VSOCK, _socket.SOCK_STREAM)
        try:
            connection.connect((HOST, port))
            return connection
        except OSError:
            connection.close()
            time.sleep(0.2)


def ask_host() -> None:
    """Until there is an answer: the host hears one guest at a time."""
    answer = b""
    while not answer:
        connection = connect(HOST_ECHO)
        try:
            connection.sendall(b"asked by the guest")
            connection.shutdown(_socket.SHUT_WR)
            answer = connection.recv(100)
        except OSError:
            time.sleep(0.2)
        connection.close()
    say(f"the host answered after the guest's end: {answer.decode()}")


def hold_host() -> None:
    """A connection that goes on until something ends it."""
    connection = connect(HOST_HOLD)
    say("holds a connection to the host")
    try:
        say(f"the connection ended with {connection.recv(1)!r}")
    except OSError as error:
        say(f"the connection ended with errno {error.errno}")
    connection.close()
    again = connect(HOST_HOLD)
    say("is connected again")
    again.close()


for port, handle in ((COUNT, count), (TALK, talk), (HOLD, hold)):
    _thread.start_new_thread(serve, (port, handle))
for client in (ask_host, hold_host):
    _thread.start_new_thread(client, ())
say("serves")
while True:
    time.sleep(1000)
