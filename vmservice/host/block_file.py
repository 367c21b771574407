"""The bytes of an open image or block device. Every method may wait for the host, and raises OSError.

Buffers are lists of memoryviews, which are filled or written in place.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os

from vmservice.host import direct_io
from vmservice.host.files import close_written

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    Views = Sequence[memoryview]

SECTOR_BYTES = 512

_IOV_MAX = 1024  # <linux/uio.h>: buffers of one preadv(2)

# <linux/fs.h>
_BLKDISCARD = 0x1277
_BLKZEROOUT = 0x127F

# <linux/falloc.h>
_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02
_ZERO_RANGE = 0x10

_ZEROES_BYTES = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class BlockFile:
    """Owns `fd`. Offsets and lengths are multiples of `block_bytes`.

    Where `is_direct`, the host's page cache is bypassed: addresses have to be multiples of `memory_align` then, or the data
    are copied.
    """

    def __init__(self, fd: int, *, is_direct: bool = False, is_device: bool = False) -> None:
        self.fd = fd
        self.is_direct = is_direct
        self.is_device = is_device
        self.memory_align = 1
        self.block_bytes = SECTOR_BYTES
        self.can_peek = not is_direct
        self.is_dirty = False  # something was written since the last flush
        self._lost = 0  # errno of a flush after which it is not known what is on the disk

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            close_written(fd)

    def peek(self, views: Views, offset: int, length: int) -> bool:
        """Read without waiting for the disk; False where that cannot be, and nothing is said of the buffers then."""
        if not self.can_peek:
            return False
        try:
            return os.preadv(self.fd, views, offset, os.RWF_NOWAIT) == length
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:  # a file system that cannot
                self.can_peek = False
            elif error.errno != errno.EAGAIN:
                raise
            return False

    def read(self, views: Views, offset: int, length: int) -> None:
        """Fill `views`, `length` bytes in all, from `offset` on. EIO where the image ends before."""
        if self.is_direct and direct_io.aligned(views, self.memory_align, self.block_bytes) is None:
            direct_io.bounce_in(views, length, lambda part, place: self.read([part], offset + place, len(part)))
            return
        while length:
            done = os.preadv(self.fd, views[:_IOV_MAX], offset)
            if not done:
                raise OSError(errno.EIO, "the image is cut short")
            if done == length:
                return
            views, offset, length = _behind(views, done), offset + done, length - done

    def write(self, views: Views, offset: int, length: int, durable: bool = False) -> None:
        """Write `views`, `length` bytes in all, to `offset`; if `durable`, they are on the disk then, as after a flush."""
        self.is_dirty = True
        if self.is_direct and direct_io.aligned(views, self.memory_align, self.block_bytes) is None:
            direct_io.bounce_out(views, length, lambda part, place: self.write([part], offset + place, len(part), durable))
            return
        flags = os.RWF_DSYNC if durable else 0
        while length:
            done = os.pwritev(self.fd, views[:_IOV_MAX], offset, flags)
            if done == length:
                return
            if not done:
                raise OSError(errno.ENOSPC, "the image takes no more")
            views, offset, length = _behind(views, done), offset + done, length - done

    def flush(self) -> None:
        """All that was written before is on the disk.

        A flush that fails through the page cache leaves pages there that no longer count as written: what the disk has is not
        known then, no later flush can say otherwise, and so each of them fails.
        """
        if self._lost:
            raise OSError(self._lost, os.strerror(self._lost))
        try:
            os.fdatasync(self.fd)
        except OSError as error:
            if not self.is_direct:
                self._lost = error.errno or errno.EIO
            raise

    def discard(self, offset: int, length: int) -> None:
        """Give the room of these bytes back; what they hold afterwards is anything. EOPNOTSUPP where it cannot be."""
        self.is_dirty = True
        if self.is_device:
            self._range_ioctl(_BLKDISCARD, offset, length)
        else:
            self._fallocate(_PUNCH_HOLE | _KEEP_SIZE, offset, length)

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """These bytes are zero; if `unmap`, their room may be given back."""
        self.is_dirty = True
        try:
            if self.is_device:
                self._range_ioctl(_BLKZEROOUT, offset, length)
            else:
                self._fallocate(_PUNCH_HOLE | _KEEP_SIZE if unmap else _ZERO_RANGE | _KEEP_SIZE, offset, length)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            self._write_each_zero(offset, length)

    def _write_each_zero(self, offset: int, length: int) -> None:
        zeroes = direct_io.pages(min(length, _ZEROES_BYTES))
        while length:
            part = min(length, len(zeroes))
            self.write([zeroes[:part]], offset, part)
            offset += part
            length -= part

    def _fallocate(self, mode: int, offset: int, length: int) -> None:
        if _libc.fallocate(self.fd, mode, offset, length) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def _range_ioctl(self, request: int, offset: int, length: int) -> None:
        fcntl.ioctl(self.fd, request, offset.to_bytes(8, "little") + length.to_bytes(8, "little"))


def _behind(views: Views, done: int) -> Views:
    """What is left of `views` behind their first `done` bytes."""
    for number, view in enumerate(views):
        if done < len(view):
            return [view[done:], *views[number + 1 :]]
        done -= len(view)
    return []
