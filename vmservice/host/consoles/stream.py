"""A guest's console at a terminal, or at whatever standard output is."""

from __future__ import annotations

import _thread
import os
import select
import stat

from vmservice.errors import HostError
from vmservice.host.consoles.base import PENDING_LIMIT_BYTES, WAITING_LIMIT_BYTES, tell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.host.consoles.mover import Waits, Wakes


class StreamConsole:
    """A terminal, or whatever standard output is: bytes pass through as they are. Owns `output_fd`, not `input_fd`.

    While the other side does not read, the last WAITING_LIMIT_BYTES wait for it; what was before is lost.
    """

    keeps_input = False
    visit = 0

    def __init__(self, label: str, mover: Wakes, output_fd: int, input_fd: int) -> None:
        self.label = label
        self.on_attached: Callable[[], None] | None = None
        self.on_room: Callable[[], None] | None = None
        self.on_resized: Callable[[], None] | None = None
        self.on_visit: Callable[[], None] | None = None
        self.input_fd = input_fd
        self._mover = mover
        self._fd = output_fd
        # A descriptor that makes us wait (a file, another user's terminal) is written to by the mover only.
        self._may_block = output_fd >= 0 and os.get_blocking(output_fd)
        self._lock = _thread.allocate_lock()
        self._waiting = bytearray()
        self._told_size = self.size()

    @property
    def is_attached(self) -> bool:
        return True

    def read(self, size_bytes: int) -> bytes:
        return os.read(self.input_fd, size_bytes)

    def took(self, size_bytes: int, visit: int) -> None:
        """What was read from a terminal or pipe is nowhere else any more."""

    def has_room(self) -> bool:
        return True

    def write(self, data: bytes) -> None:
        with self._lock:
            waiting = self._waiting
            waiting += data
            if not self._may_block:
                self._pass_on()
            self._forget_oldest()
        if waiting:
            self._mover.wake(self)

    def move(self) -> Waits:
        if self._may_block:
            with self._lock:
                data, self._waiting = self._waiting, bytearray()
            self._write_out(data)
            return [], None
        with self._lock:
            had_room = self.has_room()
            self._pass_on()
            fd = self._fd if self._waiting else -1
            has_room = self.has_room()
        if has_room and not had_room:
            tell(self.on_room)
        return [(fd, select.POLLOUT)] if fd >= 0 else [], None

    def follow_size(self) -> None:
        """Our own terminal: the kernel sends SIGWINCH, and the service calls `look_at_size`."""

    def look_at_size(self) -> None:
        size = self.size()
        if size != self._told_size:
            self._told_size = size
            tell(self.on_resized)

    def reopen(self, done: Callable[[], None]) -> None:
        """It is no file of ours."""
        done()

    def fds(self) -> dict[str, int]:
        return {"output": self._fd}

    def size(self) -> tuple[int, int]:
        try:
            return os.get_terminal_size(self._fd)
        except OSError:  # no terminal, or closed
            return 0, 0

    def details(self) -> dict[str, str | int | bool]:
        return {"mode": "tty"}

    def close(self) -> None:
        is_certain = self._mover.remove(self)
        with self._lock:
            if is_certain:
                self._pass_on()
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _pass_on(self) -> None:
        """With the lock held."""
        while self._waiting and self._fd >= 0:
            try:
                written = os.write(self._fd, self._waiting)
            except BlockingIOError:
                return
            except OSError:  # the reader is gone: EPIPE, EIO
                self._reader_gone()
                return
            del self._waiting[:written]

    def _forget_oldest(self) -> None:
        limit_bytes = PENDING_LIMIT_BYTES if self._may_block else WAITING_LIMIT_BYTES
        if len(self._waiting) > limit_bytes:
            del self._waiting[:-limit_bytes]

    def _reader_gone(self) -> None:
        self._waiting.clear()

    def _write_out(self, data: bytearray) -> None:
        try:
            while data and self._fd >= 0:
                del data[: os.write(self._fd, data)]
        except OSError:
            return


def own_description(fd: int) -> int:
    """A descriptor for the same file as `fd`, non-blocking if it can be so without changing it for the others who share `fd`.

    O_NONBLOCK belongs to the open file description, which a shell shares with us: so a terminal or pipe is opened anew. A
    regular file is not (a new description would write from its beginning), and it does not make anybody wait.
    """
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISCHR(mode) or stat.S_ISFIFO(mode):
            try:
                return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
            except OSError:  # another user's terminal, after su(1)
                return os.dup(fd)
        return os.dup(fd)
    except OSError as error:
        raise HostError.from_os("cannot use standard output as the console", error) from None
