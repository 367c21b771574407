"""Whether a process of threads sleeps when there is nothing to do."""

from __future__ import annotations

import os
import time
from pathlib import Path

SETTLED_SEC = 0.3
SETTLE_TIMEOUT_SEC = 60.0
QUIET_SEC = 2.0


def check_nothing_runs() -> None:
    """What has begun may end; then no thread but the main one runs for QUIET_SEC."""
    deadline = time.monotonic() + SETTLE_TIMEOUT_SEC
    while _switches_within(SETTLED_SEC) or _wants_to_run():
        assert time.monotonic() < deadline, "something runs all the time"
    assert _switches_within(QUIET_SEC) == 0


def _switches_within(seconds: float) -> int:
    before = _switches()
    time.sleep(seconds)
    return _switches() - before


def _wants_to_run() -> bool:
    """Whether a thread but the main one waits for a processor only."""
    stats = [(task / "stat").read_text(encoding="ascii") for task in _others()]
    return any(stat.rpartition(")")[2].split()[0] == "R" for stat in stats)


def _others() -> list[Path]:
    return [task for task in Path("/proc/self/task").iterdir() if task.name != str(os.getpid())]


def _switches() -> int:
    """How often all threads but the main one have run."""
    count = 0
    for task in _others():
        lines = (task / "status").read_text(encoding="ascii").splitlines()
        count += sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
    return count
