"""The host's ends of a machine's consoles, without anything of the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from vmservice.host.consoles.base import OutputConsole
from vmservice.plug.backend import Backends, ConsolesBackend, NoBackend

if TYPE_CHECKING:
    from vmservice.config.load import Device
    from vmservice.host.consoles.base import Console
    from vmservice.plug.backend import Backend


class SinkConsole(OutputConsole):
    """Passes what the guest prints to `write`."""

    def __init__(self, write: Callable[[bytes], None], label: str = "serial") -> None:
        super().__init__(label)
        self._write = write

    def write(self, data: bytes) -> None:
        self._write(data)

    def details(self) -> dict[str, str | int | bool]:
        return {"mode": "null"}

    def close(self) -> None:
        """Nothing is held."""


class FakeBackends:
    """`consoles` are those of devices, by the device's name."""

    def __init__(self, serial: Console | None = None, consoles: dict[str, list[Console]] | None = None) -> None:
        self.serial = serial
        self._consoles = consoles or {}

    def of(self, device: Device) -> Backend:
        if device.name in self._consoles:
            return ConsolesBackend(self._consoles[device.name])
        return NoBackend()


def fake_backends(serial: Console | None = None, **consoles: list[Console]) -> Backends:
    return cast("Backends", FakeBackends(serial, consoles))
