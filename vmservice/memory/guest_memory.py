"""Guest memory by guest physical address (gpa): every access is checked, none can reach outside it."""

from __future__ import annotations

import mmap
import os

from vmservice.errors import OutOfGuestMemory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    Buffer = bytes | bytearray | memoryview


class Region:
    """One contiguous piece of guest RAM: `size_bytes` at `gpa`, backed by `mapping`.

    `discard_advice` is the madvise(2) that gives pages back to the host: for a mapping of a file a hole in it, MADV_REMOVE;
    None where no page must be given back.
    """

    __slots__ = ("discard_advice", "gpa", "mapping", "size_bytes", "view")

    def __init__(self, gpa: int, mapping: mmap.mmap, discard_advice: int | None = mmap.MADV_DONTNEED) -> None:
        self.discard_advice = discard_advice
        self.gpa = gpa
        self.size_bytes = len(mapping)
        self.mapping = mapping
        self.view = memoryview(mapping)

    @property
    def end(self) -> int:
        """The first gpa behind the region."""
        return self.gpa + self.size_bytes


class GuestMemory:
    """The RAM of one guest: ordered, disjoint regions. It owns their mappings, and `fd`, the file behind them, -1 for none."""

    def __init__(self, regions: Sequence[Region], fd: int = -1) -> None:
        self.fd = fd
        self.regions = tuple(sorted(regions, key=lambda region: region.gpa))
        self.size_bytes = sum(region.size_bytes for region in self.regions)

    @property
    def end(self) -> int:
        """The first gpa behind the last region."""
        return self.regions[-1].end

    def view(self, gpa: int, size_bytes: int) -> memoryview:
        """The guest's own bytes [gpa, gpa + size_bytes), writable, no copy; OutOfGuestMemory unless one region holds them all.

        Release the view (or let it go out of scope) before the memory is closed.
        """
        for region in self.regions:
            if region.gpa <= gpa and gpa + size_bytes <= region.end and size_bytes >= 0:
                offset = gpa - region.gpa
                return region.view[offset : offset + size_bytes]
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

        Pages that cannot be given back (memory locked, huge pages) stay as they are: it was an offer.
        """
        for region in self.regions:
            if region.discard_advice is not None and region.gpa <= gpa and gpa + size_bytes <= region.end:
                try:
                    region.mapping.madvise(region.discard_advice, gpa - region.gpa, size_bytes)
                except OSError:
                    return

    def is_cut_short(self) -> bool:
        """Whether the file behind it has lost some of the guest's pages, which KVM then cannot reach."""
        return self.fd >= 0 and os.fstat(self.fd).st_size < self.size_bytes

    def close(self) -> None:
        """Give the mappings back; the memory is empty afterwards."""
        regions, self.regions = self.regions, ()
        for region in regions:
            region.view.release()
            region.mapping.close()
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
