"""Frames between a driver's buffers and a tap that is a socket: none cut, none lost that has room, none reordered."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Sequence

import pytest
from support.guest_ram import MIB, guest_ram
from support.virtqueue import QUEUES_GPA, DriverQueue

from vmservice.board import net_server
from vmservice.board.net_server import DRAINED, FRAME_MAX_BYTES, MORE, STARVED, Pair
from vmservice.devices.virtio import queue
from vmservice.devices.virtio.ids import EVENT_IDX, INDIRECT_DESC
from vmservice.devices.virtio.net import MRG_RXBUF
from vmservice.devices.virtio.queue import Queue, QueueState
from vmservice.errors import GuestError

HEADER = bytes(range(100, 110)) + b"\0\0"


@pytest.fixture(autouse=True)
def _slices_end_by_their_number_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (net_server, queue):
        monkeypatch.setattr(module, "SLICE_SEC", 3600.0)


class Bench:
    """One pair, one virtqueue of it, and the far end of its tap."""

    def __init__(self, features: int, size: int = 64) -> None:
        self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.far.setblocking(False)
        self.near.setblocking(False)
        self.memory = guest_ram((0, 2 * MIB))
        self.driver = DriverQueue(self.memory, QUEUES_GPA, size, EVENT_IDX | INDIRECT_DESC)
        state = QueueState(size)
        state.addresses[:] = self.driver.addresses
        state.ready = True
        self.queue = Queue(self.memory, state, EVENT_IDX | INDIRECT_DESC)
        self.refused: list[int] = []
        self.pair = Pair(self.near.fileno(), self.refused.append)
        self.pair.begin(features)

    def send_in(self, frame: bytes) -> bytes:
        """Into the tap, and so to the guest; with its header."""
        self.far.send(HEADER + frame)
        return HEADER[:10] + b"\1\0" + frame

    def receive(self) -> int:
        outcome = self.pair.receive(self.queue)
        self.queue.publish()
        return outcome

    def used(self) -> list[bytes]:
        return [data for _, _, data in self.driver.take_used()]

    def close(self) -> None:
        self.pair.let_go(self.queue)
        self.queue.close()
        self.memory.close()
        self.near.close()
        self.far.close()


@pytest.fixture
def merging() -> Iterator[Bench]:
    bench = Bench(MRG_RXBUF)
    yield bench
    bench.close()


@pytest.fixture
def plain() -> Iterator[Bench]:
    bench = Bench(0)
    yield bench
    bench.close()


def whole(parts: Sequence[bytes]) -> tuple[int, bytes]:
    """(buffers as the header says, what is behind it) of one frame in those buffers."""
    data = b"".join(parts)
    assert data[:10] == HEADER[:10]
    assert int.from_bytes(data[10:12], "little") == len(parts)
    return len(parts), data[12:]


# Sending


def test_frames_leave_as_they_are(plain: Bench) -> None:
    for number in range(3):
        plain.driver.add([HEADER, bytes((number,)) * 60])
    plain.driver.add([HEADER + b"in one buffer"])
    plain.driver.add([HEADER[:5], HEADER[5:] + b"a", b"b" * 1000], indirect=True)
    assert plain.pair.send(plain.queue, is_up=True)
    sent = [plain.far.recv(1 << 17) for _ in range(5)]
    expected = [b"\0" * 60, b"\1" * 60, b"\2" * 60, b"in one buffer", b"a" + b"b" * 1000]
    assert sent == [HEADER + frame for frame in expected]
    assert [written for _, written, _ in plain.driver.take_used()] == [0] * 5
    assert (plain.pair.counters.sent, plain.pair.counters.sent_bytes) == (5, 180 + 13 + 1001)


def test_a_link_that_is_down_loses_frames(plain: Bench) -> None:
    plain.driver.add([HEADER, b"frame"])
    plain.pair.send(plain.queue, is_up=False)
    assert len(plain.driver.take_used()) == 1
    assert (plain.pair.counters.sent, plain.pair.counters.sent_dropped) == (0, 1)
    with pytest.raises(BlockingIOError):
        plain.far.recv(100)


@pytest.mark.parametrize(("readable", "writable"), [([HEADER[:11]], []), ([HEADER, b"x"], [10]), ([], [100])])
def test_what_is_no_frame(plain: Bench, readable: list[bytes], writable: list[int]) -> None:
    plain.driver.add(readable, writable)
    with pytest.raises(GuestError, match="a frame to send has"):
        plain.pair.send(plain.queue, is_up=True)


def test_a_frame_that_is_too_long_or_that_the_host_refuses_is_lost(merging: Bench) -> None:
    writes: list[int] = []

    def refuse(_fd: int, views: Sequence[memoryview]) -> int:
        writes.append(sum(map(len, views)))
        raise OSError(errno.EIO if len(writes) == 1 else errno.EBADFD, "refused")

    pair = Pair(-1, merging.refused.append, writev=refuse)
    merging.driver.add([bytes(FRAME_MAX_BYTES + 1)])
    for _ in range(3):
        merging.driver.add([HEADER + b"frame"])
    pair.send(merging.queue, is_up=True)
    assert (writes, merging.refused, pair.is_gone) == ([17, 17], [errno.EIO], True)
    assert pair.counters.sent_dropped == 4
    assert len(merging.driver.take_used()) == 4


# Receiving


def test_a_frame_a_buffer(plain: Bench) -> None:
    expected = [plain.send_in(bytes((number,)) * (60 + number)) for number in range(3)]
    assert plain.receive() == STARVED
    for _ in range(2):
        plain.driver.add([], [12, 1000])
    assert plain.receive() == STARVED
    plain.driver.add([], [2000])
    assert plain.receive() == STARVED
    plain.driver.add([], [5, 7, 100])
    assert plain.receive() == DRAINED
    assert plain.used() == expected
    assert plain.pair.counters.received == 3


def test_a_frame_that_is_too_long_for_its_buffer_is_lost_whole(plain: Bench) -> None:
    plain.driver.add([], [12, 100])
    plain.send_in(b"l" * 101)
    expected = plain.send_in(b"f" * 100)
    assert plain.receive() == STARVED
    assert plain.used() == [expected]
    assert plain.pair.counters.received_dropped == 1


def test_long_frames_take_several_buffers(merging: Bench) -> None:
    frames = [bytes((number,)) * size for number, size in enumerate((60, 1514, 40000, 65549, 1, 9000, 1400))]
    taken: list[bytes] = []
    found: list[bytes] = []
    for frame in frames:
        merging.far.send(HEADER + frame)
    while len(found) < len(frames):
        while len(merging.driver._free) > 0:
            merging.driver.add([], [1536])
        merging.receive()
        taken += merging.used()
        while taken and len(taken) >= int.from_bytes(taken[0][10:12], "little"):
            count, frame = whole(taken[: int.from_bytes(taken[0][10:12], "little")])
            assert count == -(-(len(frame) + 12) // 1536)
            found.append(frame)
            del taken[:count]
    assert found == frames
    assert merging.pair.counters.received_dropped == 0


def test_a_frame_waits_for_buffers_and_stays_in_its_place(merging: Bench) -> None:
    """Taken out of the tap, without room yet: over a stop, too."""
    merging.far.send(HEADER + b"l" * 5000)
    merging.far.send(HEADER + b"next")
    for _ in range(2):
        merging.driver.add([], [1000])
    assert merging.receive() == STARVED
    assert merging.used() == []
    merging.pair.let_go(merging.queue)
    assert merging.queue.state.next_available == 0
    merging.pair.begin(MRG_RXBUF)
    for _ in range(6):
        merging.driver.add([], [1000])
    assert merging.receive() == DRAINED
    used = merging.used()
    assert whole(used[:6]) == (6, b"l" * 5000)
    assert whole(used[6:]) == (1, b"next")


def test_a_driver_with_other_features_does_not_get_the_last_ones_frame(merging: Bench) -> None:
    merging.far.send(HEADER + b"l" * 5000)
    merging.driver.add([], [1000])
    assert merging.receive() == STARVED
    merging.pair.let_go(merging.queue)
    merging.pair.begin(0)
    expected = merging.send_in(b"next")
    assert merging.receive() == STARVED
    assert merging.used() == [expected]


def test_a_driver_whose_buffers_are_too_few_for_a_frame_gets_the_next_one() -> None:
    bench = Bench(MRG_RXBUF, size=4)
    bench.far.send(HEADER + b"l" * 5000)
    expected = bench.send_in(b"next")
    for _ in range(4):
        bench.driver.add([], [1000])
    assert bench.receive() == DRAINED
    assert bench.used() == [expected]
    assert bench.pair.counters.received_dropped == 1
    bench.close()


def test_more_parts_than_the_kernel_takes_at_once(merging: Bench) -> None:
    places = []
    for head in range(2):
        entries = [(merging.driver.place(bytes(8)), 8, 2 | (number < 1019), number + 1) for number in range(1020)]
        merging.driver.describe(head, merging.driver.table(entries), 16 * len(entries), 4)
        merging.driver.make_available(head)
        places += [gpa for gpa, *_ in entries]
    frame = bytes(range(200)) * 50
    merging.far.send(HEADER + frame)
    assert merging.receive() == STARVED
    assert merging.driver.used_index() == 2
    assert b"".join(merging.memory.read(gpa, 8) for gpa in places)[: 12 + len(frame)] == HEADER[:10] + b"\2\0" + frame


@pytest.mark.parametrize(("readable", "writable"), [([b"x"], [2000]), ([], [11])])
def test_what_is_no_buffer(merging: Bench, readable: list[bytes], writable: list[int]) -> None:
    merging.driver.add(readable, writable)
    with pytest.raises(GuestError, match="a buffer to receive in has"):
        merging.receive()


def flooded(count: int) -> Bench:
    """With so many buffers, and a tap that always has a frame of 60 bytes."""

    def flood(_fd: int, views: Sequence[memoryview]) -> int:
        views[0][:12] = HEADER
        return 60

    bench = Bench(MRG_RXBUF, size=512)
    bench.pair = Pair(-1, bench.refused.append, readv=flood)
    bench.pair.begin(MRG_RXBUF)
    for _ in range(count):
        bench.driver.add([], [100])
    return bench


def test_a_slice_ends_after_so_many_frames() -> None:
    bench = flooded(300)
    assert (bench.receive(), len(bench.used())) == (MORE, 256)
    assert (bench.receive(), len(bench.used())) == (STARVED, 44)
    bench.close()


def test_a_slice_ends_after_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(net_server, "SLICE_SEC", 0.0)
    bench = flooded(300)
    assert (bench.receive(), len(bench.used())) == (MORE, 1)
    bench.close()


def test_a_tap_that_is_gone(merging: Bench) -> None:
    merging.driver.add([], [2000])

    def gone(_fd: int, _views: Sequence[memoryview]) -> int:
        raise OSError(errno.EBADFD, os.strerror(errno.EBADFD))

    pair = Pair(-1, merging.refused.append, readv=gone)
    pair.begin(MRG_RXBUF)
    assert pair.receive(merging.queue) == DRAINED
    assert pair.is_gone
    pair.let_go(merging.queue)
