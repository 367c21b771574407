"""Who gets which interrupt, port and address: allocators over what `layout.py` leaves free."""

from __future__ import annotations

from vmservice.arch.x86_64 import layout
from vmservice.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# Below this port are the devices of a PC, which a guest may touch whether they are there or not.
_FIRST_FREE_PORT = 0x1000
_PORTS = 0x10000

# Pins 0 to 3 are a PC's timer, keyboard, second PIC and COM2; KVM's own PIT uses pin 2.
_FIRST_FREE_PIN = 5

# Behind the pins. KVM routes as many GSIs (KVM_MAX_IRQ_ROUTES).
_GSIS = 4096

# PCI bridges and firmware divide the address space in large pieces. So does Linux, which adds memory in sections of 128 MiB and
# maps it by pages of a GiB at best: no two kinds of memory share a piece.
_PIECE_ALIGNMENT = layout.GIB


class ResourcesExhausted(ConfigError):
    """The machine that was asked for needs more than there is."""


class RangeOverlap(ConfigError):
    """A range is wanted that another device has."""


class RangeOutside(ConfigError):
    """A range is wanted that is not there at all."""


class RangeAllocator:
    """Disjoint ranges out of [base, base + size), the lowest that fits first.

    `name` and `owner` are for messages. `allocate` gives nothing below `first_free`; `reserve` may. `number` formats values.
    """

    def __init__(self, name: str, base: int, size: int, *, first_free: int = 0, number: str = "#x") -> None:
        self.name = name
        self.base = base
        self.end = base + size
        self._first_free = max(base, first_free)
        self._number = number
        self._taken: list[tuple[int, int, str]] = []  # (start, end, owner), ascending

    def reserve(self, base: int, size: int, owner: str) -> None:
        """Take [base, base + size); RangeOutside or RangeOverlap, with nothing taken, when that cannot be."""
        if size <= 0:
            raise ValueError(f"{owner} wants {size} of the {self.name}: a range is not empty")
        end = base + size
        if base < self.base or end > self.end:
            raise RangeOutside(
                f"{owner} wants {self._range(base, end)} of the {self.name}, which are {self._range(self.base, self.end)}"
            )
        for start, stop, other in self._taken:
            if base < stop and start < end:
                raise RangeOverlap(
                    f"{owner} wants {self._range(base, end)} of the {self.name}, but {other} has {self._range(start, stop)}"
                )
        self._taken.append((base, end, owner))
        self._taken.sort()

    def allocate(self, size: int, owner: str, *, alignment: int = 1) -> int:
        """Take `size` at a multiple of `alignment`; where. ResourcesExhausted when no gap is large enough."""
        if size <= 0 or alignment <= 0:
            raise ValueError(f"{owner} wants {size} of the {self.name}, aligned to {alignment}: both are positive")
        base = _align_up(self._first_free, alignment)
        for start, stop, _ in self._taken:
            if base + size <= start:
                break
            base = max(base, _align_up(stop, alignment))
        if base + size > self.end:
            wants = f"{owner} wants {size:{self._number}} of the {self.name}"
            if self.end <= self.base:
                raise ResourcesExhausted(f"{wants}, of which this machine has none")
            raise ResourcesExhausted(f"{wants}, but {self._range(self._first_free, self.end)} has no such gap left")
        self.reserve(base, size, owner)
        return base

    def free(self, base: int) -> None:
        """Give back the range that starts at `base`; ValueError when none does."""
        kept = [taken for taken in self._taken if taken[0] != base]
        if len(kept) == len(self._taken):
            raise ValueError(f"nobody has a range of the {self.name} that starts at {base:{self._number}}")
        self._taken = kept

    def _range(self, base: int, end: int) -> str:
        return f"{base:{self._number}}-{end - 1:{self._number}}"


class Resources:
    """What the devices of one machine share.

    `pins` are the IOAPIC's, and the GSIs of the same number; `msi_gsis` are those behind them, for irqfd and message routes.
    `memory` lies above RAM and has room for `device_memory`, the sizes in bytes of memory that devices bring. `mmio32` lies in
    the hole below 4 GiB, `mmio64` above all memory up to the last address that the host's processors reach; both are what the
    PCI root's windows say. `ram_end` is the first gpa behind RAM.
    """

    __slots__ = ("memory", "mmio32", "mmio64", "msi_gsis", "pins", "pio")

    def __init__(self, ram_end: int, address_bits: int, device_memory: Sequence[int] = ()) -> None:
        check_reach(ram_end, address_bits)
        reach = 1 << address_bits
        self.pins = RangeAllocator("interrupt pins", 0, layout.IOAPIC_PINS, first_free=_FIRST_FREE_PIN, number="d")
        self.msi_gsis = RangeAllocator("message GSIs", layout.IOAPIC_PINS, _GSIS - layout.IOAPIC_PINS, number="d")
        self.pio = RangeAllocator("I/O ports", 0, _PORTS, first_free=_FIRST_FREE_PORT)
        self.mmio32 = RangeAllocator("device addresses below 4 GiB", layout.PCI_MMIO_32BIT, layout.PCI_MMIO_32BIT_SIZE)
        above = _align_up(max(ram_end, layout.RAM_64BIT_START), _PIECE_ALIGNMENT)
        # Next to RAM: where Linux places its map of memory at random, that ends 10 TiB behind RAM
        # (CONFIG_RANDOMIZE_MEMORY_PHYSICAL_PADDING).
        memory_end = above + sum(_align_up(size, _PIECE_ALIGNMENT) for size in device_memory)
        if device_memory and memory_end > reach:
            raise RangeOutside(
                f"memory and the memory of devices would end at {memory_end:#x}, but this host's processors have"
                f" {address_bits} address bits, which end at {reach:#x}"
            )
        self.memory = RangeAllocator("addresses of devices' memory", above, memory_end - above)
        self.mmio64 = RangeAllocator("device addresses above RAM", memory_end, max(reach - memory_end, 0))

    def place_memory(self, size: int, owner: str, at: int | None = None) -> int:
        """Take addresses of `memory`; the first of them. `at` is where it was in a machine that this one goes on from."""
        if at is None:
            return self.memory.allocate(size, owner, alignment=_PIECE_ALIGNMENT)
        self.memory.reserve(at, size, owner)
        return at

    def mmio64_window(self) -> tuple[int, int] | None:
        """`mmio64` as (first, last) address; None when RAM takes all that there is above 4 GiB."""
        return (self.mmio64.base, self.mmio64.end - 1) if self.mmio64.end > self.mmio64.base else None


def check_reach(ram_end: int, address_bits: int) -> None:
    """RangeOutside unless the host's processors reach RAM up to `ram_end`."""
    reach = 1 << address_bits
    if ram_end > reach:
        raise RangeOutside(
            f"guest memory would end at {ram_end:#x}, but this host's processors have {address_bits} address bits, which"
            f" end at {reach:#x}: memory.size must be smaller"
        )


def _align_up(value: int, alignment: int) -> int:
    return value + -value % alignment
