"""A VM, or its peer, as it runs in the lab's host: by a command or as a unit.

What it needs of the host's processors is user and system time less the time of the guest, of all processes that serve the
machine. A vhost worker of the kernel is a thread of the process that it works for (Linux 6.4), so it is counted with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from bench.rows import BenchError

_PATH_TIMEOUT_SEC = 30.0
# Its guest is not asked to go down, and what ended so is not started again.
_DROP_IN = "[Service]\nKillSignal=SIGKILL\nRestart=no\n"


class Started(Protocol):
    """`pids` begin with the machine's own process."""

    pids: list[int]

    def status(self) -> str: ...
    def end(self) -> None: ...


class Command:
    """`servers` are processes that serve its devices. They end with it."""

    def __init__(self, command: Sequence[str], servers: Sequence[subprocess.Popen[bytes]] = ()) -> None:
        self._servers = servers
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self.pids = [self._process.pid, *(server.pid for server in servers)]

    def status(self) -> str:
        """Why it runs no more; empty while it runs."""
        for process in (self._process, *self._servers):
            if (code := process.poll()) is not None:
                return f"{process.args!r} ended with {code}"
        return ""

    def end(self) -> None:
        for process in (self._process, *self._servers):
            process.kill()
            process.wait()


class Unit:
    """vm@NAME.service with the units that serve its devices, such as `vm-disk@NAME:root`."""

    def __init__(self, name: str, servers: Sequence[str] = ()) -> None:
        self._unit = f"vm@{name}.service"
        self._servers = servers
        folder = Path(f"/run/systemd/system/{self._unit}.d")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "bench.conf").write_text(_DROP_IN)
        systemctl("daemon-reload")
        try:
            systemctl("start", self._unit)
            self.pids = [int(_show(unit, "MainPID")) for unit in (self._unit, *servers)]
        except BaseException:
            self.end()
            raise

    def status(self) -> str:
        if Path(f"/proc/{self.pids[0]}").exists():
            return ""
        return f"{self._unit} is {_show(self._unit, 'ActiveState')}: {_show(self._unit, 'Result')}"

    def end(self) -> None:
        """The servers too: what they have open is free afterwards."""
        systemctl("stop", self._unit, *self._servers)


def systemctl(*words: str) -> None:
    done = subprocess.run(["systemctl", *words], check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise BenchError(f"systemctl {' '.join(words)}: {done.stderr.strip()}")


def _show(unit: str, name: str) -> str:
    command = ["systemctl", "show", f"--property={name}", "--value", unit]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def host_cpu_sec(pids: Sequence[int]) -> float:
    """proc_pid_stat(5): utime and stime (14, 15) less guest_time (43), of all threads."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        ticks += int(fields[11]) + int(fields[12]) - int(fields[40])
    return ticks / os.sysconf("SC_CLK_TCK")


def hold(machine: Started) -> None:
    """Until `go_on`, nothing of it runs."""
    os.kill(machine.pids[0], signal.SIGSTOP)


def go_on(machine: Started) -> None:
    os.kill(machine.pids[0], signal.SIGCONT)


def wait_for_path(path: Path) -> None:
    deadline = time.monotonic() + _PATH_TIMEOUT_SEC
    while not path.exists():
        if time.monotonic() > deadline:
            raise BenchError(f"{path} did not appear in {_PATH_TIMEOUT_SEC:.0f} s")
        time.sleep(0.01)
