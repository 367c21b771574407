"""`vmservice console` where standard input is no terminal: it goes to the guest as it is, and what the guest prints to standard
output.

The end comes when the input has ended, the VM has taken all of it, and the guest has then printed nothing for QUIET_SEC, or for
LATEST_SEC without such a pause; or when the VM closes the console, or nobody reads the output any more.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import termios
import time

from vmservice.errors import GuestNotResponding, HostError, seconds
from vmservice.host.consoles.socket import BUSY

QUIET_SEC = 1.0
LATEST_SEC = 10.0
# How long a VM that takes nothing of what has been sent is waited for when the input has ended.
PATIENCE_SEC = 30.0

# PIPE_BUF: so much a pipe that is ready for writing takes without waiting.
_CHUNK_BYTES = 4096
# How often it is asked whether the VM has taken what its socket has; nobody tells.
_LOOK_SEC = 0.02
_GONE = select.POLLHUP | select.POLLERR


class Pipe:
    """Between `console`, a socket or a pseudoterminal, and the two descriptors. `place` is what messages call the console."""

    def __init__(self, console: int, place: str, input_fd: int, output_fd: int) -> None:
        self._console = console
        self._place = place
        self._input_fd = input_fd
        self._output_fd = output_fd
        self._is_socket = stat.S_ISSOCK(os.fstat(console).st_mode)
        self._has_ended = False  # the input; then there is nothing in `_typed`
        self._has_hung_up = False  # the VM; what it has printed may still be there
        self._is_gone = False  # and all of that has been read
        self._has_left_some = False  # of what was sent
        self._is_first = True
        self._typed = b""  # read, and not yet sent
        self._printed = b""  # and not yet written
        self._untaken_bytes = 0  # sent, as far as is known
        self._moved_at = time.monotonic()  # the last time that anything went on
        self._all_taken_at: float | None = None

    def run(self) -> None:
        """Until the end. HostError where somebody else is at the console, or the VM has gone before it had taken all;
        GuestNotResponding where it takes nothing; BrokenPipeError."""
        while not self._is_done():
            events = self._wait()
            if events.get(self._output_fd, 0):
                self._write_on()
            self._has_hung_up |= bool(events.get(self._console, 0) & _GONE)
            if events.get(self._console, 0) and not self._printed:
                self._read_console()
            if events.get(self._input_fd, 0):
                self._read_input()
            if self._typed and not self._has_hung_up:
                self._send_on()

    def _wait(self) -> dict[int, int]:
        """Of the console, what it has is not looked for while something waits to be written: so the guest's output has a limit
        here, and one that has hung up does not wake us again and again."""
        if self._has_hung_up and not self._printed:
            return {self._console: select.POLLIN}
        poll = select.poll()
        wanted = (0 if self._printed else select.POLLIN) | (select.POLLOUT if self._typed else 0)
        if wanted and not self._has_hung_up:
            poll.register(self._console, wanted)
        if not (self._has_ended or self._typed or self._has_hung_up):
            poll.register(self._input_fd, select.POLLIN)
        poll.register(self._output_fd, select.POLLOUT if self._printed else 0)  # that nobody reads any more comes unasked
        if not self._has_ended or self._printed:
            return dict(poll.poll())
        return dict(poll.poll(1000 * (_LOOK_SEC if self._untaken_bytes else QUIET_SEC)))

    def _is_done(self) -> bool:
        if self._printed:
            return False
        if self._is_gone:
            self._judge_end()
            return True
        if not self._has_ended:
            return False
        now = self._look_at_taken()
        quiet_sec = now - self._moved_at
        if not self._untaken_bytes:
            self._all_taken_at = self._all_taken_at or now
            return quiet_sec >= QUIET_SEC or now - self._all_taken_at >= LATEST_SEC
        if quiet_sec >= PATIENCE_SEC:
            raise GuestNotResponding(f"{self._place} has taken nothing of what was sent for {seconds(PATIENCE_SEC)}")
        return False

    def _judge_end(self) -> None:
        if self._is_socket and self._is_first:
            raise HostError(f"{self._place} was closed before it said anything: somebody else is at it, or the VM has ended")
        if self._typed or self._has_left_some:
            raise HostError(f"the VM has closed {self._place} before it had taken all of the input")

    def _look_at_taken(self) -> float:
        """How much is still in the socket; a pseudoterminal keeps what was written for whoever reads it. The time now."""
        now = time.monotonic()
        before = self._untaken_bytes
        if self._is_socket:
            self._untaken_bytes = int.from_bytes(fcntl.ioctl(self._console, termios.TIOCOUTQ, bytes(4)), "little")
        if self._untaken_bytes != before:
            self._moved_at = now
        return now

    def _read_console(self) -> None:
        try:
            self._printed = os.read(self._console, _CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError as error:  # EIO of a pseudoterminal; ECONNRESET where the socket's other end had something to read
            self._has_left_some = error.errno == errno.ECONNRESET
        if not self._printed:
            self._is_gone = self._has_hung_up = True
            return
        if self._is_socket and self._is_first and self._printed == BUSY:
            raise HostError(f"somebody else is at {self._place}", errno.EBUSY)
        self._is_first = False
        self._moved_at = time.monotonic()

    def _read_input(self) -> None:
        try:
            self._typed = os.read(self._input_fd, _CHUNK_BYTES)
        except OSError as error:
            raise HostError.from_os("cannot read standard input", error) from None
        self._has_ended = not self._typed
        self._moved_at = time.monotonic()

    def _send_on(self) -> None:
        try:
            sent = os.write(self._console, self._typed)
        except OSError:  # full, or gone, which the next look tells
            return
        self._typed = self._typed[sent:]
        self._moved_at = time.monotonic()

    def _write_on(self) -> None:
        if not self._printed:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        try:
            written = os.write(self._output_fd, self._printed)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise HostError.from_os("cannot write to standard output", error) from None
        self._printed = self._printed[written:]
        self._moved_at = time.monotonic()
