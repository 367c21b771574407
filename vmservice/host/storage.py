"""A disk image or a block device of the host: opened without a trap, its shape, and what is done to its bytes.

Every method that works on the bytes may wait for the host, and raises OSError. Buffers are lists of memoryviews, which are
filled or written in place.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat

from vmservice.errors import ConfigError, HostError
from vmservice.host import direct_io, image_lock
from vmservice.host.files import KINDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    Views = Sequence[memoryview]

SECTOR_BYTES = 512

_IOV_MAX = 1024  # <linux/uio.h>: buffers of one preadv(2)

# <linux/fs.h>
_BLKDISCARD = 0x1277
_BLKSSZGET = 0x1268
_BLKIOMIN = 0x1278
_BLKIOOPT = 0x1279
_BLKPBSZGET = 0x127B
_BLKZEROOUT = 0x127F
_BLKGETSIZE64 = 0x80081272

# <linux/falloc.h>
_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02
_ZERO_RANGE = 0x10

_PAGE_BYTES = 4096
_ZEROES_BYTES = 1 << 20

_QCOW2_MAGIC = b"QFI\xfb"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Shape:
    """What the guest is told of the disk, in bytes; 0 for what is not known. Discards are best of whole `discard_bytes`."""

    __slots__ = ("block_bytes", "discard_bytes", "minimum_io_bytes", "optimal_io_bytes", "physical_bytes")

    def __init__(
        self,
        block_bytes: int = SECTOR_BYTES,
        physical_bytes: int = SECTOR_BYTES,
        minimum_io_bytes: int = 0,
        optimal_io_bytes: int = 0,
        discard_bytes: int = 0,
    ) -> None:
        self.block_bytes = block_bytes
        self.physical_bytes = max(physical_bytes, block_bytes)
        self.minimum_io_bytes = minimum_io_bytes
        self.optimal_io_bytes = optimal_io_bytes
        self.discard_bytes = max(discard_bytes, block_bytes)


def check_image(path: str, what: str, *, writable: bool) -> None:
    """ConfigError unless there is an image or block device at `path` that this account can open. `what` begins the sentence."""
    os.close(_open(path, what, os.O_RDWR if writable else os.O_RDONLY))


class Image:
    """An open image. It owns `fd`, and with that the image's locks.

    `size_bytes` is as last looked at, `is_direct` whether the host's page cache is bypassed: then offsets and lengths are
    multiples of `shape.block_bytes`, and addresses of `memory_align`, or it is for the caller to copy.
    """

    consoles = ()

    def __init__(self, path: str, what: str, *, writable: bool, is_direct: bool = False) -> None:
        """`what` is the subject of a sentence: `the disk root`. ConfigError or HostError, with nothing left open."""
        self.path = path
        self.what = what
        self.is_direct = is_direct
        self.is_dirty = False  # something was written since the last flush
        self.can_peek = not is_direct
        self.memory_align = 1
        self._lost = 0  # errno of a flush after which it is not known what is on the disk
        flags = os.O_RDWR if writable else os.O_RDONLY
        self.fd = _open(path, what, flags | (os.O_DIRECT if is_direct else 0))
        try:
            self.is_device = stat.S_ISBLK(os.fstat(self.fd).st_mode)
            image_lock.take(self.fd, path, what, writer=writable)
            self.shape = self._look_at_shape()
            self.size_bytes = self._look_at_size()
            block = self.shape.block_bytes
            if not self.size_bytes or self.size_bytes % block:
                raise ConfigError(f"{what}: {path} has {self.size_bytes} bytes; expected a multiple of {block} that is not 0")
        except OSError as error:
            self.close()
            raise HostError.from_os(f"{what}: cannot look at {path}", error) from error
        except BaseException:
            self.close()
            raise

    def fds(self) -> dict[str, int]:
        return {"image": self.fd}

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    # Its shape

    def _look_at_shape(self) -> Shape:
        block_bytes = SECTOR_BYTES
        if self.is_direct:
            found = direct_io.alignment(self.fd)
            if found is None:
                raise _not_direct(self.path, self.what)
            self.memory_align, block_bytes = found
        if not self.is_device:
            # A file system with larger blocks (of 128 KiB, say) is no disk of such sectors.
            physical = min(os.fstat(self.fd).st_blksize, _PAGE_BYTES)
            return Shape(block_bytes, physical, discard_bytes=physical)
        logical, physical, minimum, optimal = (
            int.from_bytes(fcntl.ioctl(self.fd, request, bytes(4)), "little")
            for request in (_BLKSSZGET, _BLKPBSZGET, _BLKIOMIN, _BLKIOOPT)
        )
        return Shape(logical, physical, minimum, optimal, self._device_limit("discard_granularity"))

    def can_discard(self) -> bool:
        """Whether there is any sense in offering it."""
        return not self.is_device or self._device_limit("discard_max_bytes") > 0

    def _device_limit(self, name: str) -> int:
        """Of the block device, from its queue in sysfs; a partition's is its disk's. 0 where nobody says."""
        device = os.fstat(self.fd).st_rdev
        base = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
        for folder in (f"{base}/queue", f"{base}/../queue"):
            try:
                with open(f"{folder}/{name}", encoding="ascii") as file:
                    return int(file.read())
            except (OSError, ValueError):
                continue
        return 0

    def look_again(self) -> int:
        """The size as it is now, in whole blocks: somebody may have changed it. OSError when that cannot be had."""
        size = self._look_at_size()
        self.size_bytes = size - size % self.shape.block_bytes
        return self.size_bytes

    def _look_at_size(self) -> int:
        if self.is_device:
            return int.from_bytes(fcntl.ioctl(self.fd, _BLKGETSIZE64, bytes(8)), "little")
        return os.fstat(self.fd).st_size

    # Its bytes

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
        if self.is_direct and not direct_io.is_aligned(views, self.memory_align, self.shape.block_bytes):
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
        if self.is_direct and not direct_io.is_aligned(views, self.memory_align, self.shape.block_bytes):
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

    def looks_like_qcow2(self) -> bool:
        """Whether it begins as such an image does."""
        page = direct_io.pages(_PAGE_BYTES)
        os.preadv(self.fd, [page], 0)
        return page[:4] == _QCOW2_MAGIC


def _behind(views: Views, done: int) -> Views:
    """What is left of `views` behind their first `done` bytes."""
    for number, view in enumerate(views):
        if done < len(view):
            return [view[done:], *views[number + 1 :]]
        done -= len(view)
    return []


def _open(path: str, what: str, flags: int) -> int:
    """A regular file or a block device. A device that is written to is claimed: it must not be mounted, or part of another."""
    try:
        # O_NONBLOCK: the open of a FIFO would wait. It changes nothing for what is wanted.
        kind = os.stat(path).st_mode
        claim = os.O_EXCL if stat.S_ISBLK(kind) and flags & os.O_RDWR else 0
        fd = os.open(path, flags | claim | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise _cannot_open(path, what, flags, error) from None
    opened = os.fstat(fd).st_mode
    if not (stat.S_ISREG(opened) or stat.S_ISBLK(opened)):
        os.close(fd)
        other = KINDS.get(stat.S_IFMT(opened), "not a file")
        raise ConfigError(f"{what}: {path} is {other}; it must be a regular file or a block device")
    return fd


def _cannot_open(path: str, what: str, flags: int, error: OSError) -> ConfigError:
    if error.errno == errno.ENOENT:
        return ConfigError(f"{what}: {path} does not exist")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        how = "written" if flags & os.O_RDWR else "read"
        return ConfigError(f"{what}: {path} cannot be {how} by user {os.geteuid()}: {error.strerror}")
    if error.errno == errno.EBUSY:
        return ConfigError(f"{what}: {path} is mounted, or used by another device of this host; a guest must have it alone")
    if error.errno == errno.EINVAL and flags & os.O_DIRECT:
        return _not_direct(path, what)
    return ConfigError(f"{what}: {path} cannot be opened: {error.strerror}")


def _not_direct(path: str, what: str) -> ConfigError:
    return ConfigError(f'{what}: cache = "direct" is not possible with {path}; expected "writeback"')
