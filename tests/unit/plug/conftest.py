"""Block devices of the host: loop devices, which are that for all that matters here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.disks import run

MIB = 1 << 20


@pytest.fixture
def backing(tmp_path: Path) -> Path:
    path = tmp_path / "backing"
    path.write_bytes(bytes(8 * MIB))
    return path


@pytest.fixture
def device(backing: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root can make a loop device")
    if not os.path.exists("/dev/loop-control"):
        pytest.skip("this machine has no loop devices")
    device = Path(run("losetup", "--find", "--show", str(backing)))
    yield device
    run("losetup", "--detach", str(device))
