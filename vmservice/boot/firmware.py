"""Flat firmware: an image whose last byte is the last below 4 GiB, so that the reset vector lies in it.

As in a PC, its last 128 KiB also appear below 1 MiB, where real mode reaches them. The copy at the top is not guest RAM:
it comes as a mapping for a read-only memory slot.
"""

from __future__ import annotations

import mmap

from vmservice.arch.x86_64 import layout
from vmservice.errors import ConfigError
from vmservice.host.files import RegularFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from vmservice.memory.guest_memory import GuestMemory

# The first instruction is fetched 16 bytes below 4 GiB (Intel SDM vol. 3, 10.1.4): a shorter image does not hold it.
SIZE_MIN_BYTES = 16


class FirmwareImage:
    """The copy below 4 GiB: `mapping`, whole pages that begin at `gpa` and end at 4 GiB, the image at their end.

    It owns the mapping.
    """

    __slots__ = ("gpa", "mapping")

    def __init__(self, mapping: mmap.mmap) -> None:
        self.mapping: Final = mapping
        self.gpa: Final = layout.FIRMWARE_END - len(mapping)

    def close(self) -> None:
        self.mapping.close()


def image_of(data: bytes) -> FirmwareImage:
    """The copy below 4 GiB as another machine had it: whole pages, and what is below 1 MiB is the guest's own by now."""
    mapping = mmap.mmap(-1, len(data), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapping[:] = data
    return FirmwareImage(mapping)


def load_firmware(path: str, memory: GuestMemory) -> FirmwareImage:
    """Map the image at `path` for the top of the 32-bit space and write its tail below 1 MiB.

    ConfigError says what is wrong with it, and nothing stays mapped.
    """
    with RegularFile(path, "firmware image") as file:
        if not SIZE_MIN_BYTES <= file.size_bytes <= layout.FIRMWARE_MAX_SIZE:
            raise ConfigError(
                f"the firmware image {path} has {file.size_bytes} bytes; "
                f"from {SIZE_MIN_BYTES} to {layout.FIRMWARE_MAX_SIZE} are possible"
            )
        shadow_size = min(file.size_bytes, layout.FIRMWARE_SHADOW_SIZE)
        shadow_start = layout.BIOS_AREA_END - shadow_size
        if not memory.contains(shadow_start, shadow_size):
            raise ConfigError(
                f"the firmware image {path} needs guest memory up to {layout.BIOS_AREA_END:#x}, where its copy belongs"
            )
        pages = -(-file.size_bytes // layout.PAGE_SIZE)
        mapping = mmap.mmap(-1, pages * layout.PAGE_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        try:
            with (
                memoryview(mapping) as view,
                view[-file.size_bytes :] as image,
                memory.view(shadow_start, shadow_size) as shadow,
            ):
                file.read_into(image, 0)
                shadow[:] = image[-shadow_size:]
        except BaseException:
            mapping.close()
            raise
    return FirmwareImage(mapping)
