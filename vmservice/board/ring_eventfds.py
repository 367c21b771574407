"""The eventfds between a driver and whoever serves its virtqueues outside of this program: the kernel, or another process."""

from __future__ import annotations

import os

from vmservice.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmservice.devices.virtio.rings import Ring


class RingEventfds:
    """Those of `queues` virtqueues of the device called `name`: `kicks`, by which the driver notifies; and for interrupts,
    where a virtqueue has no eventfd of its own, `calls`, which somebody has to read and make an interrupt of. `wake` is for
    the thread that does. HostError, with none left open, where there are not so many.
    """

    def __init__(self, name: str, queues: int) -> None:
        self.kicks: list[int] = []
        self.calls: list[int] = []
        self.wake = -1
        try:
            for fds in (self.kicks, self.calls):
                for _ in range(queues):
                    fds.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError as error:
            self.close()
            raise HostError.from_os(f"no eventfd for a virtqueue of {name}", error) from error

    def call_of(self, ring: Ring) -> int:
        """What whoever serves `ring` writes to for an interrupt."""
        return ring.eventfd if ring.eventfd is not None else self.calls[ring.index]

    def relayed(self, rings: Iterable[Ring]) -> dict[int, Ring]:
        """By the eventfd that is to be read for them, those whose interrupts go that way."""
        return {self.calls[ring.index]: ring for ring in rings if ring.eventfd is None}

    def close(self) -> None:
        for fds in (self.kicks, self.calls):
            while fds:
                os.close(fds.pop())
        if self.wake >= 0:
            os.close(self.wake)
            self.wake = -1


def ring_bell(eventfd: int) -> None:
    try:
        os.eventfd_write(eventfd, 1)
    except BlockingIOError:  # it is as full as can be
        return


def take_bell(eventfd: int) -> bool:
    """Whether somebody has written to it since the last call."""
    try:
        return bool(os.eventfd_read(eventfd))
    except BlockingIOError:
        return False
