"""The gate of skipped tests: support/skips.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.skips import is_expected

TESTS = Path(__file__).parents[1]


def run_test_that_skips(folder: Path, reason: str) -> subprocess.CompletedProcess[str]:
    test = folder / "test_it.py"
    test.write_text(f"import pytest\n\ndef test_it():\n    pytest.skip({reason!r})\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "support.skips", "-p", "no:cacheprovider", "--rootdir", folder, test],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )


def test_an_unexpected_skip_fails_the_run(tmp_path: Path) -> None:
    done = run_test_that_skips(tmp_path, "did not feel like it")
    assert done.returncode == 1
    assert "test_it.py::test_it: did not feel like it" in done.stdout


@pytest.mark.parametrize("reason", ["only root can boot a container", "as is not installed"])
def test_a_reason_that_is_not_so_is_not_expected(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert is_expected(reason)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert not is_expected(reason)
