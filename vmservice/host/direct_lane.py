"""A virtqueue's way to an image past the page cache: by Linux AIO, and by pool threads what that does not take."""

from __future__ import annotations

import os

from vmservice.host import direct_io
from vmservice.host.aio import Aio
from vmservice.host.disk_lane import Lane

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from vmservice.host.block_file import Views
    from vmservice.host.storage import Image
    from vmservice.host.worker_pool import Pool

    Pending = tuple[Any, Views, int, int, bool, bool]
    """(token, buffers, offset, bytes, is a write, is durable)"""

# More than one request of it pins that much of the guest's memory; longer ones are done in pieces.
_MAX_BYTES = 16 << 20
_MAX_VIEWS = 1024


class DirectLane(Lane):
    """At most `depth` requests are in flight. Where the host gives no AIO, `warn` is told so once, and threads do it all."""

    def __init__(self, image: Image, pool: Pool, wake: int, depth: int, warn: Callable[[str], None]) -> None:
        super().__init__(image, pool, wake)
        self._depth = depth
        self._warn = warn
        self._aio: Aio | None = None
        self._has_aio = True
        self._free = list(range(depth))
        self._pending: dict[int, Pending] = {}  # by slot

    def close(self) -> None:
        if self._aio is not None:
            self._aio.close()
            self._aio = None

    def read(self, token: Any, views: Views, offset: int, length: int) -> int | None:
        self._begin((token, views, offset, length, False, False))
        return None

    def write(self, token: Any, views: Views, offset: int, length: int, durable: bool) -> int | None:
        self._begin((token, views, offset, length, True, durable))
        return None

    def push(self) -> None:
        aio = self._aio
        if aio is not None:
            for slot in aio.submit():
                self._free.append(slot)
                self._hand_to_pool(self._pending.pop(slot))

    def take_done(self) -> Iterator[tuple[Any, int]]:
        yield from super().take_done()
        if self._pending and self._aio is not None:
            for slot, result in self._aio.take_done():
                pending = self._pending.pop(slot)
                self._free.append(slot)
                if 0 <= result < pending[3]:  # the end of the image, or of the room on the host
                    self._hand_to_pool(pending)
                    continue
                self.in_flight -= 1
                yield pending[0], max(-result, 0)

    def _begin(self, pending: Pending) -> None:
        image, (_, views, offset, length, is_write, durable) = self._image, pending
        self.in_flight += 1
        aio = self._aio or self._open()
        buffers = direct_io.aligned(views, image.memory_align, image.block_bytes)
        if aio is None or buffers is None or length > _MAX_BYTES or len(views) > _MAX_VIEWS or not self._free:
            self._hand_to_pool(pending)
            return
        if is_write:
            image.is_dirty = True
        slot, flags = self._free.pop(), os.RWF_DSYNC if durable else 0
        self._pending[slot] = pending
        if not aio.add(slot, image.fd, buffers, offset, write=is_write, flags=flags):
            self.push()
            aio.add(slot, image.fd, buffers, offset, write=is_write, flags=flags)

    def _hand_to_pool(self, pending: Pending) -> None:
        token, views, offset, length, is_write, durable = pending
        self.in_flight -= 1
        if is_write:
            self._later(token, lambda: self._image.write(views, offset, length, durable))
        else:
            self._later(token, lambda: self._image.read(views, offset, length))

    def _open(self) -> Aio | None:
        if self._has_aio:
            try:
                self._aio = Aio(self._depth, self._wake)
            except OSError as error:
                self._has_aio = False
                self._warn(f"{self._image.what} has no asynchronous I/O, and is slower by that: {error.strerror}")
        return self._aio
