"""sd_notify: exact datagrams, and a manager that is gone, deaf or absent."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator

import pytest
from support.datagrams import Listener
from support.journal_log import deliver_to, notification

from vmservice.service.outbox import Outbox
from vmservice.service.sd_notify import Notifier, watchdog_sec


@contextlib.contextmanager
def notifier_to(address: str, log: list[str]) -> Iterator[Notifier]:
    outbox = Outbox()
    notifier = Notifier(log.append, outbox, address, deliver_to(address, notification))
    outbox.start()
    try:
        yield notifier
    finally:
        outbox.close()


def test_messages() -> None:
    log: list[str] = []
    with Listener() as manager, notifier_to(manager.path, log) as notifier:
        assert notifier.active
        notifier.ready("running; 1 vCPU")
        assert manager.receive() == b"READY=1\nSTATUS=running; 1 vCPU"
        notifier.status("paused")
        assert manager.receive() == b"STATUS=paused"
        notifier.stopping()
        assert manager.receive() == b"STOPPING=1"
        notifier.extend_timeout(15)
        assert manager.receive() == b"EXTEND_TIMEOUT_USEC=15000000"
        notifier.watchdog()
        assert manager.receive() == b"WATCHDOG=1"
        notifier.failed("cannot open /dev/kvm", 13)
        assert manager.receive() == b"STATUS=cannot open /dev/kvm\nERRNO=13"
        notifier.failed("the kernel does not exist")
        assert manager.receive() == b"STATUS=the kernel does not exist"
    assert log == []


def test_an_abstract_socket() -> None:
    address = f"@vmservice-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{address[1:]}")
        manager.settimeout(10)
        with notifier_to(address, []) as notifier:
            notifier.status("hello")
            assert manager.recv(100) == b"STATUS=hello"


def test_a_value_cannot_smuggle_in_a_field() -> None:
    with Listener() as manager, notifier_to(manager.path, []) as notifier:
        notifier.status("one\nMAINPID=1\r\ntwo")
        assert manager.receive() == b"STATUS=one MAINPID=1  two"
        notifier.status("é" * 4000)
        datagram = manager.receive()
        assert len(datagram) <= 1024 + len(b"STATUS="), "systemd drops a datagram of more than 4096 bytes"
        assert set(datagram.decode().removeprefix("STATUS=")) == {"é"}


@pytest.mark.parametrize("address", ["/run/vmservice-nowhere/notify", "@vmservice-nowhere", "/" + "x" * 200])
def test_a_socket_that_is_gone_is_said_once(address: str) -> None:
    log: list[str] = []
    with notifier_to(address, log) as notifier:
        for _ in range(3):
            notifier.ready("running")
    (sentence,) = log
    assert address in sentence
    assert any(words in sentence for words in ("No such file", "Connection refused", "path too long"))


def test_no_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    log: list[str] = []
    outbox = Outbox()
    notifier = Notifier(log.append, outbox)
    assert not notifier.active
    notifier.ready("running")
    outbox.close()
    assert log == []


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/somewhere")
    assert Notifier(_silent, Outbox()).active
    log: list[str] = []
    monkeypatch.setenv("NOTIFY_SOCKET", "vsock:2:1234")
    assert not Notifier(log.append, Outbox()).active
    assert "vsock:2:1234" in log[0]


def test_a_deaf_manager_holds_nobody_and_loses_nothing() -> None:
    """The socket is full: the newest of each value waits, and each turn of the unit's life in its order."""
    log: list[str] = []
    with Listener() as manager, notifier_to(manager.path, log) as notifier:
        with contextlib.suppress(BlockingIOError):
            while True:
                deliver_to(manager.path, notification)({"X": "1"})
        begin = time.monotonic()
        notifier.status("starting")
        for _ in range(1000):
            notifier.watchdog()
        notifier.ready("running")
        notifier.status("paused")
        notifier.status("running")
        notifier.stopping()
        assert time.monotonic() - begin < 20
        # Room is made only once the thread has found the socket full: nothing would have had to wait otherwise.
        deadline = time.monotonic() + 60
        while not log and time.monotonic() < deadline:
            time.sleep(0.001)
        said = []
        while b"STOPPING=1" not in said:
            said.append(manager.receive())
        told = [line for line in said if line != b"X=1"]
        # The first was already in the thread's hands, or was not.
        assert told[-3:] == [b"READY=1\nSTATUS=running", b"STATUS=running", b"STOPPING=1"]
        assert b"".join(told[:-3]).count(b"STATUS=starting") == 1
        assert len(told) <= 5
        assert len(log) == 1


def _silent(_text: str) -> None:
    """A log that nobody reads."""


def test_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    for usec, pid, expected in (
        (None, None, None),
        ("2500000", None, 2.5),
        ("2500000", str(os.getpid()), 2.5),
        ("2500000", "1", None),
        ("0", None, None),
        ("soon", None, None),
    ):
        for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid)):
            monkeypatch.delenv(name, raising=False)
            if value is not None:
                monkeypatch.setenv(name, value)
        assert watchdog_sec() == expected
