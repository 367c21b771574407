"""Which levels run beside which, and what is made of their statuses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support import run_levels

# Stands in for pytest: a level is a file of what it is to do.
LEVEL = """\
import sys, time, pathlib
folder = pathlib.Path({folder!r})
names = [pathlib.Path(word).name for word in sys.argv[1:]]
for other in {waits_for!r}.get(names[0], ()):
    while not (folder / other).exists():
        time.sleep(0.01)
(folder / names[0]).touch()
print("ran", *names, flush=True)
sys.exit({statuses!r}.get(names[0], 0))
"""


def levels(
    monkeypatch: pytest.MonkeyPatch, folder: Path, waits_for: dict[str, tuple[str, ...]], statuses: dict[str, int]
) -> None:
    script = LEVEL.format(folder=str(folder), waits_for=waits_for, statuses=statuses)
    monkeypatch.setattr(run_levels, "command", lambda levels, options: [sys.executable, "-c", script, *levels, *options])


def test_the_system_level_runs_beside_the_fast_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each waits for the other; what the second says is not mixed into the first's."""
    levels(monkeypatch, tmp_path, {"unit": ("system",), "lab": ("unit", "system")}, {})
    assert run_levels.run(["unit", "kvm", "system", "lab"], ["-q"]) == 0
    assert capfd.readouterr().out == "ran unit kvm -q\nran system -q\nran lab -q\n"


@pytest.mark.parametrize(("statuses", "expected"), [({"system": 3}, 3), ({"unit": 1, "lab": 2}, 1), ({"lab": 2}, 2), ({}, 0)])
def test_one_that_fails_fails_the_run_and_the_others_run(
    statuses: dict[str, int], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels(monkeypatch, tmp_path, {}, statuses)
    assert run_levels.run(["unit", "system", "lab"], []) == expected
    assert {path.name for path in tmp_path.iterdir()} == {"unit", "system", "lab"}


def test_one_level_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for level in ("unit", "system", "lab"):
        levels(monkeypatch, tmp_path, {}, {})
        assert run_levels.run([level], []) == 0
        assert capfd.readouterr().out == f"ran {level}\n"
