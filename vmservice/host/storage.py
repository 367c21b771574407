"""A disk image or a block device of the host: opened without a trap, locked, and its shape."""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from vmservice.errors import PATH_SHOWN_MAX, ConfigError, HostError, quoted
from vmservice.host import direct_io, image_lock
from vmservice.host.block_file import SECTOR_BYTES, BlockFile
from vmservice.host.files import WrongKindError, open_file

# <linux/fs.h>
_BLKSSZGET = 0x1268
_BLKIOMIN = 0x1278
_BLKIOOPT = 0x1279
_BLKPBSZGET = 0x127B
_BLKGETSIZE64 = 0x80081272

_PAGE_BYTES = 4096

_QCOW2_MAGIC = b"QFI\xfb"


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
    os.close(open_image(path, what, os.O_RDWR if writable else os.O_RDONLY, claim=False))  # a VM that runs may have claimed it


class Image(BlockFile):
    """An open image, and with it locked. `size_bytes` is as last looked at, in whole blocks."""

    consoles = ()

    def __init__(self, path: str, what: str, *, writable: bool, is_direct: bool = False) -> None:
        """`what` is the subject of a sentence: `disk root`. ConfigError or HostError, with nothing left open."""
        flags = os.O_RDWR if writable else os.O_RDONLY
        fd = open_image(path, what, flags | (os.O_DIRECT if is_direct else 0), claim=writable)
        super().__init__(fd, is_direct=is_direct, is_device=stat.S_ISBLK(os.fstat(fd).st_mode))
        self.path = path
        self.what = what
        try:
            image_lock.take(fd, path, what, writer=writable)
            self.shape = self._look_at_shape()
            self.block_bytes = self.shape.block_bytes
            self.size_bytes = self._look_at_size()
            self._check_size()
        except OSError as error:
            self.close()
            raise HostError.from_os(f"{what}: cannot look at {path}", error) from error
        except BaseException:
            self.close()
            raise

    def fds(self) -> dict[str, int]:
        return {"image": self.fd}

    def _check_size(self) -> None:
        if not self.size_bytes or self.size_bytes % self.block_bytes:
            expected = f"a multiple of {self.block_bytes} that is not 0"
            raise ConfigError(f"{self.what}: {self.path} has {self.size_bytes} bytes; expected {expected}")

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
        self.size_bytes = size - size % self.block_bytes
        return self.size_bytes

    def _look_at_size(self) -> int:
        return size_of(self.fd)

    def looks_like_qcow2(self) -> bool:
        """Whether it begins as such an image does."""
        page = direct_io.pages(_PAGE_BYTES)
        os.preadv(self.fd, [page], 0)
        return page[:4] == _QCOW2_MAGIC


def size_of(fd: int) -> int:
    """Of a regular file or block device, in bytes. OSError when that cannot be had."""
    status = os.fstat(fd)
    if stat.S_ISBLK(status.st_mode):
        return int.from_bytes(fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)), "little")
    return status.st_size


def open_image(path: str, what: str, flags: int, *, claim: bool) -> int:
    """A regular file or a block device. A device that is claimed must not be mounted, or part of another."""
    try:
        return open_file(path, flags, may_be_device=True, claim=claim)
    except OSError as error:
        raise _cannot_open(path, what, flags, error) from None
    except WrongKindError as error:
        raise ConfigError(f"{what}: {path} is {error.kind}; it must be a regular file or a block device") from None


def _cannot_open(path: str, what: str, flags: int, error: OSError) -> ConfigError:
    if error.errno == errno.ENOENT:
        return ConfigError(f"{what}: path is {quoted(path, PATH_SHOWN_MAX)}, which does not exist")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        from vmservice.host.accounts import own_name

        how = "written" if flags & os.O_RDWR else "read"
        return ConfigError(f"{what}: {path} cannot be {how} by {own_name()}: {error.strerror}")
    if error.errno == errno.EBUSY:
        return ConfigError(f"{what}: {path} is mounted, or used by another device of this host; a guest must have it alone")
    if error.errno == errno.EINVAL and flags & os.O_DIRECT:
        return _not_direct(path, what)
    return ConfigError(f"{what}: {path} cannot be opened: {error.strerror}")


def _not_direct(path: str, what: str) -> ConfigError:
    return ConfigError(f'{what}: cache = "direct" is not possible with {path}; expected "writeback"')
