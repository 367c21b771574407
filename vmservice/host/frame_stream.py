"""Ethernet frames on a stream socket, each behind its length in 4 bytes: what passt speaks, and QEMU's `-netdev stream`.

`readv` and `writev` move one frame as a tap's would, with virtio's header in front, of which the stream knows nothing.
"""

from __future__ import annotations

import _socket
import errno
import os
import select

from vmservice.host.vhost_user import connect as _connect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

HEADER_BYTES = 12  # struct virtio_net_hdr_mrg_rxbuf
_NO_HEADER = bytes(HEADER_BYTES)
_LENGTH_BYTES = 4
# Ethernet's own header; and the longest that passt sends or takes: with it, a packet of 65,535 bytes.
FRAME_MIN_BYTES = 14
FRAME_MAX_BYTES = 14 + 65535
# Several frames come with one call.
_BUFFER_BYTES = 256 << 10
# A reader that is behind is waited for so long, for a moment is all that passt ever is.
_WAIT_MS = 50


class FrameStream:
    """Owns one descriptor, `fd`, for as long as it lives: `connect` puts another connection in its place, and a poll goes on
    with it. Until the first, and after the end of one, every frame is an OSError.

    `readv` and `writev` are one thread's, and so is `connect` while that thread does not run.
    """

    def __init__(self) -> None:
        self.fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self._socket: _socket.socket | None = None
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._unsent = b""

    @property
    def is_connected(self) -> bool:
        return self._socket is not None

    def connect(self, path: str, timeout_sec: float) -> None:
        """OSError when there is nobody."""
        connection = _connect(path, timeout_sec)
        try:
            connection.setblocking(False)
            os.dup2(connection.fileno(), self.fd, inheritable=False)
        finally:
            connection.close()
        self._forget()
        self._socket = _socket.socket(fileno=self.fd)
        self._start = self._end = 0
        self._unsent = b""

    def cut(self) -> None:
        """The connection is of no use any more. Its descriptor stays, and reads as the end."""
        if self._socket is not None:
            self._shut_down(self._socket)
        self._forget()

    @staticmethod
    def _shut_down(connection: _socket.socket) -> None:
        try:
            connection.shutdown(_socket.SHUT_RDWR)
        except OSError:  # it has ended by itself
            return

    def close(self) -> None:
        self._forget()
        os.close(self.fd)

    def _forget(self) -> None:
        if self._socket is not None:
            self._socket.detach()  # the number is this object's
            self._socket = None

    def wait(self, timeout_sec: float) -> bool:
        """Whether something has come: a frame, or the end."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return bool(poll.poll(timeout_sec * 1000))

    def is_at_end(self) -> bool:
        """Whether the other end has closed it; what it had sent before may still be there to read."""
        if self._socket is None:
            return True
        poll = select.poll()
        poll.register(self.fd, select.POLLRDHUP)  # and POLLHUP and POLLERR, which always count
        return bool(poll.poll(0))

    # A frame, as os.readv and os.writev of a tap's queue

    def readv(self, _fd: int, views: Sequence[memoryview]) -> int:
        """The next frame into `views`; its length with the header. BlockingIOError where none has come whole, OSError at the
        end."""
        if self._unsent:
            self._flush()
        length = self._next_length()
        while self._end - self._start < _LENGTH_BYTES + length or not length:
            self._fill()
            length = self._next_length()
        start = self._start + _LENGTH_BYTES
        self._start = start + length
        _scatter(self._view[start : start + length], views)
        return HEADER_BYTES + length

    def _next_length(self) -> int:
        """0 where it is not known yet."""
        if self._end - self._start < _LENGTH_BYTES:
            return 0
        length = int.from_bytes(self._view[self._start : self._start + _LENGTH_BYTES], "big")
        if not FRAME_MIN_BYTES <= length <= FRAME_MAX_BYTES:
            raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
        return length

    def _fill(self) -> None:
        if self._start == self._end:
            self._start = self._end = 0
        elif len(self._buffer) - self._start < _LENGTH_BYTES + FRAME_MAX_BYTES:
            rest = bytes(self._view[self._start : self._end])
            self._view[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        received = self._connected().recv_into(self._view[self._end :])
        if not received:
            raise OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        self._end += received

    def writev(self, _fd: int, views: Sequence[memoryview]) -> int:
        """Send the frame that is in `views` behind the header. OSError where it is not taken, and so lost."""
        if self._unsent:
            self._flush()
            if self._unsent:
                raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        parts = _behind_header(views)
        size = sum(map(len, parts))
        if not FRAME_MIN_BYTES <= size <= FRAME_MAX_BYTES:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        message: list[bytes | memoryview] = [size.to_bytes(_LENGTH_BYTES, "big"), *parts]
        try:
            sent = self._send(message)
            if sent < _LENGTH_BYTES + size:
                # What has begun has to be sent whole: all that follows hangs on it.
                self._unsent = b"".join(message)[sent:]
                self._flush()
        except ConnectionError as error:
            raise OSError(errno.EBADFD, os.strerror(errno.EBADFD)) from error  # as a tap's queue that is gone
        return HEADER_BYTES + size

    def _send(self, parts: Sequence[bytes | memoryview]) -> int:
        """How many bytes are taken at once."""
        try:
            return self._connected().sendmsg(parts, (), _socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0

    def _flush(self) -> None:
        """Send what is left of a frame, as far as it is taken within a moment."""
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        while self._unsent and poll.poll(_WAIT_MS):
            self._unsent = self._unsent[self._send([self._unsent]) :]

    def _connected(self) -> _socket.socket:
        if self._socket is None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return self._socket


def _behind_header(views: Sequence[memoryview]) -> list[memoryview]:
    """All but the first HEADER_BYTES."""
    if len(views[0]) == HEADER_BYTES:  # as Linux lays it out, or all in one
        return list(views[1:])
    parts, skip = [], HEADER_BYTES
    for view in views:
        if skip < len(view):
            parts.append(view[skip:])
        skip = max(0, skip - len(view))
    return parts


def _scatter(frame: memoryview, views: Sequence[memoryview]) -> None:
    """A header that says nothing, and the frame, which `views` have room for."""
    first = views[0]
    if len(first) >= HEADER_BYTES + len(frame):
        first[:HEADER_BYTES] = _NO_HEADER
        first[HEADER_BYTES : HEADER_BYTES + len(frame)] = frame
        return
    data = memoryview(_NO_HEADER + bytes(frame))
    for view in views:
        part = data[: len(view)]
        view[: len(part)] = part
        data = data[len(part) :]
        if not data:
            return
