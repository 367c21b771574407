"""Which device nodes a unit lets its processes use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vmservice.check import devices
from vmservice.check.devices import may_use_device


@pytest.mark.parametrize(
    ("policy", "allowed", "writes", "is_right"),
    [
        ("auto", [], True, True),
        ("auto", [["/dev/zero", "rw"]], True, True),
        ("closed", [], True, True),
        ("strict", [], True, False),
        ("strict", [["/dev/null", "rw"]], True, True),
        ("strict", [["/dev/null", "r"]], True, False),
        ("strict", [["/dev/null", "r"]], False, True),
        ("strict", [["/dev/zero", "rw"], ["/dev/none", "rw"]], False, False),
        ("strict", [["char-mem", "rwm"]], True, True),
        ("strict", [["char-m*", "rw"]], True, True),
        ("strict", [["block-*", "rw"]], True, False),
    ],
)
def test_a_device(policy: str, allowed: list[list[str]], writes: bool, is_right: bool) -> None:
    unit: dict[str, Any] = {"DevicePolicy": policy, "DeviceAllow": allowed}
    assert may_use_device(unit, "/dev/null", writes=writes) is is_right


def test_without_a_list_of_drivers_nothing_is_said_against_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit with ProcSubset=pid has none."""
    monkeypatch.setattr(devices, "DRIVERS", str(tmp_path / "none"))
    for word, is_right in (("char-made-up", True), ("block-made-up", False), ("/dev/zero", False)):
        unit: dict[str, Any] = {"DevicePolicy": "strict", "DeviceAllow": [[word, "rw"]]}
        assert may_use_device(unit, "/dev/null", writes=True) is is_right


def test_what_is_no_device(tmp_path: Path) -> None:
    unit = {"DevicePolicy": "strict", "DeviceAllow": ()}
    assert may_use_device(unit, str(tmp_path), writes=True)
    assert may_use_device(unit, str(tmp_path / "none"), writes=True)
