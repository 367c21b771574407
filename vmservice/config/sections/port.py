"""`[[port]]`: streams of bytes, or consoles, that the guest finds by name. All of them are on one virtio-console device."""

from __future__ import annotations

from vmservice.config.core import ConsoleConfig, check_output, read_console
from vmservice.config.names import NAME_MAX_LENGTH, is_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from vmservice.config.load import Config
    from vmservice.config.reader import TableReader

KEYS = ("name", "mode", "path", "log", "log_path", "console")
ARRAY = True
LIVE: tuple[str, ...] = ()
PLUG = "vmservice.plug.port"
ORDER = 20

# virtio-console has 31 at most, as with QEMU.
PORTS_MAX = 30
# By its name a port is found in the guest, in the unit's RuntimeDirectory and in the journal, beside the two consoles.
_TAKEN = ("serial", "hvc")


class PortConfig:
    """One `[[port]]`: a stream of bytes, or a console more if `is_console`. `where` is its place in the file: port[2]."""

    __slots__ = ("is_console", "name", "output", "where")

    def __init__(self, where: str, name: str, output: ConsoleConfig, *, is_console: bool = False) -> None:
        self.where: Final = where
        self.name: Final = name
        self.output: Final = output
        self.is_console: Final = is_console


class PortsDevice:
    """All ports that are not off. `terminals` names the keys that want the terminal of a person."""

    kind = "port"
    plug = PLUG
    name = "ports"

    __slots__ = ("ports", "terminals")

    def __init__(self, ports: tuple[PortConfig, ...]) -> None:
        self.ports: Final = ports
        self.terminals: Final = tuple(f"{port.where}.mode" for port in ports if port.output.mode == "tty")


def read(reader: TableReader, _config: Config) -> tuple[PortsDevice, ...]:
    ports: dict[str, PortConfig] = {}
    for section in reader.several("port", PORTS_MAX):
        name = reader.text(section, "name", "")
        if not is_name(name):
            letters = "A-Z a-z 0-9 _ . - that begin with a letter or digit"
            reader.refuse(section, "name", f"1 to {NAME_MAX_LENGTH} of {letters}")
            name = f"{section}"  # which no other has
        elif name in _TAKEN:
            reader.refuse(section, "name", "a name of its own: serial and hvc are the consoles'")
        elif name in ports:
            reader.refuse(section, "name", f"a name of its own; {reader.name(ports[name].where, 'name')} is the same")
            name = f"{section}"
        output = read_console(reader, section, "socket")
        is_console = reader.boolean(section, "console", False)
        if output.log != "off" and not is_console:
            expected = '"off", or console = true: a stream of bytes has no log'
            reader.refuse(section, "log", expected, [f"{section}.console"])
        ports[name] = PortConfig(section, name, output, is_console=is_console)
    used = tuple(port for port in ports.values() if port.output.mode != "off")
    return (PortsDevice(used),) if used else ()


def check_files(device: PortsDevice, _path: str) -> None:
    for port in device.ports:
        check_output(f"{port.where}.path", port.output.path)
        check_output(f"{port.where}.log_path", port.output.log_path)
