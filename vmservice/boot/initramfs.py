"""The initramfs, as high as the kernel can reach, where it is in nobody's way."""

from __future__ import annotations

from vmservice.arch.x86_64 import layout
from vmservice.boot.kernel import low_ram_end, whole_mebibytes
from vmservice.errors import ConfigError
from vmservice.host.files import RegularFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from vmservice.boot.kernel import LoadedKernel
    from vmservice.memory.guest_memory import GuestMemory


class LoadedInitramfs:
    """`size_bytes` at `gpa`: what ramdisk_size and ramdisk_image of the zero page are to say."""

    __slots__ = ("gpa", "size_bytes")

    def __init__(self, gpa: int, size_bytes: int) -> None:
        self.gpa: Final = gpa
        self.size_bytes: Final = size_bytes


def load_initramfs(path: str, memory: GuestMemory, kernel: LoadedKernel) -> LoadedInitramfs:
    """Read the file at `path` to the last pages below the kernel's initrd_addr_max and the end of low RAM; ConfigError if
    that would reach into the kernel."""
    with RegularFile(path, "initramfs") as file:
        ceiling = min(kernel.initrd_addr_max + 1, low_ram_end(memory))
        gpa = (ceiling - file.size_bytes) // layout.PAGE_SIZE * layout.PAGE_SIZE
        if gpa < kernel.end:
            room = max(0, ceiling - kernel.end)
            needed = (
                -(-kernel.end // layout.PAGE_SIZE) * layout.PAGE_SIZE
                + -(-file.size_bytes // layout.PAGE_SIZE) * layout.PAGE_SIZE
            )
            advice = f"; memory.size must be at least {whole_mebibytes(needed)}" if needed <= kernel.initrd_addr_max else ""
            raise ConfigError(
                f"the initramfs {path} of {file.size_bytes} bytes does not fit: "
                f"{room} bytes lie between the kernel's end at {kernel.end:#x} and {ceiling:#x}{advice}"
            )
        with memory.view(gpa, file.size_bytes) as view:
            file.read_into(view, 0)
        return LoadedInitramfs(gpa, file.size_bytes)
