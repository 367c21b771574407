"""The files of the host that a configuration names, each with its key and what the VM does with it."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

    from vmservice.config.core import ConsoleConfig
    from vmservice.config.load import Config, Device

# What is done with it.
READ = "read"
WRITE = "write"  # and read
# Written to, and made where it is not there.
MAKE = "make"
# Written to and read; of a directory: a file is made in it.
BACK = "back"

CONFIGURATION = "the configuration"

_VHOST_VSOCK = "/dev/vhost-vsock"


class NamedFile:
    """`what` begins a sentence that goes on with `is "PATH"`. With `writer_is_other` another unit of the same account writes to
    it, and this one only reads."""

    __slots__ = ("path", "use", "what", "writer_is_other")

    def __init__(self, what: str, path: str, use: str, *, writer_is_other: bool = False) -> None:
        self.what: Final = what
        self.path: Final = os.path.normpath(path)
        self.use: Final = use
        self.writer_is_other: Final = writer_is_other


def named_files(config: Config) -> list[NamedFile]:
    """In the order of the sections, the configuration's own files first. A path that is empty is a mistake of another kind."""
    found = [NamedFile(CONFIGURATION, path, READ) for path in config.read_from]
    paths: list[tuple[str, str | None, str]] = []
    if config.kernel is not None:
        paths += [("kernel.path", config.kernel.path, READ), ("kernel.initramfs", config.kernel.initramfs, READ)]
    if config.firmware is not None:
        paths.append(("firmware.path", config.firmware.path, READ))
    paths.append(("memory.file", config.memory.file, BACK))
    paths += _of_console("serial", config.serial)
    paths += [(f'credentials."{one.name}": file', one.file, READ) for one in config.credentials]
    found += [NamedFile(what, path, use) for what, path, use in paths if path]
    for device in config.devices:
        found += _of_device(device)
    return found


def _of_console(where: str, output: ConsoleConfig) -> list[tuple[str, str | None, str]]:
    return [(f"{where}.path", output.path, MAKE), (f"{where}.log_path", output.log_path, MAKE)]


def _of_device(device: Device) -> Iterator[NamedFile]:
    """By the attributes that the sections' objects have; see config/sections/."""
    kind = device.kind
    path = getattr(device, "path", None)
    if path:
        is_written = not (getattr(device, "readonly", False) or getattr(device, "ephemeral", False))
        is_served = device.plug.endswith(".qcow2_disk")
        yield NamedFile(f"{kind} {device.name}: path", path, WRITE if is_written else READ, writer_is_other=is_served)
    paths = [(f"{kind}.user_data", getattr(device, "user_data", None), READ)]
    outputs = [(kind, getattr(device, "output", None))]
    outputs += [(port.where, port.output) for port in getattr(device, "ports", ())]
    for where, output in outputs:
        if output is not None:
            paths += _of_console(where, output)
    if kind == "vsock":
        paths.append(("vsock: its device", _VHOST_VSOCK, WRITE))
    yield from (NamedFile(what, path, use) for what, path, use in paths if path)
