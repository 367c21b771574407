"""virtio-blk: the configuration space, and each request with every way to be wrong, on the queue's own chains."""

from __future__ import annotations

import errno
import random
import struct
from collections.abc import Sequence

import pytest
from support.disks import DISCARD, FLUSH, GET_ID, IN, OUT, WRITE_ZEROES, header, segment

from vmservice.devices.virtio import block
from vmservice.devices.virtio.block import Block, BlockShape, BlockState, Request, answer_of
from vmservice.devices.virtio.queue import Chain
from vmservice.errors import GuestError

SECTORS = 100


def device(capacity: int = SECTORS, **shape: object) -> Block:
    return Block(BlockShape(serial=b"serial", **shape), BlockState(capacity))  # type: ignore[arg-type]


def chain(readable: Sequence[bytes], writable: Sequence[int]) -> Chain:
    made = Chain(7)
    made.readable = [(0, memoryview(bytearray(part))) for part in readable]
    made.writable = [(0, memoryview(bytearray(size))) for size in writable]
    return made


def parse(readable: Sequence[bytes], writable: Sequence[int], of: Block | None = None) -> Request:
    return (of or device()).parse(chain(readable, writable))


def test_the_configuration_space() -> None:
    disk = device(
        capacity=1 << 33,
        block_bytes=4096,
        physical_bytes=16384,
        minimum_io_bytes=8192,
        optimal_io_bytes=1 << 20,
        discard_bytes=65536,
        queues=4,
    )
    fields = struct.unpack("<QIIHBBIBBHIBBHIIIIIB15s", disk.read_config(0, 72))
    assert fields == (
        *(1 << 33, 0, 254, 0, 0, 0),
        *(4096, 2, 0, 2, 256, 0, 0, 4),
        *(1 << 22, 1, 128, 1 << 18, 1, 1, bytes(15)),
    )
    assert disk.read_config(34, 2) == b"\4\0"
    assert disk.read_config(70, 8) == bytes(8)
    assert disk.queue_max_sizes == (256,) * 4
    assert disk.features == 1 << 2 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 12 | 1 << 13 | 1 << 14
    before = disk.read_config(0, 72)
    disk.write_config(0, b"\xff" * 72)
    assert disk.read_config(0, 72) == before


def test_what_is_not_offered_has_no_limits() -> None:
    """Windows does not survive a feature with limits of zero, nor zeroes where nothing may be written."""
    undiscardable = device(discards=False)
    assert not undiscardable.features & block.DISCARD
    assert undiscardable.read_config(36, 21) == bytes(12) + struct.pack("<IIB", 1 << 18, 1, 0)
    readonly = device(readonly=True)
    assert readonly.features == 1 << 2 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 10
    assert readonly.read_config(36, 21) == bytes(21)


@pytest.mark.parametrize("framing", ["usual", "one byte each", "header and data in one", "data and status in one"])
def test_any_framing(framing: str) -> None:
    data = bytes(range(256)) * 2
    whole = header(OUT, 3) + data
    readable = {
        "one byte each": [whole[number : number + 1] for number in range(len(whole))],
        "header and data in one": [whole],
    }.get(framing, [whole[:16], data])
    request = parse(readable, [1])
    assert (request.answer, request.kind, request.offset, request.length) == (None, OUT, 1536, 512)
    assert b"".join(request.views) == data
    assert request.written_bytes == 1
    writable = {"one byte each": [1] * 513, "data and status in one": [513]}.get(framing, [512, 1])
    got = chain([header(IN, 99)], writable)
    request = device().parse(got)
    assert (request.answer, request.kind, request.offset, request.length) == (None, IN, 99 * 512, 512)
    assert (sum(map(len, request.views)), request.written_bytes) == (512, 513)
    request.status[0] = 9
    assert got.writable[-1][1][-1] == 9


@pytest.mark.parametrize(
    ("readable", "writable"), [([header(IN)], []), ([], [513]), ([header(IN)[:15]], [512, 1]), ([b"a"] * 15, [1])]
)
def test_what_cannot_be_answered_is_a_lie(readable: list[bytes], writable: list[int]) -> None:
    with pytest.raises(GuestError):
        parse(readable, writable)


@pytest.mark.parametrize(
    ("sector", "size", "answer"),
    [
        (0, SECTORS * 512, None),
        (0, (SECTORS + 1) * 512, block.IOERR),
        (SECTORS - 1, 512, None),
        (SECTORS, 512, block.IOERR),
        (SECTORS, 0, block.OK),
        (SECTORS + 1, 0, block.IOERR),
        ((1 << 64) - 1, 512, block.IOERR),
        (0, 511, block.IOERR),
        (0, 513, block.IOERR),
        (0, 0, block.OK),
    ],
)
def test_where_may_be_read_and_written(sector: int, size: int, answer: int | None) -> None:
    assert parse([header(IN, sector)], [size, 1] if size else [1]).answer == answer
    assert parse([header(OUT, sector), bytes(size)], [1]).answer == answer


def test_a_disk_of_larger_sectors_takes_no_smaller_ones() -> None:
    large = device(block_bytes=4096, physical_bytes=4096)
    assert parse([header(IN, 8)], [4096, 1], large).answer is None
    for sector, size in ((8, 512), (1, 4096)):
        assert parse([header(IN, sector)], [size, 1], large).answer == block.IOERR


