"""A container with systemd as PID 1, booted from one of the root trees in about a second.

The tree is the lower layer of an overlay that lives in memory and in a mount namespace of its own: nothing is written to the
tree, any number run side by side, and all of it is gone with the process.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from lab.root_tree import RELEASES, root_tree

# A device node of its own: the container's systemd sets mode and group of /dev/kvm, and this machine's must stay as it is.
_ENTER = """\
set -e
for group in {groups}; do
    mkdir "$group"
    echo $$ > "$group/cgroup.procs"
done
mount -t tmpfs -o mode=755 container {scratch}
mkdir {scratch}/upper {scratch}/work {scratch}/root
mount -t overlay -o lowerdir={tree},upperdir={scratch}/upper,workdir={scratch}/work overlay {scratch}/root
ln -s /usr/lib/systemd/system/{bus} {scratch}/root/etc/systemd/system/dbus.service
{make_kvm}
exec systemd-nspawn --quiet --directory={scratch}/root --machine=lab --register=no --keep-unit --boot \
    --console=pipe --notify-ready=yes --private-network --bind-ro={shared}:/lab {bind_kvm} \
    --system-call-filter='landlock_create_ruleset landlock_add_rule landlock_restrict_self'
"""

# As every Debian since 11 has them; a container of Debian 12 would take after a machine that mixes both versions.
_CONTROL_GROUPS = {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}

_ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
    "PAGER": "cat",
    "SYSTEMD_COLORS": "0",
    "COLUMNS": "160",
}


class Container:
    """One container. `/lab` in it shows the folder `shared`, read-only; `release` is that of its Debian, `bus` the
    unit of its bus daemon, `tree` a root tree to boot instead of that release's usual one."""

    _BOOT_TIMEOUT_SEC = 90.0
    _STOP_TIMEOUT_SEC = 30.0

    def __init__(self, release: str = RELEASES[0], bus: str = "dbus.service", tree: Path | None = None) -> None:
        self.release = release
        self._bus = bus
        self._tree = tree
        self._directory = Path(tempfile.mkdtemp(prefix="vmservice-"))
        self.shared = self._directory / "shared"
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0
        self._groups: list[Path] = []

    def start(self) -> None:
        """Boots, and returns when its systemd says that it is up."""
        scratch = self._directory / "scratch"
        scratch.mkdir()
        self.shared.mkdir()
        kvm = _kvm_numbers()
        # In a control group that containers share, each systemd would see the others' processes in its own units.
        self._groups = [group / self._directory.name for group in _groups("self")]
        script = _ENTER.format(
            groups=shlex.join(map(str, self._groups)),
            scratch=shlex.quote(str(scratch)),
            tree=shlex.quote(str(self._tree or root_tree(self.release))),
            shared=shlex.quote(str(self.shared)),
            bus=self._bus,
            make_kvm=f"mknod {scratch}/kvm c {kvm[0]} {kvm[1]}" if kvm else "",
            bind_kvm=f"--bind={scratch}/kvm:/dev/kvm" if kvm else "",
        )
        address = self._directory / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, (self._directory / "console.log").open("wb") as log:
            notify.bind(str(address))
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "sh", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "NOTIFY_SOCKET": str(address), **_CONTROL_GROUPS},
            )
            self._wait_ready(notify)

    def run(
        self, command: str, *, timeout: float = 60, check: bool = False, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[str]:
        """Runs a shell command line as root in the container. With `check` it must end with 0."""
        completed = subprocess.run(
            self._entered(command), capture_output=True, input=stdin, timeout=timeout, check=False, env=_ENVIRONMENT
        )
        stdout, stderr = completed.stdout.decode(errors="replace"), completed.stderr.decode(errors="replace")
        if check and completed.returncode != 0:
            raise AssertionError(f"`{command}`: exit status {completed.returncode}\n{stdout}{stderr}")
        return subprocess.CompletedProcess(command, completed.returncode, stdout, stderr)

    def follow(self, command: str, on_output: Callable[[str], None], *, timeout: float) -> None:
        """Runs it likewise, and gives each line of its standard output to `on_output` as it comes. RuntimeError, with the end
        of its standard error, unless it ends with 0 in time."""
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                self._entered(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=_ENVIRONMENT,
                text=True,
                errors="replace",
            )
            assert process.stdout is not None
            clock = threading.Timer(timeout, process.kill)
            clock.start()
            try:
                with process.stdout:
                    for line in process.stdout:
                        on_output(line)
                status = process.wait()
            finally:
                late = clock.finished.is_set()
                clock.cancel()
                process.kill()
                process.wait()
            if status != 0:
                errors.seek(0)
                ended = f"took more than {timeout} s" if late else f"exit status {status}"
                raise RuntimeError(f"`{command}`: {ended}\n{errors.read()[-2000:]}")

    def talk(self, command: str) -> subprocess.Popen[bytes]:
        """Begins it likewise, with pipes to its standard input and from its standard output. The caller ends it."""
        return subprocess.Popen(self._entered(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_ENVIRONMENT)

    @property
    def leader(self) -> int:
        """Its systemd, as a process of this machine."""
        return self._leader

    def power_off(self) -> str:
        """`systemctl poweroff`; the messages of its journal when all is over. Once, and `stop` after it."""
        assert self._process is not None
        journals = Path(f"/proc/{self._leader}/root")
        (path,) = [*journals.glob("run/log/journal/*/system.journal"), *journals.glob("var/log/journal/*/system.journal")]
        copy = self._directory / "system.journal"
        with path.open("rb") as journal:  # which keeps it when its file system is gone
            self.run("systemctl poweroff --no-block", check=True)
            self._process.wait(self._STOP_TIMEOUT_SEC)
            copy.write_bytes(journal.read())
        command = ["journalctl", f"--file={copy}", "--output=cat", "--no-pager"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def stop(self) -> None:
        """Asks its systemd to power off, as a host that shuts down does; ends it by force when that takes too long."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(self._STOP_TIMEOUT_SEC)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for group in self._groups:
            _remove_groups(group)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _entered(self, command: str) -> list[str]:
        return [
            # In the control group of its init: logind of systemd 257 serves nobody from outside of the container's.
            *("sh", "-c", 'echo $$ > "$0" && exec nsenter "$@"', str(self._init_group() / "cgroup.procs")),
            *("--target", str(self._leader), "--all", "--", "/bin/bash", "-c", f"cd /root; {command}"),
        ]

    def _init_group(self) -> Path:
        return next(group for group in _groups(self._leader) if group.name == "init.scope")

    def _wait_ready(self, notify: socket.socket) -> None:
        """Takes sd_notify(3) messages: first the leader's pid, then READY=1."""
        deadline = time.monotonic() + self._BOOT_TIMEOUT_SEC
        notify.settimeout(0.5)
        while time.monotonic() < deadline:
            try:
                lines = notify.recv(4096).decode().splitlines()
            except TimeoutError:
                assert self._process is not None
                if self._process.poll() is not None:
                    break
                continue
            for line in lines:
                if line.startswith("X_NSPAWN_LEADER_PID="):
                    self._leader = int(line.partition("=")[2])
            if "READY=1" in lines:
                return
        console = (self._directory / "console.log").read_text(errors="replace")
        self.stop()
        raise RuntimeError(f"the container did not come up:\n{console[-3000:]}")


def _kvm_numbers() -> tuple[int, int] | None:
    """Major and minor number of this machine's /dev/kvm, if it has one."""
    try:
        status = os.stat("/dev/kvm")
    except OSError:
        return None
    return (os.major(status.st_rdev), os.minor(status.st_rdev)) if stat.S_ISCHR(status.st_mode) else None


def _groups(process: int | str) -> list[Path]:
    """The control groups of a process that systemd-nspawn uses: of version 2, and of the hierarchy that only names groups."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    places = {"": [place for _, place, kind, *_ in mounts if kind == "cgroup2"]}
    places["name=systemd"] = [place for _, place, kind, options, *_ in mounts if kind == "cgroup" and "name=systemd" in options]
    groups = []
    for line in Path(f"/proc/{process}/cgroup").read_text().splitlines():
        _number, controllers, path = line.split(":", 2)
        groups += [Path(place) / path.lstrip("/") for place in places.get(controllers, [])[:1]]
    return [group for group in groups if group.is_dir()]


def _remove_groups(group: Path) -> None:
    """Removes a control group and those in it, deepest first; one in which a process is left stays."""
    for directory, _folders, _files in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(directory)
