"""The wall clock may jump: only the guest's RTC shows it, and `vmservice logs` shows when journald has received a line."""

from __future__ import annotations

import ast
from pathlib import Path

import vmservice

ROOT = Path(vmservice.__file__).parent
WALL_CLOCK = {"time", "time_ns", "localtime", "ctime", "CLOCK_REALTIME", "datetime"}
MAY_READ_IT = {"board/board.py": {"time"}, "client/journal.py": {"datetime"}}


def readers() -> dict[str, set[str]]:
    """File → which of WALL_CLOCK it takes from the module time, or from datetime."""
    found: dict[str, set[str]] = {}
    for path in ROOT.rglob("*.py"):
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time":
                names.add(node.attr)
            elif isinstance(node, ast.ImportFrom) and node.module in ("time", "datetime"):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names if alias.name == "datetime"}
        if used := names & WALL_CLOCK:
            found[str(path.relative_to(ROOT))] = used
    return found


def test_who_reads_the_wall_clock() -> None:
    assert readers() == MAY_READ_IT
