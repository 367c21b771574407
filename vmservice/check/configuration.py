"""A configuration and everything that it points to, tried out without KVM."""

from __future__ import annotations

from vmservice.arch.x86_64 import layout
from vmservice.boot.cmdline import write_cmdline
from vmservice.boot.firmware import load_firmware
from vmservice.boot.initramfs import load_initramfs
from vmservice.boot.loader import load_kernel
from vmservice.config.credentials import read_values
from vmservice.config.load import check_files
from vmservice.errors import Naming
from vmservice.memory import backing
from vmservice.vm.identity import smbios_tables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.config.load import Config
    from vmservice.memory.guest_memory import GuestMemory


def check_config(config: Config) -> None:
    """ConfigError with the first thing that would keep this VM from starting.

    The guest's image is really loaded, into memory like the guest's, so that nothing is found out only at the start.
    """
    check_files(config)
    if config.kernel is not None:
        smbios_tables(config, read_values(config.credentials, config.path))
    memory = backing.allocate(layout.ram_ranges(config.memory.size_bytes))
    try:
        with Naming(config.path):
            _load_guest(config, memory)
    finally:
        memory.close()


def _load_guest(config: Config, memory: GuestMemory) -> None:
    if config.kernel is not None:
        with Naming("kernel.path"):
            kernel = load_kernel(config.kernel.path, memory)
        if config.kernel.initramfs is not None:
            with Naming("kernel.initramfs"):
                load_initramfs(config.kernel.initramfs, memory, kernel)
        with Naming("kernel.cmdline"):
            write_cmdline(config.kernel.cmdline, memory, kernel)
    elif config.firmware is not None:
        with Naming("firmware.path"):
            load_firmware(config.firmware.path, memory).close()
