"""A disk of which nothing is kept: what is written lies in a file without a name, which goes with the process.

The image itself is only read. A cluster that has been written is wholly in the file; the others are the image's.
"""

from __future__ import annotations

import _thread
import os

from vmservice.errors import HostError
from vmservice.host import direct_io
from vmservice.host.block_file import BlockFile
from vmservice.host.storage import Image

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmservice.host.block_file import Views

CLUSTER_BYTES = 64 << 10


class Overlay(Image):
    """The image at `path`, opened to be read, with what is written beside it: in the VM's state directory, or next to it."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(path, what, writable=False)
        try:
            self._kept = BlockFile(_make_file(path, what))
        except BaseException:
            super().close()
            raise
        # A cluster is copied, and becomes the file's, with this held. Only this disk's own threads wait for it.
        self._mutex = _thread.allocate_lock()
        self._is_kept = bytearray(_clusters(self.size_bytes))
        os.truncate(self._kept.fd, self.size_bytes)

    def fds(self) -> dict[str, int]:
        return {"image": self.fd, "overlay": self._kept.fd}

    def close(self) -> None:
        self._kept.close()
        super().close()

    def can_discard(self) -> bool:
        return True

    def look_again(self) -> int:
        size = super().look_again()
        with self._mutex:
            more = _clusters(size) - len(self._is_kept)
            if more > 0:
                os.truncate(self._kept.fd, size)
                self._is_kept += bytes(more)
        return size

    # The bytes

    def peek(self, views: Views, offset: int, length: int) -> bool:
        for is_kept, part, start, size in self._parts(views, offset, length):
            if not (self._kept.peek(part, start, size) if is_kept else super().peek(part, start, size)):
                return False
        return True

    def read(self, views: Views, offset: int, length: int) -> None:
        for is_kept, part, start, size in self._parts(views, offset, length):
            if is_kept:
                self._kept.read(part, start, size)
            else:
                super().read(part, start, size)

    def write(self, views: Views, offset: int, length: int, durable: bool = False) -> None:
        if self._has_all(offset, length):
            self._kept.write(views, offset, length)
            return
        with self._mutex:
            self._copy_edges(offset, length)
            self._kept.write(views, offset, length)
            self._keep(offset, length)

    def flush(self) -> None:
        """Nothing is to outlive the process."""

    def discard(self, offset: int, length: int) -> None:
        """What the image has of it stays to be seen, which a guest has to expect."""
        self._kept.discard(offset, length)

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        with self._mutex:
            self._copy_edges(offset, length)
            self._kept.write_zeroes(offset, length, True)
            self._keep(offset, length)

    def _parts(self, views: Views, offset: int, length: int) -> Iterator[tuple[int, Views, int, int]]:
        """Runs of clusters that are in the same place: whether that is the file, the buffers, from where, how many bytes."""
        cursor, position, end = direct_io.Cursor(views), offset, offset + length
        while position < end:
            is_kept, start = self._is_kept[position // CLUSTER_BYTES], position
            while position < end and self._is_kept[position // CLUSTER_BYTES] == is_kept:
                position = min(end, position - position % CLUSTER_BYTES + CLUSTER_BYTES)
            yield is_kept, list(cursor.next(position - start)), start, position - start

    def _has_all(self, offset: int, length: int) -> bool:
        first, end = offset // CLUSTER_BYTES, _clusters(offset + length)
        return 0 not in self._is_kept[first:end]

    def _copy_edges(self, offset: int, length: int) -> None:
        """The first and the last cluster have more than is going to be written."""
        end = offset + length
        for cluster in {offset // CLUSTER_BYTES, (end - 1) // CLUSTER_BYTES}:
            start = cluster * CLUSTER_BYTES
            size = min(CLUSTER_BYTES, self.size_bytes - start)
            if not self._is_kept[cluster] and not (offset <= start and start + size <= end):
                copy = [direct_io.pages(size)]
                super().read(copy, start, size)
                self._kept.write(copy, start, size)
                self._is_kept[cluster] = 1

    def _keep(self, offset: int, length: int) -> None:
        first, end = offset // CLUSTER_BYTES, _clusters(offset + length)
        self._is_kept[first:end] = bytes((1,)) * (end - first)


def _clusters(size_bytes: int) -> int:
    return -(-size_bytes // CLUSTER_BYTES)


def _make_file(path: str, what: str) -> int:
    """A file without a name; not every file system knows such."""
    directories = [os.environ.get("STATE_DIRECTORY", "").partition(":")[0], os.path.dirname(path), "/var/tmp"]
    error = OSError()
    for directory in directories:
        if directory:
            try:
                return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC | os.O_EXCL, 0o600)
            except OSError as refused:
                error = refused
    raise HostError.from_os(f"{what}: no file can be made for what the guest writes to {path}", error) from error
