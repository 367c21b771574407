"""$CREDENTIALS_DIRECTORY, as systemd fills it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmservice.errors import ConfigError, HostError
from vmservice.host.unit_credentials import unit_credentials


def test_outside_a_unit_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert unit_credentials(100) == {}


def test_all_regular_files_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "b.c").write_bytes(b"\0\xff")
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    assert list(unit_credentials(100).items()) == [("a", b""), ("b.c", b"\0\xff")]


def test_one_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "a").write_bytes(b"secret" * 20)
    with pytest.raises(
        ConfigError,
        match=r'^the credential "a" of the VM.s unit \(LoadCredential=, .*\) has 120 bytes; at most 100 are possible',
    ):
        unit_credentials(100)


def test_a_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", f"{tmp_path}/gone")
    with pytest.raises(HostError, match=r"cannot list the unit's credentials in .*/gone: No such file or directory"):
        unit_credentials(100)
