"""virtio-blk, the block device (virtio 1.2 §5.2): its configuration space, and its requests with every check.

It does no I/O. Whoever serves its virtqueues has `parse` make a request of a chain, does what that says, and gives it back by
`complete`.
"""

from __future__ import annotations

import errno
import struct

from vmservice.devices.state import DeviceState
from vmservice.devices.virtio.device import cut_config
from vmservice.devices.virtio.ids import TYPE_BLOCK
from vmservice.errors import GuestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmservice.devices.virtio.device import DriverPort
    from vmservice.devices.virtio.queue import Chain, Queue, Segment

SECTOR_BYTES = 512
QUEUE_SIZE = 256

# Feature bits (§5.2.3)
SEG_MAX = 1 << 2
RO = 1 << 5
BLK_SIZE = 1 << 6
FLUSH = 1 << 9
TOPOLOGY = 1 << 10
MQ = 1 << 12
DISCARD = 1 << 13
WRITE_ZEROES = 1 << 14

# Types of requests (§5.2.6)
IN = 0
OUT = 1
T_FLUSH = 4
GET_ID = 8
T_DISCARD = 11
T_WRITE_ZEROES = 13

# Status (§5.2.6)
OK = 0
IOERR = 1
UNSUPP = 2

# In segments of 512 bytes. What a request may take of a host is bounded by them: zeros may have to be written one by one.
MAX_DISCARD_SECTORS = 1 << 22
MAX_WRITE_ZEROES_SECTORS = 1 << 18

_HEADER = struct.Struct("<IIQ")
_HEADER_BYTES = 16
_unpack_header = _HEADER.unpack_from
_RANGE = struct.Struct("<QII")
_UNMAP = 1
_ID_BYTES = 20

# struct virtio_blk_config: capacity; size_max, seg_max; geometry; blk_size; physical_block_exp, alignment_offset, min_io_size,
# opt_io_size; writeback; num_queues; limits of discard (3) and of write zeroes (2), write_zeroes_may_unmap.
_CONFIG = struct.Struct("<QIIHBBIBBHIBxHIIIIIB15x")


class BlockShape:
    """What does not change while a machine lives: sizes in bytes, the features, the serial number."""

    __slots__ = (
        "block_bytes",
        "discard_bytes",
        "discards",
        "minimum_io_bytes",
        "optimal_io_bytes",
        "physical_bytes",
        "queues",
        "readonly",
        "serial",
    )

    def __init__(
        self,
        *,
        block_bytes: int = SECTOR_BYTES,
        physical_bytes: int = SECTOR_BYTES,
        minimum_io_bytes: int = 0,
        optimal_io_bytes: int = 0,
        discard_bytes: int = SECTOR_BYTES,
        readonly: bool = False,
        discards: bool = True,
        queues: int = 1,
        serial: bytes = b"",
    ) -> None:
        self.block_bytes = block_bytes
        self.physical_bytes = physical_bytes
        self.minimum_io_bytes = minimum_io_bytes
        self.optimal_io_bytes = optimal_io_bytes
        self.discard_bytes = discard_bytes
        self.readonly = readonly
        self.discards = discards
        self.queues = queues
        self.serial = serial


class BlockState(DeviceState):
    """How many sectors of 512 bytes the disk has, as the driver knows it, or is told as soon as it listens."""

    __slots__ = ("capacity",)

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity


class Request:
    """What a chain asks for. `answer` is its status where there is nothing left to do, else None.

    `kind` is one of the types above. `length` bytes at `offset` of the disk are meant, of a read or a write those of `views` in
    guest memory; `unmap` says that the room of these bytes may be given back.
    """

    __slots__ = ("answer", "head", "kind", "length", "offset", "status", "unmap", "views", "written_bytes")

    def __init__(self, kind: int, head: int, status: memoryview, views: list[memoryview]) -> None:
        self.answer: int | None = None
        self.head = head
        self.kind = kind
        self.length = 0
        self.offset = 0
        self.status = status
        self.unmap = False
        self.views = views
        self.written_bytes = 1  # the status


