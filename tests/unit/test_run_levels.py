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
half = sys.argv[sys.argv.index("-k") + 1:][:1] if "-k" in sys.argv else []
name = "-".join([pathlib.Path(sys.argv[1]).name, *half])
(folder / name).touch()
for other in {waits_for!r}.get(name, ()):
    while not (folder / other).exists():
        time.sleep(0.01)
print("ran", *sys.argv[1:], flush=True)
sys.exit({statuses!r}.get(name, 0))
"""
TRIXIE, BOOKWORM = "system-not (bookworm or cockpit)", "system-bookworm or cockpit"


def levels(
    monkeypatch: pytest.MonkeyPatch, folder: Path, waits_for: dict[str, tuple[str, ...]], statuses: dict[str, int]
) -> None:
    script = LEVEL.format(folder=str(folder), waits_for=waits_for, statuses=statuses)
    monkeypatch.setattr(run_levels, "command", lambda levels, options: [sys.executable, "-c", script, *levels, *options])


def test_the_system_level_runs_beside_the_fast_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each waits for the others; what one says is not mixed into what another does."""
    every = ("kvm", "unit", TRIXIE, BOOKWORM)
    levels(monkeypatch, tmp_path, dict.fromkeys(every, every), {})
    assert run_levels.run(["unit", "kvm", "system", "lab"], ["-q"]) == 0
    assert capfd.readouterr().out.splitlines() == [
        "ran kvm -q",
        "ran unit -q",
        "ran system -k not (bookworm or cockpit) -q",
        "ran system -k bookworm or cockpit -q",
        f"ran lab {' '.join(run_levels.LAB_IN_TWO)} -q",
    ]


@pytest.mark.parametrize(
    ("statuses", "expected"), [({TRIXIE: 3}, 3), ({BOOKWORM: 4}, 4), ({"unit": 1, "lab": 2}, 1), ({"lab": 2}, 2), ({}, 0)]
)
def test_one_that_fails_fails_the_run_and_the_others_run(
    statuses: dict[str, int], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels(monkeypatch, tmp_path, {}, statuses)
    assert run_levels.run(["unit", "system", "lab"], []) == expected
    assert {path.name for path in tmp_path.iterdir()} == {"unit", TRIXIE, BOOKWORM, "lab"}


def test_an_expression_of_ones_own_is_run_once() -> None:
    commands = run_levels.side_by_side(["unit", "system"], ["-k", "polkit"])
    assert [(Path(words[-3]).name, words[-2:]) for words in commands] == [
        ("unit", ["-k", "polkit"]),
        ("system", ["-k", "polkit"]),
    ]


def test_one_level_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for level, runs in (("unit", 1), ("system", 2), ("lab", 1)):
        levels(monkeypatch, tmp_path, {}, {})
        assert run_levels.run([level], []) == 0
        assert capfd.readouterr().out.count(f"ran {level}") == runs
