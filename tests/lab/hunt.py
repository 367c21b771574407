"""The hunt for a guest that goes silent, or resets unasked, in its boot: ours and QEMU's microvm in turn, until one does.

    hunt.py [--boots N] [--lanes N] [--go-on] LOG

Boots Linux guests in a host of the lab, run at nice 10 in the background: 1, 2 and 4 vCPUs, Debian 13's and 12's kernels, as
bzImage and by PVH, `quiet`. LOG gets a line of JSON for each boot; what it already has is counted, so that a hunt may go on
another day. A guest is ended as soon as its /init has said its line. A host that dies is counted, and started anew.

At the first guest that says nothing for three minutes, or ends before it has said its line, the hunt ends with status 1: LOG
has what guest_evidence.py collected; host and guest are left as they are for `lab.py run`, and `lab.py stop` ends them. With
--go-on such a guest is counted, and the hunt goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Run as a script: its own folder gives way to tests/, so that `lab` is this package and not a file.
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

from lab.channel import CommandFailed, HostDied
from lab.cpio import CpioArchive
from lab.host import LabHost
from lab.prepare import install, payload
from support.cache import cache_dir, say

HERE = Path(__file__).parent
# A host that dies costs the boots that were under way, not the batch.
BATCH = 48
NICE = 10


def hunt_initramfs(directory: Path) -> Path:
    """An initramfs of one file, /init."""
    program, objects, target = directory / "init", directory / "init.o", directory / "hunt.initramfs"
    subprocess.run(["as", "-o", objects, HERE / "hunt_init.S"], check=True, stdin=subprocess.DEVNULL)
    subprocess.run(["ld", "-static", "-s", "-o", program, objects], check=True, stdin=subprocess.DEVNULL)
    archive = CpioArchive()
    archive.add_directory("dev")
    archive.add_character_device("dev/console", 5, 1)
    archive.add_file("init", program.read_bytes(), 0o755)
    archive.write(target)
    return target


def hunt_files(directory: Path) -> dict[str, Path]:
    """What the host needs in /lab besides payload()."""
    programs = {"hunter.py": HERE / "hunter.py", "guest_evidence.py": HERE.parent / "support/guest_evidence.py"}
    return {"hunt.initramfs": hunt_initramfs(directory), **programs}


def boot_batch(host: LabHost, log: Path, *words: object) -> None:
    """Writes each line of the hunter to `log` as it comes."""
    pending = ""

    def take(output: str) -> None:
        nonlocal pending
        *lines, pending = (pending + output).split("\n")
        with log.open("a") as file:
            for line in lines:
                file.write(line + "\n")

    done = host.run(" ".join(["python3 /lab/hunter.py", *map(str, words)]), timeout=BATCH * 240, on_output=take)
    if done.returncode != 0:
        raise SystemExit(f"hunt: {done}")


def note(log: Path, **what: object) -> None:
    with log.open("a") as file:
        file.write(json.dumps(what) + "\n")


def records(log: Path) -> list[dict[str, Any]]:
    if not log.exists():
        return []
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


def table(log: Path) -> str:
    """Boots by side and kind, what came of them, and seconds from exec to the guest's line."""
    boots = [record for record in records(log) if "result" in record]
    lines = ["| | kernel | vCPUs | up | silent | reset | median, s | most, s |", "|---|---|---|---|---|---|---|---|"]
    for side, kernel, cpus in sorted({(boot["side"], boot["kernel"], boot["cpus"]) for boot in boots}):
        kind = [boot for boot in boots if (boot["side"], boot["kernel"], boot["cpus"]) == (side, kernel, cpus)]
        lines.append(f"| {side} | {kernel} | {cpus} | {row(kind)} |")
    for side in sorted({boot["side"] for boot in boots}):
        lines.append(f"| {side} | all | | {row([boot for boot in boots if boot['side'] == side])} |")
    deaths = [record["host died"] for record in records(log) if "host died" in record]
    return "\n".join([*lines, f"hosts that died: {len(deaths)}", *deaths])


def row(boots: list[dict[str, Any]]) -> str:
    results = [boot["result"] for boot in boots]
    seconds = [boot["seconds"] for boot in boots if boot["result"] == "up"] or [0.0]
    counts = " | ".join(str(results.count(result)) for result in ("up", "silent", "reset"))
    return f"{counts} | {statistics.median(seconds):.1f} | {max(seconds):.1f}"


def hunt(log: Path, boots: int, lanes: int, go_on: bool) -> int:
    """Until `log` has so many boots, or, unless it is to `go_on`, one that went wrong: then 1."""
    host = LabHost(cache_dir() / "host")
    if host.alive():
        raise SystemExit("hunt: a host is running already; `lab.py stop` ends it")
    with tempfile.TemporaryDirectory(prefix="vmservice-") as directory:
        files = {**payload(), **hunt_files(Path(directory))}
        while len(done := [record for record in records(log) if "result" in record]) < boots:
            first = max((record["number"] for record in done), default=-1) + 1
            try:
                if not host.alive():
                    host.start(files, detached=True)
                    install(host)
                boot_batch(host, log, first, min(BATCH, boots - len(done)), lanes, *["--go-on"] * go_on)
            except (HostDied, CommandFailed) as death:
                note(log, **{"host died": str(death), "at": time.strftime("%H:%M:%S"), "words": host.last_words()})
                host.stop()
            say(table(log))
            if not go_on and any(record["result"] != "up" for record in records(log) if record.get("number", -1) >= first):
                say("found: LOG has it, and the host is left as it is")
                return 1
    host.stop()
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="hunt.py", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--boots", type=int, default=1000, metavar="N", help="until LOG has so many (default 1000)")
    parser.add_argument("--lanes", type=int, default=2, metavar="N", help="guests at once (default 2)")
    parser.add_argument("--go-on", action="store_true", help="count a guest that went wrong, and boot on")
    parser.add_argument("--table", action="store_true", help="only show what LOG has")
    parser.add_argument("log", type=Path, metavar="LOG")
    options = parser.parse_args()
    if options.table:
        print(table(options.log))
        return 0
    os.nice(NICE)
    found = hunt(options.log, options.boots, options.lanes, options.go_on)
    print(table(options.log))
    return found


if __name__ == "__main__":
    sys.exit(main())
