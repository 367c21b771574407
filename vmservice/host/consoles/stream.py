"""A guest's console at a terminal, or at whatever standard output is."""

from __future__ import annotations

import _thread
import os
import stat

from vmservice.errors import HostError
from vmservice.host.consoles.base import WAITING_LIMIT_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class StreamConsole:
    """A terminal, or whatever standard output is: bytes pass through as they are. Owns `output_fd`, not `input_fd`.

    While the other side does not read, the last WAITING_LIMIT_BYTES wait for it; what was before is lost.
    """

    is_attached = True

    def __init__(self, label: str, output_fd: int, input_fd: int) -> None:
        self.label = label
        self.on_attached: Callable[[], None] | None = None
        self.on_room: Callable[[], None] | None = None
        self.on_resized: Callable[[], None] | None = None
        self._told_size = (0, 0)
        self.input_fd = input_fd
        self._fd = output_fd
        self._lock = _thread.allocate_lock()
        self._waiting = bytearray()

    def read(self, size_bytes: int) -> bytes:
        return os.read(self.input_fd, size_bytes)

    def has_room(self) -> bool:
        return True

    def write(self, data: bytes) -> None:
        with self._lock:
            self._waiting += data
            self._pass_on()
            if len(self._waiting) > WAITING_LIMIT_BYTES:
                del self._waiting[:-WAITING_LIMIT_BYTES]

    def flush(self) -> None:
        with self._lock:
            had_room = self.has_room()
            self._pass_on()
        if self.on_room is not None and self.has_room() and not had_room:
            self.on_room()
        size = self.size()
        if size != self._told_size and self.on_resized is not None:
            self._told_size = size
            self.on_resized()

    def fds(self) -> dict[str, int]:
        return {"output": self._fd}

    def size(self) -> tuple[int, int]:
        try:
            return os.get_terminal_size(self._fd)
        except OSError:  # no terminal, or closed
            return 0, 0

    def close(self) -> None:
        with self._lock:
            self._pass_on()
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _pass_on(self) -> None:
        while self._waiting and self._fd >= 0:
            try:
                written = os.write(self._fd, self._waiting)
            except BlockingIOError:
                return
            except OSError:  # the reader is gone: EPIPE, EIO
                self._waiting.clear()
                return
            del self._waiting[:written]


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
