"""What every kernel loader answers: where the guest starts, and what of guest memory is taken."""

from __future__ import annotations

from vmservice.arch.x86_64 import layout
from vmservice.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from vmservice.host.files import RegularFile
    from vmservice.memory.guest_memory import GuestMemory

# The boot page tables map the first GiB one to one. A kernel runs on them until it has made its own, and the boot protocol
# asks that all of [load address, load address + init_size) be mapped until then.
BOOT_MAPPED_BYTES = layout.GIB


# How a kernel is entered: in 64-bit mode with RSI at the zero page (Documentation/arch/x86/boot.rst), or in 32-bit protected
# mode with RBX at the start info (Xen, docs/misc/pvh.pandoc).
LINUX_64 = "64-bit"
PVH = "PVH"


class LoadedKernel:
    """A kernel that lies in guest memory, ready to be entered at `entry` by the boot protocol `protocol`.

    `setup_header` is what the zero page takes over at 0x1f1, None for ELF. The kernel occupies
    [start, end), and with bzImage that includes what it needs to unpack itself. `cmdline_max` counts no terminating NUL;
    `initrd_addr_max` is the highest address that any byte of an initramfs may have.
    """

    __slots__ = ("cmdline_max", "end", "entry", "initrd_addr_max", "protocol", "setup_header", "start")

    def __init__(
        self,
        *,
        entry: int,
        protocol: str,
        setup_header: bytes | None,
        cmdline_max: int,
        initrd_addr_max: int,
        start: int,
        end: int,
    ) -> None:
        self.entry: Final = entry
        self.protocol: Final = protocol
        self.setup_header: Final = setup_header
        self.cmdline_max: Final = cmdline_max
        self.initrd_addr_max: Final = initrd_addr_max
        self.start: Final = start
        self.end: Final = end


def low_ram_end(memory: GuestMemory) -> int:
    """The first gpa behind the RAM that begins at 0: the end of memory, or of its part below the 32-bit hole."""
    return memory.regions[0].end


def check_placement(file: RegularFile, memory: GuestMemory, start: int, end: int) -> None:
    """ConfigError unless a kernel may occupy [start, end)."""
    if start < layout.HIGH_RAM:
        raise ConfigError(
            f"the kernel {file.path} wants to be at {start:#x}; only addresses from {layout.HIGH_RAM:#x} on are free"
        )
    if end > BOOT_MAPPED_BYTES:
        raise ConfigError(
            f"the kernel {file.path} reaches up to {end:#x}; a kernel must lie in the first GiB, below {BOOT_MAPPED_BYTES:#x}"
        )
    if end > low_ram_end(memory):
        raise ConfigError(
            f"the kernel {file.path} reaches up to {end:#x}, but guest memory ends at {low_ram_end(memory):#x}; "
            f"memory.size must be at least {whole_mebibytes(end)}"
        )


def whole_mebibytes(size_bytes: int) -> str:
    """The size as the configuration spells it, rounded up to whole MiB."""
    return f"{-(-size_bytes >> 20)}M"
