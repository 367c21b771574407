"""The real qemu-storage-daemon with an image of the test's own, at a listening socket that the test holds, as systemd does."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

TIMEOUT_SEC = 60.0

# The listener is descriptor 3 of what follows.
_PASS_ON = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.execvp(sys.argv[2], sys.argv[2:])"


class StorageDaemon:
    """`start` and `kill` it as often as needed: the socket at `path` listens all the time."""

    def __init__(
        self,
        folder: Path,
        *,
        size: str = "16M",
        queues: int = 2,
        qmp: bool = False,
        readonly: bool = False,
        requests_per_sec: int = 0,
    ) -> None:
        for program in ("qemu-storage-daemon", "qemu-img"):
            if shutil.which(program) is None:
                pytest.skip(f"{program} is not installed")
        self.path = folder / "daemon.socket"
        self.image = folder / "disk.qcow2"
        self.qmp = folder / "qmp.socket"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", self.image, size], check=True, timeout=TIMEOUT_SEC)
        self._listener = socket.socket(socket.AF_UNIX)
        # QEMU unlinks the name that the listener was bound to when it ends in peace; where systemd has it, it may not.
        bound = folder / "bound.socket"
        self._listener.bind(str(bound))
        bound.rename(self.path)
        self._listener.listen(1)
        access = f"read-only={'on' if readonly else 'off'}"
        self._command = ["qemu-storage-daemon", "--blockdev", f"driver=file,node-name=f,filename={self.image},{access}"]
        self._command += ["--blockdev", f"driver=qcow2,node-name=d,file=f,{access}"]
        if requests_per_sec:
            self._command += ["--object", f"throttle-group,id=t,x-iops-total={requests_per_sec}"]
            self._command += ["--blockdev", f"driver=throttle,node-name=slow,file=d,throttle-group=t,{access}"]
        if qmp:
            self._command += ["--chardev", f"socket,id=q,path={self.qmp},server=on,wait=off", "--monitor", "chardev=q"]
        export = f"type=vhost-user-blk,id=e,node-name={'slow' if requests_per_sec else 'd'},num-queues={queues}"
        self._command += ["--export", f"{export},addr.type=fd,addr.str=3,writable={'off' if readonly else 'on'}"]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        listener = self._listener.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-IS", "-c", _PASS_ON, str(listener), *self._command],
            stdin=subprocess.DEVNULL,
            pass_fds=[listener],
        )

    def version(self) -> int:
        said = subprocess.run([self._command[0], "--version"], check=True, capture_output=True, text=True, timeout=TIMEOUT_SEC)
        return int(said.stdout.split()[2].partition(".")[0])

    def kill(self, how: int = signal.SIGKILL) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(TIMEOUT_SEC)
            self._process = None

    def freeze(self) -> None:
        """It answers nothing until `kill`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        # Sent is not stopped: it might do one request more.
        assert os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT) is not None

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        self._listener.close()
