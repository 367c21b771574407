"""What the bench has measured: kept and shown as it comes, what is aimed at, and the one table of it all."""

from __future__ import annotations

import json
import statistics

# Row → side ("vmservice", "peer") → one figure a run.
Samples = dict[str, dict[str, list[float]]]

# What a row's ratio to the peer may be at most.
RATIO_AIMS = {
    "first byte, ms": 0.6,
    "resident, MiB": 0.75,
    "VM exit, µs": 1.15,
    "pause and resume, 1 vCPU, ms": 1.3,
    "pause and resume, 8 vCPUs, ms": 0.8,
    "serial, KiB/s": 1.5,
    "serial, status read before each byte, KiB/s": 1.5,
    "30 idle VMs, MiB beyond the guest, each": 0.85,
    "Linux to /init, quiet, s": 1.0,
    "Linux to /init, full console, s": 1.1,
    "beyond the guest's memory, MiB": 0.6,
    "Resize 1 to 4, s": 1.5,
    "Resize 4 to 1, s": 1.5,
    "Linux to ttyS0, KiB/s": 1.5,
    "Linux to hvc0, KiB/s": 1.2,
}
for _machine in ("microvm", "q35"):
    RATIO_AIMS[f"beside {_machine}: Debian's root disk to multi-user.target, s"] = 1.0
    for _depth, _small in ((1, 1.11), (32, 1.0)):
        for _mode in ("read", "write"):
            RATIO_AIMS[f"beside {_machine}: sequential {_mode}, 128 KiB, depth {_depth}, MiB/s"] = 1.0
            RATIO_AIMS[f"beside {_machine}: random {_mode}, 4 KiB, depth {_depth}, requests/s"] = _small
for _job in ("sequential read, 128 KiB", "sequential write, 128 KiB"):
    RATIO_AIMS[f"qcow2: {_job}, depth 32, MiB/s"] = 1.05
for _mode in ("read", "write"):
    for _depth in (1, 32):
        RATIO_AIMS[f"qcow2: random {_mode}, 4 KiB, depth {_depth}, requests/s"] = 1.05
for _pair, _slower in (("vhost-net", 1.0), ("a tap alone", 1.25), ("passt", 1.0)):
    for _way in ("guest to host", "host to guest"):
        RATIO_AIMS[f"network, {_pair}: {_way}, MiB/s"] = _slower
RATIO_AIMS["network, vhost-net: 64 bytes there and back, µs"] = 1.0
# What our own figure may be at most, whatever the peer's is.
FIGURE_AIMS = {
    "100 idle VMs, % of a core": 2.0,
    "30 idle VMs, context switches a second, each": 1.0,
}


class Figures:
    """Takes what the measuring programs print (rows.py). `failures` says of a row or a subject why it is not whole."""

    def __init__(self) -> None:
        self.samples: Samples = {}
        self.failures: dict[str, str] = {}
        self._pending = ""

    def take(self, output: str) -> None:
        """A piece of their output, which may end within a line."""
        *lines, self._pending = (self._pending + output).split("\n")
        for line in lines:
            self._take_line(line)

    def cut(self) -> None:
        """The program is over: what it has begun to print will not be ended."""
        self._pending = ""

    def fail(self, what: str, why: str) -> None:
        self.failures[what] = why
        say(f"{what} failed: {why}")

    def verdict(self) -> str:
        """The last line: what failed, if anything has."""
        if not self.failures:
            return "every row was measured"
        return "FAILED: " + "; ".join(f"{what} ({why.splitlines()[0][:200]})" for what, why in self.failures.items())

    def _take_line(self, line: str) -> None:
        try:
            told = json.loads(line)
        except ValueError:
            told = None
        if not isinstance(told, dict):
            if line:
                print(line, flush=True)
        elif "failed" in told:
            print(told["trace"], end="", flush=True)
            self.fail(told["failed"], told["why"])
        else:
            row, side, figure = told["row"], told["side"], float(told["figure"])
            self.samples.setdefault(row, {"vmservice": [], "peer": []})[side].append(figure)
            say(f"{row}: {side} {figure:.2f}")

    def table(self) -> str:
        """Medians with the least and the most. The ratio says how many times worse ours is, also where more is better."""
        lines = ["| | vmservice | peer | ratio | aim: at most |", "|---|---|---|---|---|"]
        for name, sides in self.samples.items():
            ours, peer = sides["vmservice"], sides["peer"]
            aim = f"{FIGURE_AIMS[name]}, the figure itself" if name in FIGURE_AIMS else str(RATIO_AIMS.get(name, ""))
            lines.append(f"| {name} | {_spread(ours)} | {_spread(peer)} | {_ratio(name, ours, peer)} | {aim} |")
        return "\n".join(lines)


def say(line: str) -> None:
    print(f"bench: {line}", flush=True)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})" if values else "lost"


def _ratio(name: str, ours: list[float], peer: list[float]) -> str:
    if not ours or not peer or not statistics.median(peer) or not statistics.median(ours):
        return "–"
    ratio = statistics.median(ours) / statistics.median(peer)
    return f"{1 / ratio if name.endswith('/s') else ratio:.2f}"
