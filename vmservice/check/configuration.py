"""A configuration and everything that it points to, tried out without KVM."""

from __future__ import annotations

from vmservice.arch.x86_64 import layout
from vmservice.boot.cmdline import write_cmdline
from vmservice.boot.firmware import load_firmware
from vmservice.boot.initramfs import load_initramfs
from vmservice.boot.loader import load_kernel
from vmservice.config.credentials import read_values
from vmservice.config.load import file_errors
from vmservice.errors import ConfigError, NamingKey, raise_all
from vmservice.memory import backing
from vmservice.vm.identity import smbios_tables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.config.load import Config
    from vmservice.memory.guest_memory import GuestMemory


def check_config(config: Config) -> None:
    """ConfigError with all that would keep this VM from starting."""
    raise_all(find_mistakes(config))


def find_mistakes(config: Config, *, is_whole: bool = True) -> list[ConfigError]:
    """All that would keep this VM from starting, a sentence each.

    The guest's image is really loaded, into memory like the guest's, so that nothing is found out only at the start; not where
    a file is missing or the configuration not whole, for its size may be another then.
    """
    mistakes = file_errors(config)
    if not mistakes and is_whole:
        try:
            _try_guest(config)
        except ConfigError as error:
            mistakes.append(error)
    return mistakes


def _try_guest(config: Config) -> None:
    if config.kernel is not None:
        smbios_tables(config, read_values(config.credentials, config.naming()))
    memory = backing.allocate(layout.ram_ranges(config.memory.size_bytes))
    try:
        with config.naming():
            _load_guest(config, memory)
    finally:
        memory.close()


def _load_guest(config: Config, memory: GuestMemory) -> None:
    if config.kernel is not None:
        with NamingKey("kernel.path"):
            kernel = load_kernel(config.kernel.path, memory)
        if config.kernel.initramfs is not None:
            with NamingKey("kernel.initramfs"):
                load_initramfs(config.kernel.initramfs, memory, kernel)
        with NamingKey("kernel.cmdline"):
            write_cmdline(config.kernel.cmdline, memory, kernel)
    elif config.firmware is not None:
        with NamingKey("firmware.path"):
            load_firmware(config.firmware.path, memory).close()
