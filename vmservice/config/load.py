"""NAME.toml as a `Config`: what the file says, complete, with every default in place.

A `Config` that exists is right by itself; `check_files` adds what it points to. Every refusal is one sentence that names the
file, the key and what was expected. Paths in the file may be relative: they start at the folder of the configuration.
"""

from __future__ import annotations

import os
import sys

from vmservice.config import core, plain_toml, sections
from vmservice.config.names import check_name
from vmservice.config.reader import TableReader
from vmservice.errors import ConfigError, Naming, quoted
from vmservice.host.files import RegularFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType
    from typing import Protocol

    from vmservice.config.credentials import Credential

    class Device(Protocol):
        """A section that stands for a device. `name` is unique in the VM; `plug` is the module that makes the device."""

        @property
        def kind(self) -> str: ...

        @property
        def name(self) -> str: ...

        @property
        def plug(self) -> str: ...


CONFIG_MAX_SIZE_BYTES = 1 << 20

# What is there without being named, in a machine that has such devices at all.
_DEFAULT_SECTIONS = ("rng",)


class Config:
    """One VM as its operator wants it. Exactly one of `kernel` and `firmware` is set.

    `devices` are those beyond the board's, in the order in which they are plugged in; `transport` is "pci" or "mmio", or None
    for a machine that has no place for them. `credentials` are the file's own, and secret.
    """

    __slots__ = (
        "cpus",
        "credentials",
        "devices",
        "firmware",
        "kernel",
        "memory",
        "name",
        "path",
        "serial",
        "service",
        "smbios",
        "transport",
    )

    def __init__(
        self,
        *,
        name: str,
        path: str,
        kernel: core.KernelConfig | None,
        firmware: core.FirmwareConfig | None,
        cpus: core.CpusConfig,
        memory: core.MemoryConfig,
        serial: core.ConsoleConfig,
        service: core.ServiceConfig,
        smbios: core.SmbiosConfig,
        credentials: tuple[Credential, ...] = (),
        transport: str | None = None,
        devices: tuple[Device, ...] = (),
    ) -> None:
        self.name = name
        self.path = path
        self.kernel = kernel
        self.firmware = firmware
        self.cpus = cpus
        self.memory = memory
        self.serial = serial
        self.service = service
        self.smbios = smbios
        self.credentials = credentials
        self.transport = transport
        self.devices = devices


def load_config(name: str, path: str) -> Config:
    """The checked configuration of the VM `name` from the file at `path`; UsageError or ConfigError."""
    check_name(name)
    path = os.path.abspath(path)
    table = _read_table(name, path)
    modules = {section: section_module(section) for section in table if section not in core.KEYS and _exists(section)}
    reader = _reader(path, table, modules)
    kernel, firmware = core.read_guest(reader)
    config = Config(
        name=name,
        path=path,
        kernel=kernel,
        firmware=firmware,
        cpus=core.read_cpus(reader),
        memory=core.read_memory(reader),
        serial=core.read_console(reader, "serial", ""),
        service=core.read_service(reader),
        smbios=core.read_smbios(reader),
        credentials=_read_credentials(reader),
    )
    transport = reader.choice("virtio", "transport", core.TRANSPORTS, "pci")
    # A firmware gets such devices only where its configuration names one of them.
    if kernel is not None or modules or reader.has("virtio"):
        modules.update((section, section_module(section)) for section in _DEFAULT_SECTIONS)
        config.transport = transport
        config.devices = tuple(
            device
            for module in sorted(modules.values(), key=lambda module: int(module.ORDER))
            for device in module.read(reader, config)
        )
        _check_names(config)
    _check_terminals(config)
    return config


def check_files(config: Config) -> None:
    """Open every file that the configuration points to; the first that is wrong is a ConfigError."""
    if config.kernel is not None:
        _check_file(config, "kernel.path", config.kernel.path, "kernel")
        if config.kernel.initramfs is not None:
            _check_file(config, "kernel.initramfs", config.kernel.initramfs, "initramfs")
    if config.firmware is not None:
        _check_file(config, "firmware.path", config.firmware.path, "firmware image")
    memory = config.memory.file
    if memory is not None:
        core.check_folder(config.path, "memory.file", memory)
        if os.path.exists(memory) and not os.path.isdir(memory) and not os.path.isfile(memory):
            raise ConfigError(f"{config.path}: memory.file is {memory}; expected a regular file or a directory")
    core.check_output(config.path, "serial.path", config.serial.path)
    core.check_output(config.path, "serial.log_path", config.serial.log_path)
    if config.credentials:
        from vmservice.config.credentials import read_values

        read_values(config.credentials, config.path)
    for device in config.devices:
        module = section_module(device.kind)
        if hasattr(module, "check_files"):
            module.check_files(device, config.path)


