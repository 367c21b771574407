"""The way in: a kernel file, whatever its format, into guest memory."""

from __future__ import annotations

from vmservice.boot import bzimage
from vmservice.errors import ConfigError
from vmservice.host.files import RegularFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.boot.kernel import LoadedKernel
    from vmservice.memory.guest_memory import GuestMemory

ELF_MAGIC = b"\x7fELF"
MAGIC_END = bzimage.MAGIC_OFFSET + len(bzimage.MAGIC)


def load_kernel(path: str, memory: GuestMemory) -> LoadedKernel:
    """Load the bzImage or ELF kernel at `path`, told apart by content; ConfigError says what is wrong with it."""
    with RegularFile(path, "kernel") as file:
        head = file.read(MAGIC_END)
        if head.startswith(ELF_MAGIC):
            from vmservice.boot.elf import load_elf

            return load_elf(file, memory)
        if head[bzimage.MAGIC_OFFSET :] == bzimage.MAGIC:
            return bzimage.load_bzimage(file, memory)
        raise ConfigError(f"the kernel {path} ({file.size_bytes} bytes) is neither a bzImage nor an ELF file")
