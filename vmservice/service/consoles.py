"""The host's side of everything that a guest prints to and is typed at: its serial port, its virtio-console, its ports."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.config_sections import Config
    from vmservice.host.console import Console
    from vmservice.service.journal import Log


class Consoles:
    """By label: serial, hvc, and the names of the ports. What the guest has not is not there."""

    def __init__(self, config: Config, log: Log, closers: list[Callable[[], None]]) -> None:
        """Every console that is opened adds its closer. Errors as of `open_console`."""
        self._vm_name = config.name
        self._log = log
        self._closers = closers
        self._passed = _passed_sockets()
        self.opened: dict[str, Console] = {}
        try:
            self._open("serial", config.serial.mode or _default_mode(), config.serial.path)
            if config.virtio is not None:
                self._open("hvc", config.virtio.console.mode or "off", config.virtio.console.path)
                for port in config.virtio.ports:
                    self._open(port.name, port.mode, port.path, is_stream=not port.is_console)
        finally:
            self._close_left_over()

    @property
    def serial(self) -> Console | None:
        return self.opened.get("serial")

    @property
    def hvc(self) -> Console | None:
        return self.opened.get("hvc")

    def ports(self) -> dict[str, Console]:
        return {label: console for label, console in self.opened.items() if label not in ("serial", "hvc")}

    def inputs(self) -> list[tuple[str, Console]]:
        """Where persons type."""
        return [(label, console) for label, console in self.opened.items() if console.input_fd >= 0]

    def flush(self) -> None:
        for console in self.opened.values():
            console.flush()

    def _open(self, label: str, mode: str, path: str | None, *, is_stream: bool = False) -> None:
        from vmservice.host.console import open_console

        if mode == "off":
            return
        passed_fd = self._take_passed(label) if mode == "socket" else -1
        console = open_console(mode, path, self._vm_name, self._log, label, is_stream=is_stream, passed_fd=passed_fd)
        self._closers.append(console.close)
        self.opened[label] = console

    def _take_passed(self, label: str) -> int:
        for number, (name, fd) in enumerate(self._passed):
            if name == label:
                del self._passed[number]
                return fd
        return -1

    def _close_left_over(self) -> None:
        while self._passed:
            name, fd = self._passed.pop()
            os.close(fd)
            self._log.warning(f'systemd passed a socket called {name!r}, and no console of that name has mode = "socket"')


def _passed_sockets() -> list[tuple[str, int]]:
    if "LISTEN_FDS" not in os.environ:
        return []
    from vmservice.host.listen_fds import take_listen_fds

    return take_listen_fds()


def _default_mode() -> str:
    """Under systemd the journal, for a person the terminal. INVOCATION_ID is in the environment of every service."""
    return "journal" if "INVOCATION_ID" in os.environ and not os.isatty(0) else "tty"
