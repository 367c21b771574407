"""What guest memory is made of: private or shared pages, huge ones if wanted, or a file, or an unlinked one in a directory.

Whatever the host cannot give is refused here, before the guest runs: a page that is missing later kills it, or us.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat

from vmservice.errors import ConfigError, HostError
from vmservice.memory.guest_memory import GuestMemory, Region, pieces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Ranges = Sequence[tuple[int, int]]

# Not in Python's mmap before 3.12 and 3.13, or not at all: <asm-generic/mman-common.h>, <asm-generic/hugetlb_encode.h>.
_MAP_NORESERVE = 0x4000
_MAP_HUGETLB = 0x40000
_MAP_HUGE_2MB = 21 << 26
_MADV_POPULATE_WRITE = 23  # Linux 5.14

HUGE_PAGE_BYTES = 2 << 20
_HUGE_PAGES = "/sys/kernel/mm/hugepages/hugepages-2048kB"

_MEMFD_NAME = "vmservice-guest"
_MFD_HUGE_2MB = os.MFD_HUGETLB | os.MFD_HUGE_2MB


_HUGETLBFS_MAGIC = 0x958458F6  # <linux/magic.h>
_STATFS_BYTES = 120  # struct statfs <asm/statfs.h>: f_type and f_bsize are its first two longs

_libc = ctypes.CDLL(None)


def allocate(
    ranges: Ranges,
    *,
    file: str | None = None,
    mergeable: bool = False,
    hugepages: bool = False,
    prefault: bool = False,
    shared: bool = False,
    warn: Callable[[str], None] | None = None,
    progress: Callable[[], None] | None = None,
) -> GuestMemory:
    """Map RAM for each (gpa, size_bytes) of `ranges`, all zeros.

    `file` names a regular file, which is cleared, grown to the guest's size if need be and shared, or a directory, in which an
    unlinked one is made; its room is taken at once, and kept. `shared` without `file` is a memfd, sealed in its size, which
    `fd` of the memory is: whoever gets it (a vhost-user back end) maps the same pages, each range behind the one before.
    `hugepages` are ones of 2 MiB, reserved at once. `mergeable` offers the pages to KSM; where that is in vain, `warn` is told
    and all goes on. `prefault` makes every page present. What takes long is done piece by piece, and `progress` is called after
    each. ConfigError or HostError when it cannot be; nothing stays mapped then.
    """
    if file is not None:
        memory = _from_file(ranges, file, progress)
    else:
        memory = _shared(ranges, hugepages) if shared else _anonymous(ranges, hugepages)
    try:
        for region in memory.regions:
            if mergeable:
                _make_mergeable(region.mapping, file is None and not shared, warn)
            if prefault:
                _prefault(region.mapping, progress)
    except BaseException:
        memory.close()
        raise
    return memory


def _anonymous(ranges: Ranges, hugepages: bool) -> GuestMemory:
    # Private, as mmap.mmap does not do by itself: shared anonymous memory is tmpfs, without KSM and counted as such.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    if not hugepages:
        # A guest rarely touches all its memory, so the host need not set swap aside for it.
        mappings = _map_all(ranges, lambda size, _: mmap.mmap(-1, size, flags=flags | _MAP_NORESERVE))
        return _memory(ranges, mappings, mmap.MADV_DONTNEED)
    try:
        mappings = _map_all(ranges, lambda size, _: mmap.mmap(-1, size, flags=flags | _MAP_HUGETLB | _MAP_HUGE_2MB))
    except HostError as error:
        raise HostError(_too_few_huge_pages(_total(ranges) // HUGE_PAGE_BYTES), error.errno) from error
    # A huge page that was given back may not be had again when the guest touches it: none is given back.
    return _memory(ranges, mappings, None)


def _shared(ranges: Ranges, hugepages: bool) -> GuestMemory:
    total_bytes = _total(ranges)
    try:
        fd = os.memfd_create(_MEMFD_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | (_MFD_HUGE_2MB if hugepages else 0))
    except OSError as error:
        if hugepages:
            raise HostError(_too_few_huge_pages(total_bytes // HUGE_PAGE_BYTES), error.errno or 0) from error
        raise HostError.from_os("cannot make shared guest memory", error) from error
    try:
        os.ftruncate(fd, total_bytes)
        # Whoever gets the descriptor cannot take pages away, which would end us with SIGBUS.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        mappings = _map_all(ranges, lambda size, offset: mmap.mmap(fd, size, flags=mmap.MAP_SHARED, offset=offset))
    except BaseException as error:
        os.close(fd)
        if hugepages and isinstance(error, HostError):
            raise HostError(_too_few_huge_pages(total_bytes // HUGE_PAGE_BYTES), error.errno) from error
        if isinstance(error, OSError):
            raise HostError.from_os(f"cannot make {total_bytes} bytes of shared guest memory", error) from error
        raise
    if not hugepages:
        # Where the host lets shared memory ask for them (shmem_enabled is advise); a kernel may have none.
        for mapping in mappings:
            _advise_huge_pages(mapping)
    return _memory(ranges, mappings, None if hugepages else mmap.MADV_REMOVE, fd)


def _advise_huge_pages(mapping: mmap.mmap) -> None:
    try:
        mapping.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        return


def _too_few_huge_pages(wanted: int) -> str:
    try:
        present, free, promised = (
            _read_number(f"{_HUGE_PAGES}/{name}") for name in ("nr_hugepages", "free_hugepages", "resv_hugepages")
        )
    except OSError:
        return f"cannot have {wanted} huge pages of 2 MiB for the guest's memory: this host's kernel has none of that size"
    spare = free - promised
    return (
        f"cannot have {wanted} huge pages of 2 MiB for the guest's memory: {spare} of this host's {present} are free; "
        f"vm.nr_hugepages must be at least {present - spare + wanted}"
    )


def _read_number(path: str) -> int:
    with open(path, encoding="ascii") as file:
        return int(file.read())


def _from_file(ranges: Ranges, path: str, progress: Callable[[], None] | None) -> GuestMemory:
    total_bytes = _total(ranges)
    fd = _open_backing(path)
    mappings: list[mmap.mmap] = []
    size_before = -1  # unknown: until the lock is ours, the file may be another VM's, and its size that one's business
    try:
        huge_page_bytes = _huge_page_bytes(fd)
        if huge_page_bytes and total_bytes % huge_page_bytes:
            raise ConfigError(
                f"memory.size is {total_bytes}, but {path}, which memory.file names, is on hugetlbfs with pages of "
                f"{huge_page_bytes} bytes; expected a multiple of that"
            )
        _lock(fd, path)
        size_before = os.fstat(fd).st_size
        if size_before < total_bytes:
            os.ftruncate(fd, total_bytes)
        # Each region has a part of the file to itself; the parts must not overlap.
        mappings = _map_all(ranges, lambda size, offset: mmap.mmap(fd, size, flags=mmap.MAP_SHARED, offset=offset))
        if size_before:
            _clear(mappings, path)
        if not huge_page_bytes:  # hugetlbfs has reserved its pages with the mapping
            for start, size in pieces(total_bytes):
                os.posix_fallocate(fd, start, size)
                if progress is not None:
                    progress()
    except BaseException as error:
        for mapping in mappings:
            mapping.close()
        if size_before >= 0 and os.fstat(fd).st_size != size_before:
            os.ftruncate(fd, size_before)
        os.close(fd)
        if isinstance(error, OSError):
            raise HostError.from_os(f"cannot make {total_bytes} bytes of guest memory in {path}", error) from error
        raise
    # Its room is reserved, for a full file system would end the VMM by SIGBUS: none of it is ever given back.
    return _memory(ranges, mappings, None, fd)


def _open_backing(path: str) -> int:
    try:
        if os.path.isdir(path):
            return _open_unlinked(path)
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise HostError.from_os(f"cannot open {path}, which memory.file names", error) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ConfigError(f"{path}, which memory.file names, is neither a regular file nor a directory")
    return fd


def _open_unlinked(directory: str) -> int:
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:  # FAT and network file systems make no file without a name
            raise
    from tempfile import mkstemp

    fd, path = mkstemp(prefix=".vmservice-", dir=directory)
    os.unlink(path)
    return fd


def _lock(fd: int, path: str) -> None:
    """Two guests in one file would ruin each other; the lock is held as long as the memory is there."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise HostError(f"{path}, which memory.file names, is the memory of another VM that runs", errno.EWOULDBLOCK) from None