class Block:
    """A disk of `shape`; `is_durable` is set for a driver that never flushes: each write must be on the disk when it ends."""

    device_type = TYPE_BLOCK

    def __init__(self, shape: BlockShape, state: BlockState) -> None:
        self.state = state
        self.is_durable = False
        self.queue_max_sizes = (QUEUE_SIZE,) * shape.queues
        self.features = SEG_MAX | BLK_SIZE | FLUSH | TOPOLOGY
        if shape.queues > 1:
            self.features |= MQ
        if shape.readonly:
            self.features |= RO
        else:
            self.features |= WRITE_ZEROES | (DISCARD if shape.discards else 0)
        self._shape = shape
        self._block_mask = shape.block_bytes - 1
        self._discards = bool(self.features & DISCARD)
        self._zeroes = bool(self.features & WRITE_ZEROES)
        self._interrupt: DriverPort | None = None

    # Configuration

    def read_config(self, offset: int, size: int) -> bytes:
        shape, block = self._shape, self._shape.block_bytes
        config = _CONFIG.pack(
            self.state.capacity,
            0,
            QUEUE_SIZE - 2,
            *(0, 0, 0),
            block,
            (shape.physical_bytes // block).bit_length() - 1,
            0,
            min(shape.minimum_io_bytes // block, 0xFFFF),
            shape.optimal_io_bytes // block,
            0,
            shape.queues,
            MAX_DISCARD_SECTORS if self._discards else 0,
            1 if self._discards else 0,
            shape.discard_bytes // SECTOR_BYTES if self._discards else 0,
            MAX_WRITE_ZEROES_SECTORS if self._zeroes else 0,
            1 if self._zeroes else 0,
            int(self._discards),
        )
        return cut_config(config, offset, size)

    def write_config(self, offset: int, data: bytes) -> None:
        """All of it is read-only: the cache's mode is not to be changed (VIRTIO_BLK_F_CONFIG_WCE)."""

    def resize(self, capacity: int) -> None:
        """The disk has so many sectors of 512 bytes from now on; the driver is told."""
        if capacity != self.state.capacity:
            self.state.capacity = capacity
            if self._interrupt is not None:
                self._interrupt.interrupt_config()

    def activate(self, queues: list[Queue], interrupt: DriverPort, features: int) -> None:
        self._interrupt = interrupt
        # §5.2.6.2: a driver without FLUSH takes every write that is complete for one that is on the disk.
        self.is_durable = not features & FLUSH

    def reset(self) -> None:
        self._interrupt = None

    def notify(self, index: int) -> None:
        """Its ring owner is notified instead."""

    # Requests

    def parse(self, chain: Chain) -> Request:
        """The request of a chain, checked, with all that it says read once. GuestError where it cannot even be answered."""
        readable, writable = chain.readable, chain.writable
        if not writable:
            raise GuestError("a request to the disk has no room for its status")
        if readable and len(readable[0][1]) == _HEADER_BYTES:  # as every driver has it
            kind, _, sector = _unpack_header(readable[0][1])
            out = [view for _, view in readable[1:]]
        else:
            header, out = _split(readable, _HEADER_BYTES)
            kind, _, sector = _HEADER.unpack(header)
        status = writable[-1][1]
        if kind == OUT and len(status) == 1:
            return self._check(Request(OUT, chain.head, status, out), sector)
        into = [view for _, view in writable[:-1]]
        if len(status) > 1:
            into.append(status[:-1])
            status = status[-1:]
        request = Request(kind, chain.head, status, into)
        if kind == IN:
            return self._check(request, sector)
        if kind == OUT:
            request.views = out
            return self._check(request, sector)
        if kind == GET_ID:
            request.answer, request.written_bytes = OK, 1 + _put(self._shape.serial.ljust(_ID_BYTES, b"\0"), into)
        elif kind == T_DISCARD and self._discards:
            self._read_range(request, out, MAX_DISCARD_SECTORS, may_unmap=False)
        elif kind == T_WRITE_ZEROES and self._zeroes:
            self._read_range(request, out, MAX_WRITE_ZEROES_SECTORS, may_unmap=True)
        elif kind in (T_DISCARD, T_WRITE_ZEROES) and self._shape.readonly:
            request.answer = IOERR
        elif kind != T_FLUSH:
            request.answer = UNSUPP
        return request

    def _check(self, request: Request, sector: int) -> Request:
        """Of whole sectors, all of them on the disk, and not written to where that must not be."""
        length = 0
        for view in request.views:
            length += len(view)
        request.length, request.offset = length, sector * SECTOR_BYTES
        if request.kind == IN:
            request.written_bytes = length + 1
        elif self._shape.readonly:
            request.answer = IOERR
            return request
        if (request.offset | length) & self._block_mask or sector + length // SECTOR_BYTES > self.state.capacity:
            request.answer = IOERR
        elif not length:
            request.answer = OK
        return request

    def _read_range(self, request: Request, out: Sequence[memoryview], limit: int, *, may_unmap: bool) -> None:
        """One segment, as the configuration says."""
        if sum(map(len, out)) != _RANGE.size:
            request.answer = IOERR
            return
        sector, sectors, flags = _RANGE.unpack(b"".join(out))
        block = self._shape.block_bytes
        request.offset, request.length = sector * SECTOR_BYTES, sectors * SECTOR_BYTES
        request.unmap = bool(flags & _UNMAP) and self._discards
        if flags & ~(_UNMAP if may_unmap else 0):
            request.answer = UNSUPP
        elif sectors > limit or sector + sectors > self.state.capacity or request.offset % block or request.length % block:
            request.answer = IOERR
        elif not sectors:
            request.answer = OK

    def complete(self, queue: Queue, request: Request, answer: int) -> None:
        """Give the chain back to the driver; it sees that after `publish`."""
        request.status[0] = answer
        queue.add_used(request.head, request.written_bytes)


def answer_of(number: int) -> int:
    """The status for an errno, 0 for success."""
    if not number:
        return OK
    return UNSUPP if number == errno.EOPNOTSUPP else IOERR


def _split(segments: Sequence[Segment], size_bytes: int) -> tuple[bytes, list[memoryview]]:
    """The first bytes, and the rest in place: the driver may have framed them as it likes (§2.7.4)."""
    first = b""
    rest: list[memoryview] = []
    for _, view in segments:
        missing = size_bytes - len(first)
        first += bytes(view[:missing])
        if len(view) > missing:
            rest.append(view[missing:])
    if len(first) < size_bytes:
        raise GuestError(f"a request to the disk has {len(first)} bytes to read; its header alone has {size_bytes}")
    return first, rest


def _put(data: bytes, views: Sequence[memoryview]) -> int:
    """Write as much as has room; how much that was."""
    done = 0
    for view in views:
        part = data[done : done + len(view)]
        view[: len(part)] = part
        done += len(part)
    return done
