"""`vmservice start-back-ends NAME [--user]`: what the unit of a VM runs before the VM, as root or as the user who has it.

A disk in qcow2 is served by another process, in a unit of its own with its own sandbox. Which of them a VM has is in its
configuration, so no unit file can say it: the units are templates, and what ties an instance to its VM is written here as
a drop-in, before systemd loads the instance. It starts before the VM and stops after it, whatever ends the VM; the drop-in also
says where its socket is, and what of the host it may reach.
"""

from __future__ import annotations

import os

from vmservice.config.load import load_config
from vmservice.config.names import config_path
from vmservice.errors import ConfigError, HostError, UsageError
from vmservice.host import guest_listener
from vmservice.plug.backend import plug_module
from vmservice.plug.external import runtime_folder, socket_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_DROP_IN = "50-vmservice.conf"
_SYSTEMCTL_SEC = 60
_BARRIER_SEC = 5


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
    return os.EX_OK


def _pass_listener() -> None:
    """A vsock that listens, into the unit's file descriptor store (sd_notify(3)): systemd passes it to the VM."""
    from systemd.daemon import notify

    if "NOTIFY_SOCKET" not in os.environ:
        return  # run by hand: nobody would have it
    try:
        listener = guest_listener.make_socket()
    except OSError as error:
        raise HostError.from_os("cannot make a vsock for the guest's READY=1", error) from error
    try:
        name = f"FDNAME={guest_listener.PASSED_NAME}"
        notify(f"FDSTOREREMOVE=1\n{name}")  # of a start before, which failed
        notify(f"FDSTORE=1\nFDPOLL=0\n{name}", fds=[listener.fileno()])
        _wait_for_manager(notify)
    finally:
        listener.close()


def _wait_for_manager(notify: Callable[..., object]) -> None:
    """Until it has read all that was said: what comes from a process that has ended is dropped (sd_notify_barrier(3))."""
    import select

    ours, theirs = os.pipe2(os.O_CLOEXEC)
    try:
        notify("BARRIER=1", fds=[theirs])
        os.close(theirs)
        theirs = -1
        select.select([ours], [], [], _BARRIER_SEC)
    finally:
        os.close(ours)
        if theirs >= 0:
            os.close(theirs)


class _Manager:
    """systemd, with units of the VM `name`."""

    def __init__(self, name: str, *, user: bool) -> None:
        self._name = name
        self._systemctl = ["systemctl", "--user"] if user else ["systemctl"]
        self._folder = f"{runtime_folder()}/systemd/{'user' if user else 'system'}"
        self._account = [] if user else self._account_of_vm()

    def _account_of_vm(self) -> list[str]:
        """(user, group) of the VM's unit: a VM may have an account of its own, and so has what belongs to it."""
        said = self._run("show", "--property=User", "--property=Group", f"vm@{self._name}.service")
        values = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
        return [values.get("User", ""), values.get("Group", "")]

    def tie(self, kind: str, device: str, lines: Sequence[str]) -> str:
        """Write the drop-ins of one back end, with those `lines` for its service; the name of its unit, without a suffix."""
        vm = f"vm@{self._name}.service"
        unit = f"vm-{kind}@{self._name}:{device}"
        bound = ["[Unit]", f"BindsTo={vm}", f"PartOf={vm}", f"Before={vm}"]
        socket = ["[Socket]", "ListenStream=", f"ListenStream={socket_path(kind, self._name, device)}"]
        service = ["[Service]", *lines]
        if any(self._account):
            user, group = self._account
            socket += [f"SocketUser={user}", f"SocketGroup={group}"]
            service += [f"User={user}", f"Group={group}"]
        changed = self._write(f"{unit}.socket", [*bound, *socket])
        changed |= self._write(f"{unit}.service", [*bound, *service])
        if changed and "yes" in self._run("show", "--property=NeedDaemonReload", f"{unit}.socket", f"{unit}.service"):
            self._run("daemon-reload")
        return unit

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
        import subprocess

        done = subprocess.run(
            [*self._systemctl, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_SYSTEMCTL_SEC,
        )
        if check and done.returncode != 0:
            raise HostError(f"systemctl {' '.join(words)} fails: {done.stderr.strip()}")
        return done.stdout
