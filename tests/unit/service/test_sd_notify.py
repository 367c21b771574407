"""sd_notify: exact datagrams, and a manager that is gone, deaf or absent."""

from __future__ import annotations

import os
import socket
import time

import pytest
from support.datagrams import Listener

from vmservice.service.sd_notify import Notifier, watchdog_sec


def _silent(_text: str) -> None:
    """A log that nobody reads."""


def test_messages() -> None:
    with Listener() as manager:
        notifier = Notifier(_silent, manager.path)
        assert notifier.active
        assert notifier.ready("running; 1 vCPU")
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
        notifier.close()
        notifier.close()


def test_an_abstract_socket() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0vmservice-test-{os.getpid()}")
        notifier = Notifier(_silent, f"@vmservice-test-{os.getpid()}")
        assert notifier.status("hello")
        assert manager.recv(100) == b"STATUS=hello"
        notifier.close()


def test_a_value_cannot_smuggle_in_a_field() -> None:
    with Listener() as manager:
        notifier = Notifier(_silent, manager.path)
        notifier.status("one\nMAINPID=1\r\ntwo")
        assert manager.receive() == b"STATUS=one MAINPID=1  two"
        notifier.status("é" * 4000)
        datagram = manager.receive()
        assert len(datagram) <= 1024 + len(b"STATUS="), "systemd drops a datagram of more than 4096 bytes"
        assert set(datagram.decode().removeprefix("STATUS=")) == {"é"}
        notifier.close()


@pytest.mark.parametrize("address", ["/run/vmservice-nowhere/notify", "@vmservice-nowhere", "/" + "x" * 200])
def test_a_socket_that_is_gone_is_said_once(address: str) -> None:
    log: list[str] = []
    notifier = Notifier(log.append, address)
    for _ in range(3):
        assert not notifier.ready("running")
    (sentence,) = log
    assert address in sentence
    assert any(words in sentence for words in ("No such file", "Connection refused", "path too long"))
    notifier.close()


def test_no_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    log: list[str] = []
    notifier = Notifier(log.append)
    assert not notifier.active
    assert not notifier.ready("running")
    assert log == []
    notifier.close()


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with Listener() as manager:
        monkeypatch.setenv("NOTIFY_SOCKET", manager.path)
        notifier = Notifier(_silent)
        assert notifier.status("hello")
        assert manager.receive() == b"STATUS=hello"
        notifier.close()
    log: list[str] = []
    monkeypatch.setenv("NOTIFY_SOCKET", "vsock:2:1234")
    assert not Notifier(log.append).ready("running")
    assert "vsock:2:1234" in log[0]


def test_a_deaf_manager_holds_nobody_and_loses_nothing() -> None:
    """The socket is full: what it did not take goes with the next message, newest values first."""
    log: list[str] = []
    with Listener() as manager:
        notifier = Notifier(log.append, manager.path)
        begin = time.monotonic()
        while notifier.watchdog():
            assert time.monotonic() - begin < 10
        assert not notifier.ready("starting")
        assert not notifier.status("running")
        assert len(log) == 1
        manager.waiting()
        assert notifier.extend_timeout(1)
        assert manager.receive() == b"WATCHDOG=1\nREADY=1\nSTATUS=running\nEXTEND_TIMEOUT_USEC=1000000"
        assert notifier.status("again")
        assert manager.receive() == b"STATUS=again"
        notifier.close()


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
