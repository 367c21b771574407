"""A bus: which device answers at which address. The machine has two of them, for port I/O and for MMIO.

Each VM exit looks a device up once, so short ranges (all of port I/O) are found by one dictionary access; the few long
ranges of MMIO are scanned.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Device(Protocol):
        """The guest's side of a device. Every offset and size is answered, none raises."""

        def read(self, offset: int, size: int) -> bytes:
            """`size` bytes, little-endian, from `offset` behind the device's base."""

        def write(self, offset: int, data: bytes) -> None: ...

    Claim = tuple[Device, int, int]


# Up to here a range is entered address by address.
SHORT_RANGE_BYTES = 256


class Bus:
    """Devices at disjoint ranges. The first byte of an access decides which device gets it.

    Nobody there: reads are all ones and writes vanish, as on a bus whose lines float. So it is with the part of an access
    that reaches past the end of its device.
    """

    def __init__(self) -> None:
        self._claims: list[Claim] = []
        self._long: list[Claim] = []
        self._by_address: dict[int, Claim] = {}

    def insert(self, base: int, length: int, device: Device) -> None:
        """`device` answers [base, base + length); ValueError when another one already has a part of it."""
        name, end = type(device).__name__, base + length
        if base < 0 or length <= 0:
            raise ValueError(f"{name} wants {length} bytes at {base:#x}; a range starts at 0 or above and is not empty")
        for other, other_base, other_end in self._claims:
            if base < other_end and other_base < end:
                raise ValueError(
                    f"{name} at {base:#x}-{end - 1:#x} overlaps {type(other).__name__} at {other_base:#x}-{other_end - 1:#x}"
                )
        claim = (device, base, end)
        self._claims.append(claim)
        if length <= SHORT_RANGE_BYTES:
            self._by_address.update(dict.fromkeys(range(base, end), claim))
        else:
            self._long.append(claim)

    def remove(self, base: int) -> None:
        """Take away the device whose range starts at `base`; ValueError when none does."""
        claim = next((claim for claim in self._claims if claim[1] == base), None)
        if claim is None:
            raise ValueError(f"no device starts at {base:#x}")
        self._claims.remove(claim)
        if claim in self._long:
            self._long.remove(claim)
        else:
            for address in range(base, claim[2]):
                del self._by_address[address]

    def read(self, address: int, size: int) -> bytes:
        claim = self._by_address.get(address) or self._find_long(address)
        if claim is None:
            return b"\xff" * size
        device, base, end = claim
        if address + size <= end:
            return device.read(address - base, size)
        return device.read(address - base, end - address).ljust(size, b"\xff")

    def write(self, address: int, data: bytes) -> None:
        claim = self._by_address.get(address) or self._find_long(address)
        if claim is not None:
            device, base, end = claim
            device.write(address - base, data if address + len(data) <= end else data[: end - address])

    def _find_long(self, address: int) -> Claim | None:
        for claim in self._long:
            if claim[1] <= address < claim[2]:
                return claim
        return None
