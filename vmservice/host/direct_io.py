"""O_DIRECT: how buffers and offsets have to be aligned for a file, and how data gets in and out of those that are not."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Views = Sequence[memoryview]

# <linux/stat.h>, and where struct statx has what it says of O_DIRECT
_STATX_DIOALIGN = 0x2000
_AT_EMPTY_PATH = 0x1000
_STATX_BYTES = 0x100
_MEMORY_ALIGN = 0x98
_OFFSET_ALIGN = 0x9C

_SECTOR_BYTES = 512
_PAGE_BYTES = 4096

# The copy of a request that is not aligned: more of it goes piece by piece.
_BOUNCE_BYTES = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_address_of = ctypes.addressof
_in_place = ctypes.c_char.from_buffer


def alignment(fd: int) -> tuple[int, int] | None:
    """In bytes, of addresses in memory and of offsets and lengths; None where the file cannot be used so. OSError."""
    data = bytearray(_STATX_BYTES)
    buffer = (ctypes.c_char * _STATX_BYTES).from_buffer(data)
    done = _libc.statx(fd, b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, buffer) == 0
    if done and _u32(data, 0) & _STATX_DIOALIGN:
        memory, offset = _u32(data, _MEMORY_ALIGN), _u32(data, _OFFSET_ALIGN)
        return (memory, max(offset, _SECTOR_BYTES)) if memory and offset else None
    # Before Linux 6.1 nobody says: what a disk of 512-byte sectors takes, or else whole pages.
    try:
        os.preadv(fd, [pages(_SECTOR_BYTES)], _SECTOR_BYTES)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return _PAGE_BYTES, _PAGE_BYTES
    return _SECTOR_BYTES, _SECTOR_BYTES


def _u32(data: bytearray, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "little")


def aligned(views: Views, memory_align: int, block_bytes: int) -> list[tuple[int, int]] | None:
    """(address in this process, bytes) of each of these writable views; None if one is not aligned.

    ext4 would take others too, through the page cache; XFS refuses them.
    """
    found, bits = [], 0
    for view in views:
        address, size = _address_of(_in_place(view)), len(view)
        bits |= (address & memory_align - 1) | (size & block_bytes - 1)
        found.append((address, size))
    return None if bits else found


def bounce_in(views: Views, length: int, read: Callable[[memoryview, int], None]) -> None:
    """Fill `views` by `read(aligned, position)`, which fills a copy from a position of the whole on."""
    whole, targets = pages(min(length, _BOUNCE_BYTES)), Cursor(views)
    for position, size in _pieces(length):
        piece = whole[:size]
        read(piece, position)
        start = 0
        for target in targets.next(size):
            target[:] = piece[start : start + len(target)]
            start += len(target)


def bounce_out(views: Views, length: int, write: Callable[[memoryview, int], None]) -> None:
    """Have `views` written by `write(aligned, position)`, which is given a copy of a part at a position of the whole."""
    whole, sources = pages(min(length, _BOUNCE_BYTES)), Cursor(views)
    for position, size in _pieces(length):
        piece = whole[:size]
        start = 0
        for source in sources.next(size):
            piece[start : start + len(source)] = source
            start += len(source)
        write(piece, position)


def pages(size_bytes: int) -> memoryview:
    """Memory of our own, zeroed, that begins with a page. It goes with the last view: not before an error's traceback does."""
    return memoryview(mmap.mmap(-1, size_bytes))


def _pieces(length: int) -> Iterator[tuple[int, int]]:
    return ((position, min(_BOUNCE_BYTES, length - position)) for position in range(0, length, _BOUNCE_BYTES))


class Cursor:
    """Walks through `views`, some bytes at a time."""

    def __init__(self, views: Views) -> None:
        self._views = iter(views)
        self._rest = memoryview(b"")

    def next(self, size: int) -> Iterator[memoryview]:
        while size:
            if not self._rest:
                self._rest = next(self._views)
            part, self._rest = self._rest[:size], self._rest[size:]
            size -= len(part)
            yield part
