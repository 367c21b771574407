"""`vmservice start-back-ends NAME [--user]`: what the unit of a VM runs before the VM, as root or as the user who has it.

A disk in qcow2 is served by another process, in a unit of its own with its own sandbox. Which of them a VM has is in its
configuration, so no unit file can say it: the units are templates, and what ties an instance to its VM is written here as
a drop-in, before systemd loads the instance. It starts before the VM and stops after it, whatever ends the VM; the drop-in also
says where its socket is, and what of the host it may reach.

A network at a tap needs what the VM's own process may not open: as root, its descriptors are made here, behind the tap itself
where that is to be made, and systemd keeps them for the VM.
"""

from __future__ import annotations

import os
import sys

from vmservice.config.load import load_config
from vmservice.config.names import config_path
from vmservice.errors import ConfigError, HostError, UsageError, seconds
from vmservice.host import guest_listener, host_network
from vmservice.plug.backend import plug_module
from vmservice.plug.external import runtime_folder, socket_path
from vmservice.service import fd_store

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence

    from vmservice.config.load import Config

_DROP_IN = "50-vmservice.conf"
_SYSTEMCTL_SEC = 60
_JOURNAL_SEC = 5


def main(words: Sequence[str]) -> int:
    names = [word for word in words if word != "--user"]
    if len(names) != 1 or len(words) - len(names) > 1:
        raise UsageError("usage: vmservice start-back-ends NAME [--user]")
    name, user = names[0], "--user" in words
    try:
        config = load_config(name, config_path(name, user=user))
    except ConfigError:
        return os.EX_OK  # the VM reads it next, and says what is wrong
    if config.service.ready_by_guest:
        _pass_listener()
    manager = _Manager(name, user=user)
    units = []
    for device in config.devices:
        plug = plug_module(device)
        if hasattr(plug, "unit_needs"):
            kind, lines = plug.unit_needs(device, name)
            units.append(manager.tie(kind, device.name, [] if user else lines))
    if units:
        manager.start(units)
    if not user:
        _make(config, manager)
        if fd_store.is_there():
            _pass_devices(config)
    return os.EX_OK


def _make(config: Config, manager: _Manager) -> None:
    """What units of their own make before the VM. Where one fails the VM says what it misses, and `make` before it why."""
    for device in config.devices:
        plug = plug_module(device)
        made = plug.made_by(device, manager.account) if hasattr(plug, "made_by") else None
        if made is not None:
            kind, lines = made
            manager.make(kind, device.name, lines)


def _pass_devices(config: Config) -> None:
    """Devices of the host that the VM's process cannot open, by the names that its plugs look for."""
    devices = [device for device in config.devices if hasattr(plug_module(device), "passed")]
    if devices:
        host_network.enter()
    for device in devices:
        for name, fds in plug_module(device).passed(device).items():
            try:
                fd_store.keep(name, fds)
            finally:
                for fd in fds:
                    os.close(fd)


def _pass_listener() -> None:
    """A vsock that listens, into the unit's file descriptor store (sd_notify(3)): systemd passes it to the VM."""
    if not fd_store.is_there():
        return
    try:
        listener = guest_listener.make_socket()
    except OSError as error:
        raise HostError.from_os("cannot make a vsock for the guest's READY=1", error) from error
    try:
        fd_store.keep(guest_listener.PASSED_NAME, [listener.fileno()])
    finally:
        listener.close()


