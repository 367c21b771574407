"""Runs in the lab's host: vsock_host.py WHAT CID […], the host's side of what vsock_guest.py serves. Prints what it saw."""

from __future__ import annotations

import concurrent.futures
import random
import socket
import sys
import time
import zlib
from collections.abc import Callable

COUNT, TALK, HOLD = 1000, 1001, 1002
HOST_ECHO = 5000
TIMEOUT_SEC = 60.0


def connect(cid: int, port: int) -> socket.socket:
    connection = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    connection.settimeout(TIMEOUT_SEC)
    connection.connect((cid, port))
    return connection


def everything(connection: socket.socket) -> bytes:
    data = b""
    while part := connection.recv(1 << 16):
        data += part
    return data


def counted(cid: int, data: bytes, pause_sec: float = 0.0) -> bool:
    """Send, say the end, and then hear what the guest has counted."""
    with connect(cid, COUNT) as connection:
        for start in range(0, len(data), 1 << 16):
            connection.sendall(data[start : start + (1 << 16)])
            time.sleep(pause_sec)
        connection.shutdown(socket.SHUT_WR)
        return everything(connection) == b"%d %d" % (len(data), zlib.crc32(data))


def halves(cid: int) -> None:
    """Each side says its end and hears on, on connections that either has made."""
    print("host first:", counted(cid, b"x" * 100_000))
    with connect(cid, TALK) as connection:
        heard = everything(connection)
        time.sleep(0.2)
        connection.sendall(b"after the guest's end")
    print("guest first:", heard.decode())
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as listener:
        listener.settimeout(TIMEOUT_SEC)
        listener.bind((socket.VMADDR_CID_ANY, HOST_ECHO))
        listener.listen()
        peer = None
        while peer != cid:
            connection, (peer, _) = listener.accept()
            if peer != cid:
                connection.close()
        with connection:
            connection.settimeout(TIMEOUT_SEC)
            asked = everything(connection)
            connection.sendall(b"heard " + asked)
    print(f"asked by {peer}:", asked.decode())
    try:
        connect(cid, 4321).close()
    except OSError as error:
        print("a port that nobody has:", error.strerror)


def many(cid: int, count: str) -> None:
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        right = sum(pool.map(lambda number: counted(cid, b"%d" % number), range(int(count))))
    print(f"{right} of {count} connections in {time.monotonic() - began:.1f} s")


def stream(cid: int, size: str) -> None:
    """Takes ten seconds or longer, so that there is a time to pause in."""
    data = random.Random(1).randbytes(int(size))
    print("begins", flush=True)
    print("whole:", counted(cid, data, 10 / (len(data) / (1 << 16))))


def hold(cid: int) -> None:
    """Hold a connection until it is ended."""
    with connect(cid, HOLD) as connection:
        print("held", flush=True)
        try:
            print("ended with", connection.recv(1))
        except OSError as error:
            print("ended with", error.strerror)


def listen(port: int, connections: str) -> None:
    """Take so many connections, and keep them."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as listener:
        listener.settimeout(TIMEOUT_SEC)
        listener.bind((socket.VMADDR_CID_ANY, port))
        listener.listen()
        kept = [listener.accept()[0] for _ in range(int(connections))]
        print("accepted", len(kept))


if __name__ == "__main__":
    tasks: dict[str, Callable[..., None]] = {"halves": halves, "many": many, "stream": stream, "hold": hold, "listen": listen}
    tasks[sys.argv[1]](int(sys.argv[2]), *sys.argv[3:])
