"""Watches the file behind guest memory: whoever cuts it short takes pages away from the guest, and from us.

An access of ours to such a page would end the process by SIGBUS, without a word: to be told first is better (inotify(7)).
"""

from __future__ import annotations

import _thread
import ctypes
import os
import select

from vmservice.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# <sys/inotify.h>; writing through a mapping is no IN_MODIFY, truncating is.
_IN_MODIFY = 0x2
_IN_ATTRIB = 0x4
_EVENTS_BYTES = 4096

_libc = ctypes.CDLL(None, use_errno=True)


class FileWatch:
    """Calls `on_change` in a thread of its own each time that the file at `fd` was changed by a system call, until `close`.

    The thread sleeps otherwise. `on_change` neither waits nor raises.
    """

    def __init__(self, fd: int, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._inotify = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._inotify < 0:
            raise HostError.from_os("cannot watch the file of the guest's memory", OSError(ctypes.get_errno(), ""))
        self._stop = -1
        try:
            if _libc.inotify_add_watch(self._inotify, f"/proc/self/fd/{fd}".encode(), _IN_MODIFY | _IN_ATTRIB) < 0:
                raise HostError.from_os("cannot watch the file of the guest's memory", OSError(ctypes.get_errno(), ""))
            self._stop = os.eventfd(0, os.EFD_CLOEXEC)
            self._ended = _thread.allocate_lock()
            self._ended.acquire()
            _thread.start_new_thread(self._main, ())
        except BaseException:
            self._close_descriptors()
            raise

    def close(self) -> None:
        if self._inotify < 0:
            return
        os.eventfd_write(self._stop, 1)
        self._ended.acquire()
        self._close_descriptors()

    def _main(self) -> None:
        try:
            poll = select.poll()
            poll.register(self._inotify, select.POLLIN)
            poll.register(self._stop, select.POLLIN)
            while all(fd != self._stop for fd, _event in poll.poll()):
                os.read(self._inotify, _EVENTS_BYTES)
                self._on_change()
        finally:
            self._ended.release()

    def _close_descriptors(self) -> None:
        for fd in (self._inotify, self._stop):
            if fd >= 0:
                os.close(fd)
        self._inotify = self._stop = -1
