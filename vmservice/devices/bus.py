"""A bus: which device answers at which address. The machine has two of them, for port I/O and for MMIO.

Each VM exit looks a device up once, so short ranges (all of port I/O) are found by one dictionary access; the few long
ranges of MMIO are scanned.
"""

from __future__ import annotations

import _thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Protocol

    class Device(Protocol):
        """The guest's side of a device. Every offset and size is answered, none raises."""

        def read(self, offset: int, size: int) -> bytes:
            """`size` bytes, little-endian, from `offset` behind the device's base."""

        def write(self, offset: int, data: bytes) -> None: ...

    Claim = tuple[Device, int, int, _thread.LockType]
    """A device, where its range begins and ends, and the lock that is held during each access."""


# Up to here a range is entered address by address.
SHORT_RANGE_BYTES = 256


class Bus:
    """Devices at disjoint ranges. The first byte of an access decides which device gets it.

    Nobody there: reads are all ones and writes vanish, as on a bus whose lines float. So it is with the part of an access
    that reaches past the end of its device.

    Looking up takes no lock: what is looked up in never changes, but is replaced. A device that is removed in that very moment
    may still get an access that was on its way.
    """

    def __init__(self) -> None:
        self._changing = _thread.allocate_lock()
        self._claims: tuple[Claim, ...] = ()
        self.by_address: dict[int, Claim] = {}  # of short ranges; never changed, but replaced
        self._long: tuple[Claim, ...] = ()

    def insert(self, base: int, length: int, device: Device, lock: _thread.LockType) -> None:
        """`device` answers [base, base + length), each time with `lock` held; ValueError when a part of it is taken."""
        name, end = type(device).__name__, base + length
        if base < 0 or length <= 0:
            raise ValueError(f"{name} wants {length} bytes at {base:#x}; a range starts at 0 or above and is not empty")
        with self._changing:
            for other, other_base, other_end, _ in self._claims:
                if base < other_end and other_base < end:
                    raise ValueError(
                        f"{name} at {base:#x}-{end - 1:#x} overlaps {type(other).__name__}"
                        f" at {other_base:#x}-{other_end - 1:#x}"
                    )
            self._replace((*self._claims, (device, base, end, lock)))

    def remove(self, base: int) -> None:
        """Take away the device whose range starts at `base`; ValueError when none does."""
        with self._changing:
            left = tuple(claim for claim in self._claims if claim[1] != base)
            if len(left) == len(self._claims):
                raise ValueError(f"no device starts at {base:#x}")
            self._replace(left)

    def _replace(self, claims: tuple[Claim, ...]) -> None:
        # One store each: whoever looks up meanwhile finds every device that stays.
        self._claims = claims
        self.by_address = dict(_by_address(claim for claim in claims if _is_short(claim)))
        self._long = tuple(claim for claim in claims if not _is_short(claim))

    def find(self, address: int) -> Claim | None:
        """Whose range has `address`."""
        claim = self.by_address.get(address)
        if claim is None:
            for claim in self._long:
                if claim[1] <= address < claim[2]:
                    return claim
            return None
        return claim

    def read(self, address: int, size: int) -> bytes:
        claim = self.find(address)
        if claim is None:
            return b"\xff" * size
        device, base, end, lock = claim
        with lock:
            if address + size <= end:
                return device.read(address - base, size)
            return device.read(address - base, end - address).ljust(size, b"\xff")

    def write(self, address: int, data: bytes) -> None:
        claim = self.find(address)
        if claim is not None:
            device, base, end, lock = claim
            with lock:
                device.write(address - base, data if address + len(data) <= end else data[: end - address])


def _is_short(claim: Claim) -> bool:
    return claim[2] - claim[1] <= SHORT_RANGE_BYTES


def _by_address(claims: Iterable[Claim]) -> Iterable[tuple[int, Claim]]:
    return ((address, claim) for claim in claims for address in range(claim[1], claim[2]))
