"""Watches a file behind guest memory: whoever cuts it short takes pages away from the guest, and from us.

An access of ours to such a page would end the process by SIGBUS, without a word: to be told first is better (inotify(7)).
"""

from __future__ import annotations

import _thread
import ctypes
import os

from vmservice.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# <sys/inotify.h>; writing through a mapping is no IN_MODIFY, truncating is.
_IN_MODIFY = 0x2
_IN_ATTRIB = 0x4
_IN_IGNORED = 0x8000  # the watch has been removed: its last event
_EVENTS_BYTES = 4096

_libc = ctypes.CDLL(None, use_errno=True)


class FileWatch:
    """Calls `on_change` in a thread of its own each time that the file at `fd` was changed by a system call, until `close`.

    The thread sleeps otherwise. `on_change` neither waits nor raises.
    """

    def __init__(self, fd: int, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._inotify = _libc.inotify_init1(os.O_CLOEXEC)
        if self._inotify < 0:
            raise HostError.from_os("cannot watch the file of the guest's memory", OSError(ctypes.get_errno(), ""))
        try:
            self._watch = _libc.inotify_add_watch(self._inotify, f"/proc/self/fd/{fd}".encode(), _IN_MODIFY | _IN_ATTRIB)
            if self._watch < 0:
                raise HostError.from_os("cannot watch the file of the guest's memory", OSError(ctypes.get_errno(), ""))
            self._ended = _thread.allocate_lock()
            self._ended.acquire()
            _thread.start_new_thread(self._main, ())
        except BaseException:
            os.close(self._inotify)
            raise

    def close(self) -> None:
        if self._inotify < 0:
            return
        _libc.inotify_rm_watch(self._inotify, self._watch)  # its IN_IGNORED ends the read
        self._ended.acquire()
        os.close(self._inotify)
        self._inotify = -1

    def _main(self) -> None:
        # A read, no poll: poll(2) is refused where RLIMIT_NOFILE is lowered below what it has to wait for.
        try:
            while not _last_mask(os.read(self._inotify, _EVENTS_BYTES)) & _IN_IGNORED:
                self._on_change()
        finally:
            self._ended.release()


def _last_mask(events: bytes) -> int:
    """Of the last `struct inotify_event` (wd, mask, cookie, len); those of a file have no name behind them."""
    return int.from_bytes(events[-12:-8], "little")
