"""Frames on a stream socket: whole ones, in pieces, many at once, and what is none."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmservice.host.frame_stream import FRAME_MAX_BYTES, HEADER_BYTES, FrameStream

TIMEOUT_SEC = 60.0
HEADER = bytes(range(HEADER_BYTES))
FRAME = bytes(range(64))


class Wire:
    """A stream and its other end."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "socket")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self.stream = FrameStream()
        self.other = self.connect()

    def connect(self) -> socket.socket:
        self.stream.connect(self.path, 0.0)
        other = self._listener.accept()[0]
        other.settimeout(TIMEOUT_SEC)
        return other

    def read(self, *sizes: int) -> bytes:
        """One frame into buffers of those sizes; what is in them, the header too."""
        buffers = [bytearray(size) for size in sizes or (FRAME_MAX_BYTES + HEADER_BYTES,)]
        length = self.stream.readv(0, [memoryview(buffer) for buffer in buffers])
        return b"".join(buffers)[:length]

    def write(self, *parts: bytes) -> None:
        self.stream.writev(0, [memoryview(part) for part in parts])

    def sent(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += self.other.recv(size - len(data))
        return data

    def close(self) -> None:
        self.stream.close()
        self.other.close()
        self._listener.close()


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    wire = Wire(tmp_path)
    yield wire
    wire.close()


def on_stream(frame: bytes) -> bytes:
    return len(frame).to_bytes(4, "big") + frame


@pytest.mark.parametrize(
    "parts",
    [(HEADER + FRAME,), (HEADER, FRAME), (HEADER[:5], HEADER[5:] + FRAME[:1], FRAME[1:]), (HEADER, FRAME[:30], FRAME[30:])],
    ids=["one buffer", "two", "odd ones", "three"],
)
def test_a_frame_of_the_driver_goes_without_its_header(wire: Wire, parts: tuple[bytes, ...]) -> None:
    wire.write(*parts)
    assert wire.sent(4 + len(FRAME)) == on_stream(FRAME)


@pytest.mark.parametrize("sizes", [(), (100,), (12, 100), (5, 8, 63), (1,) * 80])
def test_a_frame_for_the_driver_has_an_empty_header(wire: Wire, sizes: tuple[int, ...]) -> None:
    wire.other.send(on_stream(FRAME))
    assert wire.read(*sizes) == bytes(HEADER_BYTES) + FRAME


def test_frames_come_in_pieces_and_together(wire: Wire) -> None:
    frames = [bytes([number]) * (14 + 97 * number) for number in range(200)]
    data = b"".join(map(on_stream, frames))
    sender = threading.Thread(target=lambda: [wire.other.send(data[at : at + 1013]) for at in range(0, len(data), 1013)])
    sender.start()
    for frame in frames:
        assert next_frame(wire) == bytes(HEADER_BYTES) + frame
    sender.join(TIMEOUT_SEC)
    with pytest.raises(BlockingIOError):
        wire.read()


def test_the_longest_frames_go_both_ways(wire: Wire) -> None:
    frame = os.urandom(FRAME_MAX_BYTES)
    taken: list[bytes] = []
    reader = threading.Thread(target=lambda: taken.extend(wire.sent(4 + len(frame)) for _ in range(20)))
    reader.start()
    for _ in range(20):
        wire.write(HEADER, frame)
    reader.join(TIMEOUT_SEC)
    assert taken == [on_stream(frame)] * 20
    sender = threading.Thread(target=wire.other.sendall, args=(20 * on_stream(frame),))
    sender.start()
    assert [next_frame(wire) for _ in range(20)] == [bytes(HEADER_BYTES) + frame] * 20
    sender.join(TIMEOUT_SEC)


def next_frame(wire: Wire) -> bytes:
    while True:
        try:
            return wire.read()
        except BlockingIOError:
            assert wire.stream.wait(TIMEOUT_SEC)


def test_a_frame_that_has_begun_is_sent_whole_and_others_are_lost_meanwhile(wire: Wire) -> None:
    """Nobody reads."""
    frame, count = bytes(FRAME_MAX_BYTES), 0
    with pytest.raises(OSError, match=os.strerror(errno.ENOBUFS)):
        while True:
            wire.write(HEADER, frame)
            count += 1
            assert count < 1000
    assert wire.sent(200_000)[:4] == len(frame).to_bytes(4, "big")
    done = threading.Thread(target=lambda: wire.sent(count * (4 + len(frame)) - 200_000))
    done.start()
    while done.is_alive():
        with pytest.raises(BlockingIOError):
            wire.read()
    wire.write(HEADER, FRAME)
    assert wire.sent(4 + len(FRAME)) == on_stream(FRAME)


@pytest.mark.parametrize("size", [0, 13, FRAME_MAX_BYTES + 1])
def test_what_is_no_frame_is_not_sent(wire: Wire, size: int) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        wire.write(HEADER, bytes(size))
    wire.write(HEADER, FRAME)
    assert wire.sent(4 + len(FRAME)) == on_stream(FRAME)


@pytest.mark.parametrize("length", [0, 13, FRAME_MAX_BYTES + 1, 0xFFFFFFFF])
def test_nonsense_of_the_other_end_is_its_end(wire: Wire, length: int) -> None:
    wire.other.send(length.to_bytes(4, "big") + bytes(100))
    with pytest.raises(OSError, match=os.strerror(errno.EPROTO)):
        wire.read()


def test_the_end_and_another_connection_at_the_same_descriptor(wire: Wire) -> None:
    number = wire.stream.fd
    wire.other.send(on_stream(FRAME)[:20])
    assert wire.stream.wait(TIMEOUT_SEC)
    assert not wire.stream.is_at_end()
    with pytest.raises(BlockingIOError):
        wire.read()
    wire.other.close()
    assert wire.stream.wait(TIMEOUT_SEC)
    assert wire.stream.is_at_end()
    with pytest.raises(ConnectionResetError):
        wire.read()
    with pytest.raises(OSError, match=os.strerror(errno.EBADFD)):
        wire.write(HEADER, FRAME)
    wire.stream.cut()
    assert not wire.stream.is_connected
    wire.other = wire.connect()
    assert wire.stream.fd == number
    wire.other.send(on_stream(FRAME))
    assert wire.read() == bytes(HEADER_BYTES) + FRAME


def test_nobody_is_there(tmp_path: Path) -> None:
    stream = FrameStream()
    with pytest.raises(FileNotFoundError):
        stream.connect(str(tmp_path / "socket"), 0.0)
    with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
        stream.readv(0, [memoryview(bytearray(100))])
    assert stream.is_at_end()
    stream.close()
