"""`[console]`: a virtio-console, /dev/hvc0 in the guest."""

from __future__ import annotations

from vmservice.config.core import ConsoleConfig, check_output, read_console

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from vmservice.config.load import Config
    from vmservice.config.reader import TableReader

KEYS = ("mode", "path", "log", "log_path")
ARRAY = False
LIVE: tuple[str, ...] = ()
PLUG = "vmservice.plug.console"
ORDER = 10

NAME = "hvc"


class ConsoleDevice:
    """`terminals` names the key that wants the terminal of a person, if any."""

    kind = "console"
    plug = PLUG
    name = NAME

    __slots__ = ("output", "terminals")

    def __init__(self, output: ConsoleConfig) -> None:
        self.output: Final = output
        self.terminals: Final = ("console.mode",) if output.mode == "tty" else ()


def read(reader: TableReader, _config: Config) -> tuple[ConsoleDevice, ...]:
    output = read_console(reader, "console", "off")
    return (ConsoleDevice(output),) if output.mode != "off" else ()


def check_files(device: ConsoleDevice, _path: str) -> None:
    check_output("console.path", device.output.path)
    check_output("console.log_path", device.output.log_path)
