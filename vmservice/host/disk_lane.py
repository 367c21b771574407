"""What one virtqueue of a disk asks of its image: done at once where that does not wait for the host, else by others."""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from vmservice.host.block_file import Views
    from vmservice.host.storage import Image
    from vmservice.host.worker_pool import Pool

# What is copied between page cache and guest at once. More of it is a pool thread's, so that small requests pass.
INLINE_BYTES = 128 << 10


class Lane:
    """Its methods are for one thread, the virtqueue's.

    Each request has a `token`, and returns 0, an errno, or None: then it is in flight. It is done when `take_done` says so,
    before which 1 was written to the eventfd `wake`. What is in flight must be waited for before guest memory goes.
    """

    def __init__(self, image: Image, pool: Pool, wake: int) -> None:
        self.in_flight = 0
        self._image = image
        self._pool = pool
        self._wake = wake
        self._done: list[tuple[Any, int]] = []  # pool threads append

    def read(self, token: Any, views: Views, offset: int, length: int) -> int | None:
        image = self._image
        try:
            if length <= INLINE_BYTES and image.peek(views, offset, length):
                return 0
        except OSError as error:
            return _number(error)
        self._later(token, lambda: image.read(views, offset, length))
        return None

    def write(self, token: Any, views: Views, offset: int, length: int, durable: bool) -> int | None:
        image = self._image
        if durable or length > INLINE_BYTES:
            self._later(token, lambda: image.write(views, offset, length, durable))
            return None
        try:
            image.write(views, offset, length)
        except OSError as error:
            return _number(error)
        return 0

    def flush(self, token: Any) -> int | None:
        """Of all that was done before; it waits for nothing that is in flight."""
        self._later(token, self._image.flush)
        return None

    def discard(self, token: Any, offset: int, length: int) -> int | None:
        self._later(token, lambda: self._image.discard(offset, length))
        return None

    def write_zeroes(self, token: Any, offset: int, length: int, unmap: bool, durable: bool) -> int | None:
        image = self._image

        def work() -> None:
            image.write_zeroes(offset, length, unmap)
            if durable:
                image.flush()

        self._later(token, work)
        return None

    def push(self) -> None:
        """Begin what was only noted until now."""

    def close(self) -> None:
        """Nothing is in flight any more."""

    def take_done(self) -> Iterator[tuple[Any, int]]:
        """(token, errno or 0) of each request that is not in flight any more."""
        done = self._done
        while done:
            self.in_flight -= 1
            yield done.pop()

    def _later(self, token: Any, work: Callable[[], None]) -> None:
        def job() -> None:
            number = errno.EIO  # for what is no OSError, and our bug
            try:
                work()
                number = 0
            except OSError as error:
                number = _number(error)
            finally:
                self._done.append((token, number))
                os.eventfd_write(self._wake, 1)

        self.in_flight += 1
        self._pool.put(job)


def _number(error: OSError) -> int:
    return error.errno or errno.EIO
