"""One private bus for all tests that do it no harm, and one of its own for each that kills or freezes it."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator

import pytest
from support.private_bus import PrivateBus


@pytest.fixture(scope="session")
def bus() -> Iterator[PrivateBus]:
    with PrivateBus() as bus:
        yield bus


@pytest.fixture
def own_bus() -> Iterator[PrivateBus]:
    bus = PrivateBus()
    yield bus
    bus.close()


@pytest.fixture(autouse=True)
def no_complaints(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """dbus-next logs its mishaps, tracebacks included, on the root logger; asyncio an exception that nobody looked at."""
    yield
    gc.collect()
    complaints = [record for record in caplog.get_records("call") if record.levelno >= logging.WARNING]
    assert [record.getMessage() for record in complaints] == []