def _clear(mappings: list[mmap.mmap], path: str) -> None:
    """What a guest of before has left in the file is not for this one."""
    try:
        for mapping in mappings:
            mapping.madvise(mmap.MADV_REMOVE)
    except OSError as error:
        raise HostError.from_os(f"cannot clear {path}, which memory.file names", error) from error


def _huge_page_bytes(fd: int) -> int:
    """The size of the pages of the hugetlbfs that `fd` is on; 0 on any other file system."""
    status = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc.fstatfs(fd, status) != 0:
        return 0
    kind, block_bytes = (int.from_bytes(status.raw[start : start + 8], "little") for start in (0, 8))
    return block_bytes if kind == _HUGETLBFS_MAGIC else 0


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
        raise HostError.from_os(f"cannot map {_total(ranges)} bytes of guest memory", error) from error
    return mappings


def _memory(ranges: Ranges, mappings: list[mmap.mmap], discard_advice: int | None, fd: int = -1) -> GuestMemory:
    regions: list[Region] = []
    offset = 0
    for (gpa, size), mapping in zip(ranges, mappings, strict=True):
        regions.append(Region(gpa, mapping, discard_advice, fd=fd, offset=offset))
        offset += size
    return GuestMemory(regions, fd)


def _total(ranges: Ranges) -> int:
    return sum(size for _, size in ranges)


def _make_mergeable(mapping: mmap.mmap, is_private: bool, warn: Callable[[str], None] | None) -> None:
    try:
        mapping.madvise(mmap.MADV_MERGEABLE)
        trouble = "" if is_private else "it is shared, as a file always is, and KSM takes private memory only"
    except OSError as error:
        trouble = f"{error.strerror}; the host's kernel may lack KSM"
    if trouble and warn is not None:
        warn(f"the guest's memory cannot be merged with other guests': {trouble}")


def _prefault(mapping: mmap.mmap, progress: Callable[[], None] | None) -> None:
    try:
        for start, size in pieces(len(mapping)):
            mapping.madvise(_MADV_POPULATE_WRITE, start, size)
            if progress is not None:
                progress()
    except OSError as error:
        needs = " (it takes Linux 5.14)" if error.errno == errno.EINVAL else ""
        raise HostError.from_os(f"cannot prefault {len(mapping)} bytes of guest memory{needs}", error) from error
