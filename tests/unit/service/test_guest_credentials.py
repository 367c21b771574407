"""Whose credential holds where several are of one name, and what is said of that."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from vmservice.config.load import Config, load_config
from vmservice.service.guest_credentials import collect

if TYPE_CHECKING:
    from vmservice.host.consoles.base import Log


class Lines:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, text: str) -> None:
        self.lines.append(text)

    warning = error = info


@pytest.fixture
def unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "credentials"
    folder.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    return folder


def config(tmp_path: Path, text: str = "", kernel: str = "kernel") -> Config:
    file = tmp_path / "demo.toml"
    file.write_text(f'[{kernel}]\npath = "x"\n{text}')
    return load_config("demo", str(file))


def test_the_units_hold_before_the_files_and_the_vmms_own_before_both(tmp_path: Path, unit: Path) -> None:
    (unit / "a").write_text("unit")
    (unit / "vmm.notify_socket").write_text("elsewhere")
    lines = Lines()
    loaded = config(tmp_path, '[credentials]\na = "file-value"\nb = "file"\n')
    found = collect(loaded, cast("Log", lines), {"vmm.notify_socket": b"here"})
    assert found == {"vmm.notify_socket": b"here", "a": b"unit", "b": b"file"}
    assert lines.lines == [
        "the credential vmm.notify_socket of the unit is not used: there is another one of that name",
        f"the credential a of {tmp_path}/demo.toml is not used: there is another one of that name",
    ]


def test_those_of_a_unit_do_not_reach_a_firmware_which_is_said(tmp_path: Path, unit: Path) -> None:
    (unit / "a").write_text("unit")
    lines = Lines()
    assert collect(config(tmp_path, kernel="firmware"), cast("Log", lines), {}) == {}
    assert lines.lines == ["the credentials of the unit do not reach the guest: a firmware makes SMBIOS tables of its own"]


def test_without_any_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    lines = Lines()
    assert collect(config(tmp_path), cast("Log", lines), {}) == {}
    assert lines.lines == []