def _check_file(config: Config, key: str, path: str, what: str) -> None:
    with Naming(f"{config.path}: {key}"):
        RegularFile(path, what).close()


def _read_credentials(reader: TableReader) -> tuple[Credential, ...]:
    if not reader.has("credentials"):
        return ()
    from vmservice.config.credentials import read

    return read(reader)


def section_module(section: str) -> ModuleType:
    """The module of a section that stands for devices; its name may have a hyphen where the module's has an underscore."""
    name = f"{sections.__name__}.{section.replace('-', '_')}"
    __import__(name)
    return sys.modules[name]


def section_header(kind: str) -> str:
    """How the file has the section: `[kind]`, or `[[kind]]` where it may be there several times."""
    return f"[[{kind}]]" if kind not in core.KEYS and section_module(kind).ARRAY else f"[{kind}]"


def section_names() -> list[str]:
    """All sections that stand for devices, found or not in any file."""
    files = {file for folder in sections.__path__ for file in os.listdir(folder)}
    names = (file.removesuffix(".py").replace("_", "-") for file in files if file.endswith(".py"))
    return sorted((name for name in names if not name.startswith("-")), key=lambda name: int(section_module(name).ORDER))


def _exists(section: str) -> bool:
    if not section.replace("-", "").isalnum() or not section.isascii():
        return False
    file = f"{section.replace('-', '_')}.py"
    return any(os.path.isfile(f"{folder}/{file}") for folder in sections.__path__)


def _reader(path: str, table: Mapping[str, object], modules: Mapping[str, ModuleType]) -> TableReader:
    known = {**core.KEYS, **{name: module.KEYS for name, module in modules.items()}}
    arrays = {name for name, module in modules.items() if module.ARRAY}
    try:
        return TableReader(path, table, known, arrays)
    except ConfigError:
        # Once more, with all that could have been meant: those modules are imported for the message only.
        everything = {name: section_module(name) for name in section_names()}
        known = {**core.KEYS, **{name: module.KEYS for name, module in everything.items()}}
        return TableReader(path, table, known, {name for name, module in everything.items() if module.ARRAY})


def _read_table(name: str, path: str) -> dict[str, object]:
    """The parsed file."""
    try:
        file = RegularFile(path, "configuration")
    except ConfigError:
        if not os.path.lexists(path):
            raise ConfigError(f"there is no configuration for the VM {name}: {path} does not exist") from None
        raise
    with file:
        if file.size_bytes > CONFIG_MAX_SIZE_BYTES:
            raise ConfigError(
                f"the configuration {path} has {file.size_bytes} bytes; at most {CONFIG_MAX_SIZE_BYTES} are allowed"
            )
        return _parse(path, file.read(CONFIG_MAX_SIZE_BYTES))


def _parse(path: str, data: bytes) -> dict[str, object]:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"the configuration {path} is not UTF-8: byte {data[error.start]:#04x} at offset {error.start}"
        ) from None
    plain = plain_toml.read(text)
    if plain is not None:
        return plain
    import tomllib

    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"the configuration {path} is nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError is one, and so is what int() says to a number of thousands of digits
        lines = text.split("\n")
        place = f"at line {len(lines)}, column {len(lines[-1]) + 1}"
        message = str(error).replace("at end of document", place)
        raise ConfigError(f"the configuration {path} is not valid TOML: {message}") from None


def _check_names(config: Config) -> None:
    """By its name a device is found in the whole VM. Those without the key `name` have names of their own."""
    places = {"serial": ("serial", "")}
    count: dict[str, int] = {}
    for device in config.devices:
        kind, number = device.kind, count.get(device.kind, 0)
        key = f"{kind}[{number}].name" if section_module(kind).ARRAY else ""
        if device.name in places:
            first, first_key = places[device.name]
            both = f"two {section_header(kind)}" if first == kind else f"{section_header(first)} and {section_header(kind)}"
            expected = f"a name of its own in {key or first_key}"
            raise ConfigError(f"{config.path}: {both} are called {quoted(device.name)}; expected {expected}")
        places[device.name] = kind, key
        count[kind] = number + 1


def _check_terminals(config: Config) -> None:
    at_terminal = ["serial.mode"] if config.serial.mode == "tty" else []
    for device in config.devices:
        at_terminal += getattr(device, "terminals", ())
    if len(at_terminal) > 1:
        raise ConfigError(
            f'{config.path}: {" and ".join(at_terminal[:2])} are both "tty"; there is one terminal, for one of them'
        )
