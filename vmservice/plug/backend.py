"""What the host gives to the devices of one VM: opened once, kept over resets of the guest, closed with the process."""

from __future__ import annotations

import os
import sys

from vmservice.errors import quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Protocol

    from vmservice.config.core import ConsoleConfig
    from vmservice.config.load import Config, Device
    from vmservice.host.consoles.base import Console, Log
    from vmservice.host.consoles.mover import Mover

    # Kind, name, and what there is to say of it: plain values, and nothing that is secret.
    Details = dict[str, str | int | bool]
    DeviceDetails = tuple[str, str, Details]

    class Backend(Protocol):
        """The host's end of one device section."""

        @property
        def consoles(self) -> Sequence[Console]:
            """Those that a person or a program may type at."""

        def fds(self) -> dict[str, int]:
            """Its descriptors by name, which outlive the machine."""

        def close(self) -> None: ...


class Host:
    """What `open` of a plug may use. `passed` are descriptors that systemd gave to the process: (name, descriptor).

    Where the machine `is_simulated`, only consoles have an end in the host: it needs no file and no other program.
    """

    def __init__(
        self, vm_name: str, log: Log, mover: Mover, passed: list[tuple[str, int]], *, is_simulated: bool = False
    ) -> None:
        self.is_simulated = is_simulated
        self.vm_name = vm_name
        self.log = log
        self.mover = mover
        self._passed = passed

    def open_console(self, label: str, output: ConsoleConfig, default_mode: str, *, is_stream: bool = False) -> Console:
        """The host's end of a console or port, with its log. ConfigError or HostError."""
        from vmservice.host.consoles.open import open_console

        mode = output.mode or default_mode
        passed_fd = self._take_passed(label) if mode == "socket" else -1
        console = open_console(
            mode, output.path, self.vm_name, self.log, label, mover=self.mover, is_stream=is_stream, passed_fd=passed_fd
        )
        if output.log == "off":
            return console
        from vmservice.host.consoles.logged import LoggedConsole

        try:
            record = open_console(output.log, output.log_path, self.vm_name, self.log, label, mover=self.mover)
        except BaseException:
            console.close()
            raise
        return LoggedConsole(console, record, output.log_path)

    def _take_passed(self, label: str) -> int:
        for number, (name, fd) in enumerate(self._passed):
            if name == label:
                del self._passed[number]
                return fd
        return -1

    def take_passed(self, name: str) -> list[int]:
        """All of that name, in their order, from now on the caller's. A console's is its label, others have a slash."""
        taken = [fd for found, fd in self._passed if found == name]
        self._passed = [entry for entry in self._passed if entry[0] != name]
        return taken

    def close_left_over(self) -> None:
        """Whoever connects to a console that nobody serves would wait for ever. What has a slash in its name is none: systemd
        has kept it from a start before, when the configuration had a use for it."""
        while self._passed:
            name, fd = self._passed.pop()
            os.close(fd)
            if "/" not in name:
                self.log.warning(
                    f'systemd passed a socket called {quoted(name)}, and no console of that name has mode = "socket"'
                )


class NoBackend:
    """For a device that needs nothing of the host."""

    consoles: Sequence[Console] = ()

    def fds(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        """Nothing is held."""


class ConsolesBackend:
    """For a device with consoles or ports: the host's ends of them, in their order."""

    def __init__(self, consoles: Sequence[Console]) -> None:
        self.consoles = consoles

    def fds(self) -> dict[str, int]:
        return {f"{console.label}.{name}": fd for console in self.consoles for name, fd in console.fds().items()}

    def close(self) -> None:
        for console in self.consoles:
            console.close()


class Backends:
    """Those of every device of `config`, by the device's name, and the serial console, None where that is off.

    ConfigError or HostError, with nothing left open, when one cannot be opened.
    """

    def __init__(self, config: Config, host: Host) -> None:
        self.mover = host.mover
        self.serial: Console | None = None
        self._sections = config.devices
        self._opened: dict[str, Backend] = {}
        try:
            mode = config.serial.mode or _default_mode()
            if mode != "off":
                with config.naming():
                    self.serial = host.open_console("serial", config.serial, mode)
            for device in config.devices:
                plug = plug_module(device)
                is_wanted = not host.is_simulated or getattr(plug, "IN_SIMULATION", False)
                with config.naming():
                    self._opened[device.name] = plug.open(device, host) if is_wanted else NoBackend()
        except BaseException:
            self.close()
            raise
        finally:
            host.close_left_over()

    def of(self, device: Device) -> Backend:
        return self._opened[device.name]

    @property
    def consoles(self) -> list[Console]:
        """Of all devices, the serial one first."""
        found = [self.serial] if self.serial is not None else []
        for backend in self._opened.values():
            found += backend.consoles
        return found

    def details(self) -> list[DeviceDetails]:
        """What those devices are that somebody may want to see, the serial console first: for `Devices` on the bus."""
        found: list[DeviceDetails] = []
        if self.serial is not None:
            found.append(("console", self.serial.label, self.serial.details()))
        for section in self._sections:
            module = plug_module(section)
            if hasattr(module, "details") and not isinstance(self.of(section), NoBackend):
                said = module.details(section, self.of(section))
                found += [(section.kind, name, values) for name, values in said.items()]
        return found

    def guest_cid(self) -> int:
        """The number by which the guest's sockets are known to this host now: that of [vsock]; 0 without it."""
        found = [values["cid"] for kind, _, values in self.details() if kind == "vsock"]
        return int(found[0]) if found else 0

    def close(self) -> None:
        while self._opened:
            self._opened.popitem()[1].close()
        if self.serial is not None:
            self.serial.close()
            self.serial = None


def plug_module(device: Device) -> Any:
    """The module that the section names, which is imported only where the file has the section."""
    __import__(device.plug)
    return sys.modules[device.plug]


def _default_mode() -> str:
    """Under systemd the journal, for a person the terminal. INVOCATION_ID is in the environment of every service."""
    return "journal" if "INVOCATION_ID" in os.environ and not os.isatty(0) else "tty"
