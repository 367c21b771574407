"""Ctrl-C while a command waits: no traceback, and the exit status that a shell gives."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.process import CHECKOUT, TIMEOUT_SEC

from vmservice.cli import main

Output = pytest.CaptureFixture[str]


@pytest.fixture
def dumb_bus(tmp_path: Path) -> Iterator[socket.socket]:
    """It can be connected to, and says nothing."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "bus"))
        listener.listen()
        listener.settimeout(TIMEOUT_SEC)
        yield listener


@pytest.mark.parametrize("words", ["list", "status web", "top --once", "top", "ssh web", "console web", "pause web"])
def test_while_it_waits_for_the_bus(dumb_bus: socket.socket, words: str) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTHONWARNINGS": "ignore::DeprecationWarning"}
    environment["DBUS_SYSTEM_BUS_ADDRESS"] = f"unix:path={dumb_bus.getsockname()}"
    command = [sys.executable, "-m", "vmservice", *words.split()]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, env=environment)
    try:
        connection, _ = dumb_bus.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=TIMEOUT_SEC)
        assert (process.returncode, errors) == (130, b"")
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def test_a_second_one_ends_what_waits_for_systemctl(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits: list[str] = []

    class Systemctl:
        def wait(self) -> int:
            waits.append("again" if waits else "first")
            raise KeyboardInterrupt

    monkeypatch.setattr("vmservice.client.systemctl.subprocess.Popen", lambda _words: Systemctl())
    assert main(["stop", "web"]) == 130
    assert waits == ["first", "again"]
    assert capsys.readouterr() == ("", "systemctl stop vm@web\n")
