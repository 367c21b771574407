"""The catalog explains each message id, and journalctl takes it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vmservice.service import message_ids

CATALOG = Path(__file__).parents[3] / "units" / "vmservice.catalog"
TABLE = {name: value for name, value in vars(message_ids).items() if name.isupper()}
FIELDS = {"VM_NAME", "VM_LAST_EXIT", "VM_STATE"}


def entries() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in CATALOG.read_text("utf-8").splitlines():
        if line.startswith("-- "):
            lines = found.setdefault(line.removeprefix("-- "), [])
        else:
            lines.append(line)
    return found


def test_the_table_and_the_catalog_are_one() -> None:
    assert set(entries()) == set(TABLE.values())
    assert len(set(TABLE.values())) == len(TABLE)
    for value in TABLE.values():
        assert len(value) == 32
        assert int(value, 16)


def test_each_entry_is_complete() -> None:
    for lines in entries().values():
        header, text = lines[: lines.index("")], lines[lines.index("") + 1 :]
        assert [line.split(":")[0] for line in header] == ["Subject", "Defined-By"]
        assert any(text)
        assert set("\n".join(lines).split("@")[1::2]) <= FIELDS


def test_journalctl_takes_it(tmp_path: Path) -> None:
    if shutil.which("journalctl") is None:
        pytest.skip("journalctl is not installed")
    folder = tmp_path / "usr/lib/systemd/catalog"
    folder.mkdir(parents=True)
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    shutil.copy(CATALOG, folder)
    subprocess.run(["journalctl", f"--root={tmp_path}", "--update-catalog"], check=True, capture_output=True)
    result = subprocess.run(
        ["journalctl", f"--root={tmp_path}", "--no-pager", "--list-catalog"], check=True, capture_output=True, text=True
    )
    assert {line.split()[0] for line in result.stdout.splitlines()} >= set(TABLE.values())
    assert f"{TABLE['VM_PAUSED']} vmservice: VM @VM_NAME@ paused" in result.stdout
