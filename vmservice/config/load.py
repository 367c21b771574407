"""NAME.toml and its drop-ins as a `Config`: what the files say, complete, with every default in place.

A `Config` from `load_config` is right by itself; `check_files` adds what it points to. Every mistake is one sentence that names
the file, the key and what was expected. Paths may be relative: they start at the folder of NAME.toml.
"""

from __future__ import annotations

import os
import sys

from vmservice.config import core, sections
from vmservice.config.files import read_files
from vmservice.config.names import check_name, is_made_by_unit
from vmservice.config.reader import Mistakes, TableReader, take_sections
from vmservice.errors import PATH_SHOWN_MAX, ConfigError, Naming, NamingKey, quoted, raise_all
from vmservice.host.files import RegularFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
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


# What is there without being named, in a machine that has such devices at all.
_DEFAULT_SECTIONS = ("rng",)


class Config:
    """One VM as its operator wants it. Exactly one of `kernel` and `firmware` is set.

    `devices` are those beyond the board's, in the order in which they are plugged in; `transport` is "pci" or "mmio", or None
    for a machine that has no place for them. `credentials` are the file's own, and secret.

    `read_from` are the files that it was read from. `files` names that of a key ("kernel.path") or a device ("disk root") where
    it is not `path`.
    """

    __slots__ = (
        "cpus",
        "credentials",
        "devices",
        "files",
        "firmware",
        "kernel",
        "memory",
        "name",
        "path",
        "read_from",
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
        files: Mapping[str, str] | None = None,
        read_from: tuple[str, ...] = (),
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
        self.files = files or {}
        self.read_from = read_from

    def file_of(self, what: str) -> str:
        """The file to name for a key or a device."""
        return self.files.get(what, self.path)

    def naming(self) -> Naming:
        """In this context each ConfigError has the file in front that its key or device is from."""
        return Naming(self.path, self.files)


def load_config(name: str, path: str, draft: str | None = None) -> Config:
    """The checked configuration of the VM `name` from the file at `path`, and its drop-ins; UsageError or ConfigError, which is
    a ConfigErrors where there is more than one mistake. With `draft` that file is read in place of the one at `path`."""
    config, mistakes = read_config(name, path, draft)
    raise_all(mistakes)
    return config


def read_config(name: str, path: str, draft: str | None = None) -> tuple[Config, list[ConfigError]]:
    """The same with all mistakes: what is wrong is as if it were not there. Raises where nothing can be read at all."""
    check_name(name)
    path = os.path.abspath(path)
    parts = read_files(name, path, draft)
    modules = {
        section: section_module(section)
        for _, table in parts
        for section in table
        if section not in core.KEYS and _exists(section)
    }
    mistakes, reader, files = _reader(path, parts, modules)
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
        files=files,
        read_from=tuple(file for file, _ in parts),
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
        _check_names(config, reader)
    _check_terminals(config, reader)
    return config, mistakes.errors


def check_files(config: Config) -> None:
    """Open every file that the configuration points to; ConfigError for what is wrong."""
    raise_all(file_errors(config))


def file_errors(config: Config) -> list[ConfigError]:
    """The same; a path that is empty was wrong before."""
    errors: list[ConfigError] = []

    def attempt(check: Callable[..., object], *arguments: object) -> None:
        try:
            with config.naming():
                check(*arguments)
        except ConfigError as error:
            errors.append(error)

    if config.kernel is not None:
        attempt(_check_file, "kernel.path", config.kernel.path, "kernel")
        attempt(_check_file, "kernel.initramfs", config.kernel.initramfs, "initramfs")
    if config.firmware is not None:
        attempt(_check_file, "firmware.path", config.firmware.path, "firmware image")
    attempt(_check_backing, config.memory.file)
    attempt(core.check_output, "serial.path", config.serial.path)
    attempt(core.check_output, "serial.log_path", config.serial.log_path)
    if config.credentials:
        from vmservice.config.credentials import value_of

        for credential in config.credentials:
            attempt(value_of, credential)
    for device in config.devices:
        module = section_module(device.kind)
        if hasattr(module, "check_files") and getattr(device, "path", None) != "":
            attempt(module.check_files, device, config.file_of(f"{device.kind} {device.name}"))
    return errors


def _check_file(key: str, path: str | None, what: str) -> None:
    if path:
        with NamingKey(key):
            RegularFile(path, what).close()


def _check_backing(file: str | None) -> None:
    if file is None:
        return
    if not is_made_by_unit(file):
        core.check_folder("memory.file", file)
    if os.path.exists(file) and not os.path.isdir(file) and not os.path.isfile(file):
        raise ConfigError(f"memory.file is {quoted(file, PATH_SHOWN_MAX)}; expected a regular file or a directory")


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
    if not section.isascii() or not all(word.isalnum() for word in section.split("-")):
        return False  # such as --init--, which would be __init__.py
    file = f"{section.replace('-', '_')}.py"
    return any(os.path.isfile(f"{folder}/{file}") for folder in sections.__path__)


def _reader(
    path: str, parts: Sequence[tuple[str, dict[str, object]]], modules: Mapping[str, ModuleType]
) -> tuple[Mistakes, TableReader, dict[str, str]]:
    """And the files of what is not from `path`, as `Config.files`."""
    known = {**core.KEYS, **{name: module.KEYS for name, module in modules.items()}}
    arrays = {name for name, module in modules.items() if module.ARRAY}
    mistakes = Mistakes()
    taken = [(file, take_sections(file, table, known, arrays, mistakes)) for file, table in parts]
    if mistakes.errors and len(known) < len(core.KEYS) + len(section_names()):
        # Once more, with all that could have been meant: those modules are imported for the sentences only.
        return _reader(path, parts, {name: section_module(name) for name in section_names()})
    if len(taken) == 1 and taken[0][0] == path:
        return mistakes, TableReader(path, taken[0][1], mistakes), {}
    from vmservice.config.merge import by_key, merge

    tables, origins = merge(taken)
    return mistakes, TableReader(path, tables, mistakes, origins), by_key(tables, origins)


def _check_names(config: Config, reader: TableReader) -> None:
    """By its name a device is found in the whole VM. Those without the key `name` have names of their own."""
    places = {"serial": ("serial", "")}
    count: dict[str, int] = {}
    for device in config.devices:
        kind, number = device.kind, count.get(device.kind, 0)
        key = f"{kind}[{number}].name" if section_module(kind).ARRAY else ""
        if device.name in places:
            first, first_key = places[device.name]
            both = f"two {section_header(kind)}" if first == kind else f"{section_header(first)} and {section_header(kind)}"
            of = key or first_key
            expected = f"a name of its own in {reader.name(of.partition('.')[0], 'name')}"
            reader.note(of, f"{both} are called {quoted(device.name)}; expected {expected}")
        places[device.name] = kind, key
        count[kind] = number + 1


def _check_terminals(config: Config, reader: TableReader) -> None:
    at_terminal = ["serial.mode"] if config.serial.mode == "tty" else []
    for device in config.devices:
        at_terminal += getattr(device, "terminals", ())
    if len(at_terminal) > 1:
        both = " and ".join(at_terminal[:2])
        reader.note(at_terminal[1], f'{both} are both "tty"; there is one terminal, for one of them')
