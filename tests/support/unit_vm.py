"""A VM as its operator has it: a unit, a name on the bus and lines in the journal. On any host that can run a command."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

_EVIDENCE = Path(__file__).with_name("guest_evidence.py")
OBJECT = "/org/vmservice/VM1"
INTERFACE = "org.vmservice.VM1"


class Outcome(Protocol):
    """What a command did."""

    @property
    def returncode(self) -> int: ...
    @property
    def stdout(self) -> str: ...
    @property
    def stderr(self) -> str: ...


class NoSuchLine(AssertionError):
    """The journal never had the line that a test waited for."""


class Host(Protocol):
    """A Container or a LabHost."""

    def run(self, command: str, *, timeout: float = 60, check: bool = False, stdin: bytes = b"") -> Outcome: ...


class UnitVm:
    """The VM `name` of the system instance on `host`, where journal_wait.py lies in /lab."""

    def __init__(self, host: Host, name: str) -> None:
        self.host = host
        self.name = name
        self.unit = f"vm@{name}.service"
        self.bus_name = f"{INTERFACE}.{bus_label(name)}"

    def configure(self, text: str) -> None:
        """Writes /etc/vmservice/NAME.toml."""
        self.host.run(f"cat > /etc/vmservice/{self.name}.toml", check=True, stdin=text.encode())

    def start(self, timeout: float = 120) -> None:
        self._systemctl("start", timeout)

    def stop(self, timeout: float = 200) -> None:
        self._systemctl("stop", timeout)

    def restart(self, timeout: float = 300) -> None:
        self._systemctl("restart", timeout)

    def show(self, unit_property: str) -> str:
        """One of systemd's properties of the unit."""
        return self.host.run(f"systemctl show --property={unit_property} --value {self.unit}", check=True).stdout.strip()

    def wait_for(self, pattern: str, timeout: float = 60) -> str:
        """What the journal has of this start of the unit, up to the first line that `pattern` finds something in."""
        command = shlex.join(["python3", "/lab/journal_wait.py", self.unit, pattern, str(timeout)])
        waited = self.host.run(command, timeout=timeout + 30)
        if waited.returncode != 0:
            raise NoSuchLine(
                f"{self.unit}: no line with {pattern!r} in {timeout} s:\n{waited.stdout}{waited.stderr}\n{self.evidence()}"
            )
        return waited.stdout

    def evidence(self) -> str:
        """What tells a guest that hangs from a VMM that does, and both from a journal that is late; then the VMM's word on
        its vCPUs, which SIGQUIT asks for."""
        pid = self.main_pid()
        seen = self.host.run(
            f"systemctl status --no-pager --lines=5 {self.unit}; journalctl --sync; journalctl --unit={self.unit} | wc -l;"
            f" uptime; head /proc/{pid}/task/*/wchan",
            timeout=90,
        ).stdout
        if pid:
            seen += self.host.run(f"python3 - {pid}", timeout=120, stdin=_EVIDENCE.read_bytes()).stdout
            seen += self.host.run(
                f"systemctl kill --kill-whom=main --signal=QUIT {self.unit}; sleep 3; journalctl --sync;"
                f" journalctl --no-pager --output=cat --lines=80 --unit={self.unit}",
                timeout=90,
            ).stdout
        return seen

    def wait_inactive(self, timeout: float = 60) -> None:
        """Returns when the unit is neither active nor on its way up or down; fails at the timeout."""
        command = (
            f"timeout {timeout} sh -c 'until systemctl show --property=ActiveState --value {self.unit}"
            ' | grep -qE "^(inactive|failed)$"; do sleep 0.1; done\''
        )
        self.host.run(command, timeout=timeout + 30, check=True)

    def wait_on_bus(self, timeout: float = 30) -> None:
        """Returns when its bus name is owned."""
        command = f"until busctl status {self.bus_name} > /dev/null 2>&1; do sleep 0.1; done"
        self.host.run(f"timeout {timeout} sh -c '{command}'", timeout=timeout + 30, check=True)

    def journal(self, *options: str) -> str:
        """The unit's journal, all starts of it; messages only unless `options` say otherwise."""
        chosen = shlex.join(options or ("--output=cat",))
        return self.host.run(f"journalctl --no-pager --unit={self.unit} {chosen}", check=True).stdout

    def get(self, name: str) -> Any:
        """A property of the D-Bus object."""
        answer = self._busctl("get-property", name)
        return json.loads(answer.stdout)["data"]

    @property
    def state(self) -> str:
        return str(self.get("State"))

    def call(self, method: str, *arguments: str) -> None:
        """Calls a method: `call("Resize", "y", "2")`. Fails with busctl's words when the VM refuses."""
        self._busctl("call", method, *arguments)

    def refusal(self, method: str, *arguments: str) -> str:
        """What busctl says of a call that must fail."""
        refused = self.host.run(self._bus_command("call", method, *arguments))
        assert refused.returncode != 0, f"{method} was accepted: {refused.stdout}"
        return refused.stderr

    def remove(self) -> None:
        """Ends the VM by force, whatever became of it, and takes its configuration away."""
        self.host.run(
            f"systemctl kill --signal=KILL {self.unit}; systemctl stop {self.unit}; systemctl reset-failed {self.unit};"
            f" rm -f /etc/vmservice/{self.name}.toml"
        )

    @contextlib.contextmanager
    def drop_in(self, settings: str) -> Iterator[None]:
        """The unit with settings more, as `systemctl edit --runtime` makes it: of the section [Service] unless they begin with
        another."""
        folder = f"/run/systemd/system/{self.unit}.d"
        text = settings if settings.startswith("[") else f"[Service]\n{settings}"
        put = f"mkdir -p {folder} && printf %s {shlex.quote(text)} > {folder}/test.conf && systemctl daemon-reload"
        self.host.run(put, check=True)
        try:
            yield
        finally:
            self.host.run(f"rm -r {folder}; systemctl daemon-reload", check=True)

    def main_pid(self) -> int:
        return int(self.show("MainPID"))

    def _systemctl(self, verb: str, timeout: float) -> None:
        done = self.host.run(f"systemctl {verb} {self.unit}", timeout=timeout)
        if done.returncode != 0:
            log = self.host.run(f"journalctl --no-pager --lines=60 --unit={self.unit} --unit='vm-*@{self.name}:*'").stdout
            raise AssertionError(f"systemctl {verb} {self.unit}: exit status {done.returncode}\n{done.stderr}{log}")

    def _busctl(self, verb: str, *arguments: str) -> Outcome:
        return self.host.run(self._bus_command(verb, *arguments), check=True)

    def _bus_command(self, verb: str, *arguments: str) -> str:
        return shlex.join(["busctl", "--json=short", verb, self.bus_name, OBJECT, INTERFACE, *arguments])


def firmware_config(variant: str = "beat", *, cpus: int = 1, service: str = "") -> str:
    """The configuration of a VM that runs the heartbeat payload; `service` holds lines of that section."""
    return (
        f'[firmware]\npath = "/lab/{variant}.bin"\n\n[cpus]\nboot = {cpus}\n\n'
        f'[memory]\nsize = "64M"\n\n[serial]\nmode = "journal"\n\n[service]\n{service}\n'
    )


def bus_label(name: str) -> str:
    """NAME as a part of a bus name: sd-bus's bus_label_escape(), written anew so that the tests do not trust what they test."""
    return "".join(
        char if char.isascii() and char.isalnum() and not (index == 0 and char.isdigit()) else f"_{ord(char):02x}"
        for index, char in enumerate(name)
    )