class _Manager:
    """systemd, with units of the VM `name`."""

    def __init__(self, name: str, *, user: bool) -> None:
        self._name = name
        self._systemctl = ["systemctl", "--user"] if user else ["systemctl"]
        self._folder = f"{runtime_folder()}/systemd/{'user' if user else 'system'}"
        self._account = [] if user else self._account_of_vm()

    @property
    def account(self) -> str:
        """Whose VM it is."""
        return self._account[0] if self._account and self._account[0] else "root"

    def _account_of_vm(self) -> list[str]:
        """(user, group) of the VM's unit: a VM may have an account of its own, and so has what belongs to it."""
        said = self._run("show", "--property=User", "--property=Group", f"vm@{self._name}.service")
        values = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
        return [values.get("User", ""), values.get("Group", "")]

    def tie(self, kind: str, device: str, lines: Sequence[str]) -> str:
        """Write the drop-ins of one back end, with those `lines` for its service; the name of its unit, without a suffix."""
        unit, bound = self._unit(kind, device)
        socket = ["[Socket]", "ListenStream=", f"ListenStream={socket_path(kind, self._name, device)}"]
        service = ["[Service]", *lines]
        if any(self._account):
            user, group = self._account
            socket += [f"SocketUser={user}", f"SocketGroup={group}"]
            service += [f"User={user}", f"Group={group}"]
        changed = self._write(f"{unit}.socket", [*bound, *socket])
        changed |= self._write(f"{unit}.service", [*bound, *service])
        if changed:
            self._reload(f"{unit}.socket", f"{unit}.service")
        return unit

    def make(self, kind: str, device: str, lines: Sequence[str]) -> None:
        """Have a unit that needs no socket, and is done when it has started, do its work as root.

        Where that fails, a sentence to standard error, so to the journal of the VM, has the reason.
        """
        unit, bound = self._unit(kind, device)
        service = f"{unit}.service"
        if self._write(service, [*bound, "[Service]", *lines]):
            self._reload(service)
        self._run("reset-failed", service, check=False)
        try:
            self._run("restart", service)
        except HostError as error:
            print(f"vmservice: {service} has failed: {self._reason(service) or error}", file=sys.stderr)

    def _reason(self, service: str) -> str:
        """What the process of a unit that has failed said last, or else how systemd says that it ended; empty where neither."""
        said = self._run("show", "--property=Result,ExecMainStatus,InvocationID", service, check=False)
        values = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
        last = _last_line(values.get("InvocationID", ""))
        if last:
            return last
        result = values.get("Result", "success")
        return "" if result == "success" else f"its result is {result}, its exit status {values.get('ExecMainStatus', '0')}"

    def _unit(self, kind: str, device: str) -> tuple[str, list[str]]:
        """Its name, without a suffix, and what ties it to the VM."""
        vm = f"vm@{self._name}.service"
        return f"vm-{kind}@{self._name}:{device}", ["[Unit]", f"BindsTo={vm}", f"PartOf={vm}", f"Before={vm}"]

    def _reload(self, *units: str) -> None:
        if "yes" in self._run("show", "--property=NeedDaemonReload", *units):
            self._run("daemon-reload")

    def _write(self, unit: str, lines: Sequence[str]) -> bool:
        """Whether it said something else before."""
        folder = f"{self._folder}/{unit}.d"
        path, text = f"{folder}/{_DROP_IN}", "\n".join([*lines, ""])
        try:
            os.makedirs(folder, exist_ok=True)
            try:
                with open(path, encoding="utf-8") as file:
                    if file.read() == text:
                        return False
            except FileNotFoundError:
                pass
            with open(f"{path}.new", "w", encoding="utf-8") as file:
                file.write(text)
            os.rename(f"{path}.new", path)
        except OSError as error:
            raise HostError.from_os(f"cannot write {path}", error) from error
        return True

    def start(self, units: Sequence[str]) -> None:
        """Their sockets, and the services too, so that they are there when the VM connects. Nothing of before is left."""
        services, sockets = ([f"{unit}.{suffix}" for unit in units] for suffix in ("service", "socket"))
        self._run("stop", *services, *sockets)
        self._run("reset-failed", *services, *sockets, check=False)
        self._run("start", *sockets)
        self._run("start", "--no-block", *services)

    def _run(self, *words: str, check: bool = True) -> str:
        done = _capture([*self._systemctl, *words])
        if check and done.returncode != 0:
            raise HostError(f"`systemctl {' '.join(words)}` fails: {' '.join(done.stderr.split())}")
        return done.stdout


def _last_line(invocation_id: str) -> str:
    """What a process of that start of a unit wrote last; empty where the journal has nothing of it, or does not answer."""
    if not invocation_id:
        return ""
    # What systemd itself says of the unit has INVOCATION_ID, without the underscore.
    match = f"_SYSTEMD_INVOCATION_ID={invocation_id}"
    try:
        _capture(["journalctl", "--sync"], _JOURNAL_SEC)
        said = _capture(["journalctl", "--quiet", "--output=cat", "--lines=1", match], _JOURNAL_SEC).stdout
    except HostError:
        return ""
    return " ".join(said.split()).removeprefix("vmservice: ")


def _capture(command: list[str], timeout_sec: float = _SYSTEMCTL_SEC) -> subprocess.CompletedProcess[str]:
    """HostError where it cannot be run, or takes too long."""
    import subprocess

    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=timeout_sec,
        )
    except OSError as error:
        raise HostError.from_os(f"cannot run {command[0]}", error) from error
    except subprocess.TimeoutExpired:
        raise HostError(f"`{' '.join(command)}` has not ended within {seconds(timeout_sec)}") from None
