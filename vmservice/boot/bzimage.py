"""bzImage: a Linux kernel that unpacks itself, entered by the 64-bit boot protocol.

Source: Documentation/arch/x86/boot.rst. The real-mode part of the image is never run: its setup header says what the rest
needs, and goes into the zero page.
"""

from __future__ import annotations

from vmservice.boot.kernel import LINUX_64, LoadedKernel, check_placement
from vmservice.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.host.files import RegularFile
    from vmservice.memory.guest_memory import GuestMemory

# Offsets in the file (and in the zero page).
HEADER_START = 0x1F1
MAGIC_OFFSET = 0x202
MAGIC = b"HdrS"

SETUP_SECTS = 0x1F1  # u8
SYSSIZE = 0x1F4  # u32, units of 16 bytes
BOOT_FLAG = 0x1FE  # u16
JUMP_LENGTH = 0x201  # u8: the header ends this many bytes behind 0x202
VERSION = 0x206  # u16, 0x020c is 2.12
LOADFLAGS = 0x211  # u8
CODE32_START = 0x214  # u32
INITRD_ADDR_MAX = 0x22C  # u32
KERNEL_ALIGNMENT = 0x230  # u32
RELOCATABLE_KERNEL = 0x234  # u8
XLOADFLAGS = 0x236  # u16
CMDLINE_SIZE = 0x238  # u32
PREF_ADDRESS = 0x258  # u64
INIT_SIZE = 0x260  # u32
# The end of init_size, the last field that is needed here; every header since 2.10 reaches so far.
HEADER_MIN_END = 0x264
# In struct boot_params the header may grow up to edd_mbr_sig_buffer.
HEADER_MAX_END = 0x290

BOOT_FLAG_VALUE = 0xAA55
LOADED_HIGH = 1 << 0
XLF_KERNEL_64 = 1 << 0
VERSION_MIN = 0x020C  # the first with xloadflags

SECTOR_BYTES = 512
SETUP_SECTS_DEFAULT = 4
PARAGRAPH_BYTES = 16
ENTRY_64_OFFSET = 0x200


def load_bzimage(file: RegularFile, memory: GuestMemory) -> LoadedKernel:
    """Put the protected-mode part where the kernel prefers to be; ConfigError if the image or the memory will not do.

    The preferred address and not code32_start: a kernel that finds itself lower moves up to it anyway, and there its packed
    form takes only pages that its unpacked form will use as well.
    """
    head = file.read(HEADER_MAX_END)
    _check_header(file, head)
    payload_start = ((head[SETUP_SECTS] or SETUP_SECTS_DEFAULT) + 1) * SECTOR_BYTES
    payload_size = _u32(head, SYSSIZE) * PARAGRAPH_BYTES
    if payload_size <= ENTRY_64_OFFSET:
        raise ConfigError(f"the kernel {file.path} says that it has {payload_size} bytes of code, too few for a 64-bit entry")
    if payload_start + payload_size > file.size_bytes:
        raise file.truncated(payload_start + payload_size)

    start = _load_address(file, head)
    end = start + max(payload_size, _u32(head, INIT_SIZE))
    check_placement(file, memory, start, end)
    with memory.view(start, payload_size) as view:
        file.read_into(view, payload_start)
    return LoadedKernel(
        entry=start + ENTRY_64_OFFSET,
        protocol=LINUX_64,
        setup_header=head[HEADER_START : _header_end(head)],
        cmdline_max=_u32(head, CMDLINE_SIZE),
        initrd_addr_max=_u32(head, INITRD_ADDR_MAX),
        start=start,
        end=end,
    )


def _check_header(file: RegularFile, head: bytes) -> None:
    if len(head) < HEADER_MIN_END:
        raise file.truncated(HEADER_MIN_END)
    if _u16(head, BOOT_FLAG) != BOOT_FLAG_VALUE or head[MAGIC_OFFSET : MAGIC_OFFSET + 4] != MAGIC:
        raise ConfigError(
            f"the kernel {file.path} has a damaged boot sector: {_u16(head, BOOT_FLAG):#06x} at 0x1fe, not 0xaa55"
        )
    version = _u16(head, VERSION)
    if version < VERSION_MIN:
        raise ConfigError(
            f"the kernel {file.path} speaks boot protocol {version >> 8}.{version & 0xFF:02}; "
            f"at least 2.12 (Linux 3.8) is needed"
        )
    if _header_end(head) < HEADER_MIN_END:
        raise ConfigError(f"the setup header of the kernel {file.path} ends at {_header_end(head):#x}, before its init_size")
    if len(head) < _header_end(head):
        raise file.truncated(_header_end(head))
    if not _u16(head, XLOADFLAGS) & XLF_KERNEL_64:
        raise ConfigError(f"the kernel {file.path} is a 32-bit kernel; one for x86-64, with a 64-bit entry, is needed")
    if not head[LOADFLAGS] & LOADED_HIGH:
        raise ConfigError(f"the kernel {file.path} is a zImage, made for memory below 1 MiB; a bzImage is needed")


def _load_address(file: RegularFile, head: bytes) -> int:
    preferred = _u64(head, PREF_ADDRESS) or _u32(head, CODE32_START)
    if not head[RELOCATABLE_KERNEL]:
        return preferred
    alignment = _u32(head, KERNEL_ALIGNMENT)
    if alignment == 0 or alignment & (alignment - 1):
        raise ConfigError(f"the kernel {file.path} asks for an alignment of {alignment:#x}, which is not a power of two")
    return -(-preferred // alignment) * alignment


def _header_end(head: bytes) -> int:
    return min(MAGIC_OFFSET + head[JUMP_LENGTH], HEADER_MAX_END)


def _u16(head: bytes, offset: int) -> int:
    return int.from_bytes(head[offset : offset + 2], "little")


def _u32(head: bytes, offset: int) -> int:
    return int.from_bytes(head[offset : offset + 4], "little")


def _u64(head: bytes, offset: int) -> int:
    return int.from_bytes(head[offset : offset + 8], "little")
