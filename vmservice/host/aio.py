"""Linux AIO (io_submit(2)): many reads and writes past the page cache at once, from one thread. libc has no functions for it.

An eventfd gets 1 for each that is done. Only for files that are open with O_DIRECT, else io_submit waits for each.
"""

from __future__ import annotations

import ctypes
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    Buffers = Sequence[tuple[int, int]]
    """(address, bytes) of each part."""

# x86-64's numbers, <asm/unistd_64.h>
_IO_SETUP = 206
_IO_DESTROY = 207
_IO_GETEVENTS = 208
_IO_SUBMIT = 209

# <linux/aio_abi.h>. struct iocb: data, key, rw_flags; opcode, priority, descriptor; buffer, bytes, offset; reserved; flags,
# eventfd. struct io_event: data, iocb, result, second result.
_IOCB = struct.Struct("<QIIHhIQQqQII")
_IOCB_BYTES = 64
_EVENT = struct.Struct("<QQqq")
_READ, _WRITE, _READ_VECTOR, _WRITE_VECTOR = 0, 1, 7, 8
_RESFD = 1

# struct iovec: address and bytes.
_VECTOR_BYTES = 16
_VECTORS = 1024  # of all requests that are submitted together; one request has no more either (UIO_MAXIOV)

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.argtypes = (ctypes.c_long,) * 6
_syscall.restype = ctypes.c_long


class Aio:
    """A context for `depth` requests. A request has a `slot`, a number below `depth` that no other has at the same time.

    OSError where the host gives no context: there are as many as fs.aio-max-nr says, or a filter forbids it.
    """

    def __init__(self, depth: int, eventfd: int) -> None:
        context = ctypes.c_ulong(0)
        if _syscall(_IO_SETUP, depth, ctypes.addressof(context), 0, 0, 0) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self._context = context.value
        self._depth = depth
        self._eventfd = eventfd
        self._iocbs = ctypes.create_string_buffer(_IOCB_BYTES * depth)
        self._iocbs_at = ctypes.addressof(self._iocbs)
        self._pointers = (ctypes.c_uint64 * depth)()
        self._pointers_at = ctypes.addressof(self._pointers)
        self._events = ctypes.create_string_buffer(_EVENT.size * depth)
        self._events_at = ctypes.addressof(self._events)
        self._vectors = (ctypes.c_uint64 * (2 * _VECTORS))()
        self._vectors_at = ctypes.addressof(self._vectors)
        self._used_vectors = 0
        self._added: list[int] = []  # slots that are to be submitted

    def close(self) -> None:
        """Nothing is in flight: else this waits for it."""
        context, self._context = self._context, 0
        if context:
            _syscall(_IO_DESTROY, context, 0, 0, 0, 0)

    def add(self, slot: int, fd: int, buffers: Buffers, offset: int, *, write: bool, flags: int = 0) -> bool:
        """Have it submitted with the others; False where that has to be done before there is room for this one."""
        if len(buffers) == 1:
            opcode, (buffer, count) = _WRITE if write else _READ, buffers[0]
        else:
            first, count = self._used_vectors, len(buffers)
            if first + count > _VECTORS:
                return False
            vectors, place = self._vectors, 2 * first
            for address, size in buffers:
                vectors[place], vectors[place + 1] = address, size
                place += 2
            self._used_vectors = first + count
            opcode, buffer = _WRITE_VECTOR if write else _READ_VECTOR, self._vectors_at + _VECTOR_BYTES * first
        at = _IOCB_BYTES * slot
        _IOCB.pack_into(self._iocbs, at, slot, 0, flags, opcode, 0, fd, buffer, count, offset, 0, _RESFD, self._eventfd)
        self._pointers[len(self._added)] = self._iocbs_at + at
        self._added.append(slot)
        return True

    def submit(self) -> list[int]:
        """Begin all that was added; the slots of those that the host has not taken."""
        added, self._added, self._used_vectors = self._added, [], 0
        begun = 0
        while begun < len(added):
            done = _syscall(_IO_SUBMIT, self._context, len(added) - begun, self._pointers_at + 8 * begun, 0, 0)
            if done <= 0:
                break
            begun += done
        return added[begun:]

    def take_done(self) -> list[tuple[int, int]]:
        """(slot, bytes done or the negative errno) of those that are done."""
        count = _syscall(_IO_GETEVENTS, self._context, 0, self._depth, self._events_at, 0)
        if count <= 0:
            return []
        events = memoryview(self._events)[: _EVENT.size * count]
        return [(slot, result) for slot, _, result, _ in _EVENT.iter_unpack(events)]