def test_nothing_is_written_to_what_can_only_be_read() -> None:
    readonly = device(readonly=True)
    assert parse([header(IN)], [512, 1], readonly).answer is None
    assert parse([header(FLUSH)], [1], readonly).answer is None
    assert parse([header(OUT), bytes(512)], [1], readonly).answer == block.IOERR
    for kind in (DISCARD, WRITE_ZEROES):
        assert parse([header(kind), segment(0, 1)], [1], readonly).answer == block.IOERR


@pytest.mark.parametrize(
    ("kind", "data", "answer"),
    [
        (DISCARD, segment(8, 16), None),
        (DISCARD, segment(0, SECTORS), None),
        (DISCARD, segment(1, SECTORS), block.IOERR),
        (DISCARD, segment((1 << 64) - 1, 1), block.IOERR),
        (DISCARD, segment(0, 0), block.OK),
        (DISCARD, segment(0, 1, 1), block.UNSUPP),
        (DISCARD, segment(0, 1) * 2, block.IOERR),
        (DISCARD, b"", block.IOERR),
        (DISCARD, segment(0, 1)[:15], block.IOERR),
        (WRITE_ZEROES, segment(8, 16), None),
        (WRITE_ZEROES, segment(8, 16, 1), None),
        (WRITE_ZEROES, segment(8, 16, 2), block.UNSUPP),
        (WRITE_ZEROES, segment(8, SECTORS), block.IOERR),
        (2, segment(8, 16), block.UNSUPP),
        (14, segment(8, 16), block.UNSUPP),
        (0xFFFFFFFF, segment(8, 16), block.UNSUPP),
    ],
)
def test_ranges(kind: int, data: bytes, answer: int | None) -> None:
    request = parse([header(kind), data] if data else [header(kind)], [1])
    assert request.answer == answer
    if answer is None:
        assert (request.offset, request.length) == tuple(512 * number for number in struct.unpack_from("<QI", data))
        assert request.unmap == (kind == WRITE_ZEROES and data[12] == 1)


def test_a_range_is_no_longer_than_was_said() -> None:
    huge = device(capacity=1 << 40)
    assert parse([header(DISCARD), segment(0, 1 << 22)], [1], huge).answer is None
    assert parse([header(DISCARD), segment(0, (1 << 22) + 1)], [1], huge).answer == block.IOERR
    assert parse([header(WRITE_ZEROES), segment(0, (1 << 18) + 1)], [1], huge).answer == block.IOERR


def test_room_is_given_back_only_where_that_is_wanted() -> None:
    thick = device(discards=False)
    assert parse([header(DISCARD), segment(0, 1)], [1], thick).answer == block.UNSUPP
    request = parse([header(WRITE_ZEROES), segment(0, 1, 1)], [1], thick)
    assert (request.answer, request.unmap) == (None, False)


@pytest.mark.parametrize(
    ("sizes", "text"), [([20, 1], b"serial" + bytes(14)), ([5, 1], b"seria"), ([1], b""), ([40, 1], b"serial" + bytes(14))]
)
def test_the_serial_number(sizes: list[int], text: bytes) -> None:
    made = chain([header(GET_ID)], sizes)
    request = device().parse(made)
    assert (request.answer, request.written_bytes) == (block.OK, 1 + len(text))
    assert b"".join(bytes(view) for _, view in made.writable)[: len(text)] == text


def test_a_driver_that_never_flushes_has_its_writes_on_the_disk_at_once() -> None:
    disk = device()
    disk.activate([], None, 0)  # type: ignore[arg-type]
    assert disk.is_durable
    disk.activate([], None, block.FLUSH)  # type: ignore[arg-type]
    assert not disk.is_durable


def test_errors_of_the_host_are_two_kinds_of_answers() -> None:
    assert [answer_of(number) for number in (0, errno.EIO, errno.ENOSPC, errno.EOPNOTSUPP)] == [0, 1, 1, 2]


def test_whatever_a_chain_holds_is_a_request_or_a_lie() -> None:
    rng, lies, asked = random.Random(3), 0, 0
    disk = device()
    for _ in range(20000):
        kind = rng.choice((0, 1, 4, 8, 11, 13, rng.randrange(1 << 32)))
        head = header(kind, rng.choice((rng.randrange(120), rng.randrange(1 << 64)))) + rng.randbytes(rng.choice((0, 16, 512)))
        cuts = sorted(rng.randrange(len(head) + 1) for _ in range(rng.randrange(4)))
        parts = [head[start:end] for start, end in zip([0, *cuts], [*cuts, len(head)], strict=True) if start < end]
        try:
            request = disk.parse(chain(parts[: rng.randrange(len(parts) + 1)], [rng.choice((1, 20, 512))] * rng.randrange(4)))
        except GuestError:
            lies += 1
            continue
        if request.answer is None:
            asked += 1
            assert request.kind == FLUSH or 0 < request.offset + request.length <= SECTORS * 512
            assert request.length == sum(map(len, request.views)) or request.kind not in (IN, OUT)
        else:
            assert request.answer in (0, 1, 2)
    assert lies > 1000
    assert asked > 1000
