"""One private bus for all tests that do it no harm, and one of its own for each that kills or freezes it."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.private_bus import PrivateBus
from support.process import SIM_CONFIG, TIMEOUT_SEC, Manager


@pytest.fixture(scope="session")
def bus() -> Iterator[PrivateBus]:
    with PrivateBus() as bus:
        yield bus


@pytest.fixture
def own_bus() -> Iterator[PrivateBus]:
    bus = PrivateBus()
    yield bus
    bus.close()


@pytest.fixture
def manager() -> Iterator[Manager]:
    manager = Manager()
    yield manager
    manager.close()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The configuration of a process that runs `--sim`."""
    path = tmp_path / "demo.toml"
    path.write_text(SIM_CONFIG)
    return path


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ends are in the test's process: what is not to be waited for in vain may take long where others run, too."""
    for name in (
        "client.bus.CONNECT_TIMEOUT_SEC",
        "client.bus.DAEMON_TIMEOUT_SEC",
        "client.units.TIMEOUT_SEC",
        "client.vms.LOOK_TIMEOUT_SEC",
        "control.authority.IDENTIFY_TIMEOUT_SEC",
        "control.login.TIMEOUT_SEC",
    ):
        monkeypatch.setattr(f"vmservice.{name}", TIMEOUT_SEC)


@pytest.fixture(autouse=True)
def no_complaints(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """dbus-next logs its mishaps, tracebacks included, on the root logger; asyncio an exception that nobody looked at."""
    yield
    gc.collect()
    complaints = [record for record in caplog.get_records("call") if record.levelno >= logging.WARNING]
    assert [record.getMessage() for record in complaints] == []
