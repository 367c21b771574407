"""The rows of the bench: how they are measured in turn, what is aimed at, and the one table that shows them."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping

# Row → side ("vmservice", "peer") → one figure a run.
Samples = dict[str, dict[str, list[float]]]

# What a row's ratio to the peer may be at most; in rows without a peer the figure itself.
AIMS = {
    "first byte, ms": 0.5,
    "resident, MiB": 0.75,
    "VM exit, µs": 1.2,
    "pause and resume, 1 vCPU, ms": 1.5,
    "pause and resume, 8 vCPUs, ms": 1.5,
    "serial, KiB/s": 1.5,
    "serial, status read before each byte, KiB/s": 1.5,
    "30 idle VMs, % of a core": 1.5,
    "30 idle VMs, MiB beyond the guest, each": 0.75,
    "Linux to /init, quiet, s": 1.0,
    "Linux to /init, full console, s": 1.1,
    "beyond the guest's memory, MiB": 0.6,
    "Resize 1 to 4, s": 1.5,
    "Resize 4 to 1, s": 1.5,
    "Linux to ttyS0, KiB/s": 1.5,
    "Linux to hvc0, KiB/s": 1.5,
}


def note(samples: Samples, row: str, side: str, figure: float) -> None:
    """Keeps one figure, and says it."""
    samples.setdefault(row, {"vmservice": [], "peer": []})[side].append(figure)
    print(f"bench: {row}: {side} {figure:.2f}", file=sys.stderr, flush=True)


def in_turn(rows: Mapping[str, Mapping[str, Callable[[], float]]], runs: int) -> Samples:
    """Each row's sides one after the other, `runs` times; the first start, which reads from the disk, is not counted."""
    time.sleep(3)  # a file that has just been written is not taken into the cache of parsed configurations
    samples: Samples = {}
    for name, sides in rows.items():
        for measure in sides.values():
            measure()
        for _ in range(runs):
            for side, measure in sides.items():
                note(samples, name, side, measure())
    return samples


def table(samples: Samples) -> str:
    """Medians with the least and the most. The ratio says how many times worse ours is, also where more is better."""
    lines = ["| | vmservice | peer | ratio | aim: at most |", "|---|---|---|---|---|"]
    for name, sides in samples.items():
        aim = AIMS[name]
        if not sides["vmservice"] or not sides.get("peer", [0.0]):
            lines.append(f"| {name} | every run was lost | | | {aim} |")
            continue
        ours, peer = sides["vmservice"], sides.get("peer")
        if peer is None:
            lines.append(f"| {name} | {_spread(ours)} | – | – | {aim} |")
            continue
        ratio = statistics.median(ours) / statistics.median(peer)
        worse = 1 / ratio if name.endswith("/s") else ratio
        lines.append(f"| {name} | {_spread(ours)} | {_spread(peer)} | {worse:.2f} | {aim} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"
