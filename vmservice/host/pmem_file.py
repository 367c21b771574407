"""A file or block device of the host that a guest has as memory: opened, locked and mapped."""

from __future__ import annotations

import errno
import mmap
import os

from vmservice.errors import ConfigError, HostError
from vmservice.host.storage import Image, open_image, size_of

# A guest maps it by pages of this size, and Linux gives memory of its own kind no finer piece.
GRANULE_BYTES = 2 << 20

_MAP_NORESERVE = 0x4000  # <asm-generic/mman-common.h>; not in Python's mmap before 3.13


def check_pmem(path: str, what: str, *, writable: bool) -> None:
    """ConfigError unless this account can open what is at `path`, and its size is one. `what` begins the sentence."""
    fd = open_image(path, what, os.O_RDWR if writable else os.O_RDONLY, claim=False)  # a VM that runs may have claimed it
    try:
        _check_size(size_of(fd), path, what)
    finally:
        os.close(fd)


class PmemFile(Image):
    """An open file, and with it locked. Unless `writable`, what a guest writes to its mapping is the mapping's only.

    A writable file gets all the room that it may come to need: a page that a full file system has no room for would end the
    guest, or the VMM.
    """

    def __init__(self, path: str, what: str, *, writable: bool) -> None:
        """`what` is the subject of a sentence: `pmem data`. ConfigError or HostError, with nothing left open."""
        super().__init__(path, what, writable=writable)
        self._writable = writable
        try:
            if writable and not self.is_device:
                self._take_room()
        except BaseException:
            self.close()
            raise

    @property
    def shared_fd(self) -> int:
        """The file that others can map and have the same bytes; -1 where what is written stays in this process."""
        return self.fd if self._writable else -1

    def map(self) -> mmap.mmap:
        """All of it, writable; the caller closes it. ConfigError or HostError where its size is none any more."""
        # It need not be set aside for a private mapping: a guest that writes all of it is rare.
        flags = mmap.MAP_SHARED if self._writable else mmap.MAP_PRIVATE | _MAP_NORESERVE
        try:
            return mmap.mmap(self.fd, self.look_again(), flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        except ValueError as error:  # of mmap, which looks at the size, too
            raise HostError(f"{self.what}: {self.path} has become smaller while it was mapped") from error
        except OSError as error:
            raise HostError.from_os(f"{self.what}: cannot map {self.path}", error) from error

    def look_again(self) -> int:
        """The size as it is now. ConfigError or HostError where it is none that can be mapped."""
        try:
            self.size_bytes = size_of(self.fd)
        except OSError as error:
            raise HostError.from_os(f"{self.what}: the size of {self.path} cannot be had", error) from error
        self._check_size()
        return self.size_bytes

    def is_cut_short(self) -> bool:
        """Whether it has lost pages that the last mapping has. From any thread."""
        try:
            return size_of(self.fd) < self.size_bytes
        except OSError:
            return False

    def flush(self) -> None:
        """All that was written to a mapping before is on the disk, as far as it is to be kept. OSError when it is not known."""
        if self._writable:
            super().flush()

    def _check_size(self) -> None:
        _check_size(self.size_bytes, self.path, self.what)

    def _take_room(self) -> None:
        status = os.fstat(self.fd)
        if status.st_blocks * 512 >= status.st_size:
            return
        try:
            self._fallocate(0, 0, status.st_size)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:  # a file system that can promise nothing
                raise HostError.from_os(f"{self.what}: cannot take the room that {self.path} needs", error) from error


def _check_size(size_bytes: int, path: str, what: str) -> None:
    if not size_bytes or size_bytes % GRANULE_BYTES:
        larger = size_bytes + (GRANULE_BYTES - size_bytes % GRANULE_BYTES)
        raise ConfigError(f"{what}: {path} has {size_bytes} bytes; expected a multiple of 2 MiB, such as {larger}")
