"""Payloads for the tests on the machine's own /dev/kvm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support import payload


@pytest.fixture(scope="session")
def payloads(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The heartbeat payload by variant; each is built once."""
    directory = tmp_path_factory.mktemp("payloads")
    return lambda variant: payload.build(variant, directory)
