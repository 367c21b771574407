"""Guest memory by guest physical address (gpa): every access is checked, none can reach outside it."""

from __future__ import annotations

import mmap
import os

from vmservice.errors import OutOfGuestMemory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Protocol

    Buffer = bytes | bytearray | memoryview

    class Listener(Protocol):
        """Who has a copy of the map of guest memory: KVM, a back end in the kernel or in another process."""

        def region_added(self, region: Region) -> None:
            """Before any device can reach it."""

        def region_removed(self, region: Region) -> None:
            """When no device can reach it any more."""


_PIECE_BYTES = 256 << 20


class Region:
    """One contiguous piece of guest memory: `size_bytes` at `gpa`, backed by `mapping`.

    `mapping` begins at `offset` of the file `fd`, which is -1 for memory that no other process can map; whoever has made the
    region owns it. `is_ram` is False for what a device brings: no memory map tells the guest of it.
    `discard_advice` is the madvise(2) that gives pages back to the host: for a mapping of a file a hole in it, MADV_REMOVE;
    None where no page must be given back.
    """

    __slots__ = ("discard_advice", "end", "fd", "gpa", "is_ram", "mapping", "offset", "size_bytes", "view")

    def __init__(
        self,
        gpa: int,
        mapping: mmap.mmap,
        discard_advice: int | None = mmap.MADV_DONTNEED,
        *,
        fd: int = -1,
        offset: int = 0,
        is_ram: bool = True,
    ) -> None:
        self.fd = fd
        self.offset = offset
        self.is_ram = is_ram
        self.discard_advice = discard_advice
        self.gpa = gpa
        self.size_bytes = len(mapping)
        self.end = gpa + len(mapping)  # the first gpa behind it
        self.mapping = mapping
        self.view = memoryview(mapping)


class GuestMemory:
    """The memory of one guest: ordered, disjoint regions. It owns their mappings, and `fd`, the file behind RAM, -1 for none.

    Regions come and go while the guest runs, by the main thread; every thread may look one up meanwhile.
    """

    def __init__(self, regions: Sequence[Region], fd: int = -1) -> None:
        self.fd = fd
        self.regions = tuple(sorted(regions, key=lambda region: region.gpa))
        self._listeners: list[Listener] = []
        self._pins = 0

    @property
    def size_bytes(self) -> int:
        """Of RAM."""
        return sum(region.size_bytes for region in self.regions if region.is_ram)

    def listen(self, listener: Listener) -> None:
        """Tell `listener` of every region: those that are there, and those that come and go from now on."""
        for region in self.regions:
            listener.region_added(region)
        self._listeners.append(listener)

    def add(self, region: Region) -> None:
        """One region more, which it owns from then on; ValueError where there is memory already.

        Listeners that were told forget it again when one of them fails.
        """
        for other in self.regions:
            if region.gpa < other.end and other.gpa < region.end:
                raise ValueError(f"guest memory at {region.gpa:#x}-{region.end - 1:#x} is there already")
        told: list[Listener] = []
        try:
            for listener in self._listeners:
                listener.region_added(region)
                told.append(listener)
        except BaseException:
            for listener in told:
                listener.region_removed(region)
            raise
        self.regions = tuple(sorted((*self.regions, region), key=lambda one: one.gpa))

    def remove(self, gpa: int) -> Region:
        """Take the region at `gpa` away, and give it to the caller, who closes it. ValueError when there is none."""
        region = next((region for region in self.regions if region.gpa == gpa), None)
        if region is None:
            raise ValueError(f"no region of guest memory begins at {gpa:#x}")
        self.regions = tuple(one for one in self.regions if one is not region)
        for listener in reversed(self._listeners):
            listener.region_removed(region)
        return region

    def pin(self) -> None:
        """From now on no page is given back to the host: hardware, or another process, has its address."""
        self._pins += 1

    def unpin(self) -> None:
        """Undo one `pin`."""
        if not self._pins:
            raise ValueError("guest memory is not pinned")
        self._pins -= 1

    @property
    def end(self) -> int:
        """The first gpa behind the last region."""
        return self.regions[-1].end

    def view(self, gpa: int, size_bytes: int) -> memoryview:
        """The guest's own bytes [gpa, gpa + size_bytes), writable, no copy; OutOfGuestMemory unless one region holds them all.

        Release the view (or let it go out of scope) before the memory is closed.
        """
        end = gpa + size_bytes
        for region in self.regions:
            start = region.gpa
            if start <= gpa <= end <= region.end:
                return region.view[gpa - start : end - start]
        raise OutOfGuestMemory(f"{size_bytes} bytes at guest address {gpa:#x} are not in guest memory")

    def read(self, gpa: int, size_bytes: int) -> bytes:
        return bytes(self.view(gpa, size_bytes))

    def write(self, gpa: int, data: Buffer) -> None:
        self.view(gpa, len(data))[:] = data

    def contains(self, gpa: int, size_bytes: int) -> bool:
        """Whether one region holds all of [gpa, gpa + size_bytes)."""
        return any(region.gpa <= gpa and gpa + size_bytes <= region.end for region in self.regions)

    def discard(self, gpa: int, size_bytes: int) -> None:
        """Let the host have whole pages back; they read as zeros, or as their file has them, when next touched.

        Pages that cannot be given back (pinned, locked, reserved, huge) stay as they are: it was an offer.
        """
        if self._pins:
            return
        for region in self.regions:
            if region.discard_advice is not None and region.gpa <= gpa and gpa + size_bytes <= region.end:
                try:
                    region.mapping.madvise(region.discard_advice, gpa - region.gpa, size_bytes)
                except OSError:
                    return

    def is_cut_short(self) -> bool:
        """Whether the file behind RAM has lost some of the guest's pages, which KVM then cannot reach."""
        return self.fd >= 0 and os.fstat(self.fd).st_size < self.size_bytes

    def close(self, progress: Callable[[], None] | None = None) -> None:
        """Give the mappings back; the memory is empty afterwards. Pages go in pieces, `progress` is called after each."""
        regions, self.regions = self.regions, ()
        for region in regions:
            if progress is not None and region.discard_advice is not None:
                _give_back(region.mapping, region.discard_advice, progress)
            region.view.release()
            region.mapping.close()
        fd, self.fd = self.fd, -1
        if fd < 0:
            return
        try:
            os.close(fd)
        except OSError:  # of a file system that is gone; the descriptor is, too
            return


def pieces(total_bytes: int) -> Iterator[tuple[int, int]]:
    """(start, size) of pieces that the host makes, or takes back, in a second or so."""
    return ((start, min(_PIECE_BYTES, total_bytes - start)) for start in range(0, total_bytes, _PIECE_BYTES))


def _give_back(mapping: mmap.mmap, advice: int, progress: Callable[[], None]) -> None:
    for start, size in pieces(len(mapping)):
        try:
            mapping.madvise(advice, start, size)
        except OSError:  # pinned or locked pages go with the mapping
            return
        progress()
