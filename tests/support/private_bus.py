"""A dbus-daemon of the test's own: started, frozen, killed and started again at will."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import tempfile
from types import TracebackType

import pytest

DAEMON = "dbus-daemon"
TIMEOUT_SEC = 60.0

_CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>{kind}</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
{policy}
</busconfig>
"""

OPEN_POLICY = """
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
    <allow eavesdrop="true"/>
  </policy>"""


class PrivateBus:
    """One daemon at `address`, which stays the same over restarts. `policy` is the XML of its policy elements and includes."""

    def __init__(self, policy: str = OPEN_POLICY, kind: str = "session") -> None:
        if shutil.which(DAEMON) is None:
            pytest.skip("dbus-daemon is not installed")
        self._folder = tempfile.mkdtemp(prefix="vmservice-bus-")
        os.chmod(self._folder, 0o755)  # other accounts connect too
        self._socket = os.path.join(self._folder, "bus")
        self._config = os.path.join(self._folder, "bus.conf")
        with open(self._config, "w", encoding="utf-8") as file:
            file.write(_CONFIG.format(kind=kind, socket=self._socket, policy=policy))
        self.address = f"unix:path={self._socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> PrivateBus:
        """Returns when the bus can be connected to."""
        assert self._process is None, "the bus runs already"
        reader, writer = os.pipe()
        try:
            command = [DAEMON, f"--config-file={self._config}", "--nofork", "--nosyslog", f"--print-address={writer}"]
            self._process = subprocess.Popen(command, pass_fds=(writer,), stdin=subprocess.DEVNULL)
            os.close(writer)
            writer = -1
            ready, _, _ = select.select([reader], [], [], TIMEOUT_SEC)
            if not ready or not os.read(reader, 4096):
                raise RuntimeError("dbus-daemon did not start")
        finally:
            os.close(reader)
            if writer >= 0:
                os.close(writer)
        return self

    def kill(self) -> None:
        """Ends the daemon at once, frozen or not, and takes its socket away, as a stop of dbus.socket does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(TIMEOUT_SEC)
            self._process = None
        if os.path.exists(self._socket):
            os.unlink(self._socket)

    def freeze(self) -> None:
        """The daemon neither reads nor answers, though its socket can be connected to."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        # Sent is not stopped: it might read one message more.
        assert os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT) is not None

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self._folder)

    def __enter__(self) -> PrivateBus:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
