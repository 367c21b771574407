"""A Log whose entries a test reads, and an outbox that sends to sockets of the test."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from support.datagrams import Listener

from vmservice.host.journal_socket import encode
from vmservice.service.journal import Log
from vmservice.service.outbox import Outbox


def deliver_to(path: str, encoded: Callable[[dict[str, str]], bytes] = encode) -> Callable[[dict[str, str]], None]:
    """Sends an item to the socket at `path`, as systemd-python does to the one that it knows."""

    def deliver(item: dict[str, str]) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
            sender.sendto(encoded(item), f"\0{path[1:]}" if path[0] == "@" else path)

    return deliver


def notification(fields: dict[str, str]) -> bytes:
    """The datagram of sd_notify(3)."""
    return "\n".join(f"{name}={value}" for name, value in fields.items()).encode()


@contextmanager
def journal_log(name: str = "demo") -> Iterator[tuple[Listener, Log]]:
    """A Log under systemd: standard error is the journal's stream."""
    reader, writer = os.pipe()
    status = os.fstat(writer)
    former = os.environ.get("JOURNAL_STREAM")
    os.environ["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
    outbox = Outbox()
    try:
        with Listener() as journal:
            log = Log(name, outbox, writer, journal.path, deliver_to(journal.path))
            outbox.start()
            yield journal, log
            outbox.close()
    finally:
        outbox.close()
        os.environ.pop("JOURNAL_STREAM")
        if former is not None:
            os.environ["JOURNAL_STREAM"] = former
        os.close(reader)
        os.close(writer)
