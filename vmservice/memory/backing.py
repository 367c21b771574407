"""What guest memory is made of: anonymous pages, or a file, or an unlinked file in a directory (tmpfs, hugetlbfs)."""

from __future__ import annotations

import mmap
import os
import stat

from vmservice.errors import ConfigError, HostError
from vmservice.memory.guest_memory import GuestMemory, Region

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Ranges = Sequence[tuple[int, int]]

# Not in Python's mmap before 3.12: a guest rarely touches all its memory, so the host need not set swap aside for it.
_MAP_NORESERVE = 0x4000  # <asm-generic/mman-common.h>


def allocate(
    ranges: Ranges, *, file: str | None = None, mergeable: bool = False, warn: Callable[[str], None] | None = None
) -> GuestMemory:
    """Map RAM for each (gpa, size_bytes) of `ranges`, zeroed unless `file` is a regular file that holds something else.

    `file` names a regular file, which is grown to the guest's size and shared, or a directory, in which an unlinked one is
    made. `mergeable` offers the pages to KSM; where the kernel has none, `warn` is told and all goes on.
    """
    mappings = _map_file(ranges, file) if file is not None else _map_anonymous(ranges)
    if mergeable:
        for mapping in mappings:
            _make_mergeable(mapping, warn)
    return GuestMemory(
        [Region(gpa, mapping, shared=file is not None) for (gpa, _), mapping in zip(ranges, mappings, strict=True)]
    )


def _map_anonymous(ranges: Ranges) -> list[mmap.mmap]:
    # Private, as mmap.mmap does not do by itself: shared anonymous memory is tmpfs, without KSM and counted as such.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    return _map_all(ranges, lambda size, _: mmap.mmap(-1, size, flags=flags))


def _map_file(ranges: Ranges, path: str) -> list[mmap.mmap]:
    total_bytes = sum(size for _, size in ranges)
    fd = _open_backing(path)
    try:
        if os.fstat(fd).st_size < total_bytes:
            os.ftruncate(fd, total_bytes)
        # Each region has a part of the file to itself; the parts must not overlap.
        return _map_all(ranges, lambda size, offset: mmap.mmap(fd, size, flags=mmap.MAP_SHARED, offset=offset))
    except OSError as error:
        raise HostError.from_os(f"cannot make {total_bytes} bytes of guest memory from {path}", error) from error
    finally:
        os.close(fd)


def _map_all(ranges: Ranges, map_one: Callable[[int, int], mmap.mmap]) -> list[mmap.mmap]:
    mappings: list[mmap.mmap] = []
    offset = 0
    try:
        for _, size in ranges:
            mappings.append(map_one(size, offset))
            offset += size
    except OSError as error:
        for mapping in mappings:
            mapping.close()
        raise HostError.from_os(f"cannot map {sum(size for _, size in ranges)} bytes of guest memory", error) from error
    return mappings


def _open_backing(path: str) -> int:
    try:
        if os.path.isdir(path):
            return os.open(path, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise HostError.from_os(f"cannot open {path}, which [memory] file names", error) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ConfigError(f"{path}, which [memory] file names, is neither a regular file nor a directory")
    return fd


def _make_mergeable(mapping: mmap.mmap, warn: Callable[[str], None] | None) -> None:
    try:
        mapping.madvise(mmap.MADV_MERGEABLE)
    except OSError as error:
        if warn is not None:
            warn(f"the guest's memory cannot be merged with other guests' ({error.strerror}); the host's kernel may lack KSM")
