"""MSI-X (PCI Local Bus 3.0 §6.8.2): a table of messages that the guest fills, and a bit for each one that waits.

An entry of the table, 16 bytes: message address (64 bits), message data (32), vector control (32), whose bit 0 masks it and
whose other bits are reserved. A vector that is masked, by its entry or for the whole function, waits in the pending bit array
(PBA) and goes out when the mask is gone.
"""

from __future__ import annotations

import struct

from vmservice.devices.state import DeviceState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.devices.pci.config_space import ConfigSpace

    Route = tuple[int, int, bool]

CAPABILITY_ID = 0x11

# Offset in the capability
MESSAGE_CONTROL = 2

CONTROL_FUNCTION_MASK = 1 << 14
CONTROL_ENABLE = 1 << 15

MAX_VECTORS = 2048

_ENTRY = struct.Struct("<QII")
ENTRY_SIZE = _ENTRY.size
_VECTOR_CONTROL = 12  # offset in an entry
_VECTOR_MASKED = 1 << 0
# Reserved bits of vector control must read as what they are after reset, 0 (§6.8.2.9).
_RESERVED_BYTES = frozenset(range(_VECTOR_CONTROL + 1, ENTRY_SIZE))

_NO_ROUTE = (0, 0, True)


def pending_size(vectors: int) -> int:
    """Bytes of the PBA: a bit a vector, in units of 64 bits (§6.8.2.10)."""
    return (vectors + 63) // 64 * 8


class MsixState(DeviceState):
    """`pending` is a bit set over the vectors. Every entry is masked at reset (§6.8.2.9)."""

    __slots__ = ("pending", "table")

    def __init__(self, vectors: int) -> None:
        self.table = bytearray(_ENTRY.pack(0, 0, _VECTOR_MASKED) * vectors)
        self.pending = 0


class Msix:
    """The capability, the table and the PBA of `vectors` vectors, 1 to 2048.

    `table` and `pending_bits` are (BAR index, offset in it), where the owner of the BAR calls `read_table`, `write_table` and
    `read_pending`. After each write to the configuration space it calls `config_written`.

    `signal(vector)` sends the vector's message (`message`) now. `on_route_changed(vector, address, data, masked)` tells each
    change of what a vector would send; `masked` counts the entry's own mask, the function's, that MSI-X is off, and that the
    function must not write to memory. It comes before a message goes out by the new route. At first every vector is masked.
    `take_waiting(vector)`, where interrupts also come by eventfds, is whether one waits behind a mask, which is then forgotten.
    Constructing tells nothing; the first `config_written` tells how things stand in the state.
    """

    def __init__(
        self,
        config: ConfigSpace,
        vectors: int,
        *,
        table: tuple[int, int],
        pending_bits: tuple[int, int],
        signal: Callable[[int], None],
        on_route_changed: Callable[[int, int, int, bool], None],
        bus_master: bool = True,
        take_waiting: Callable[[int], bool] | None = None,
        state: MsixState | None = None,
    ) -> None:
        if not 1 <= vectors <= MAX_VECTORS:
            raise ValueError(f"{vectors} MSI-X vectors: 1 to {MAX_VECTORS} are possible")
        self.vectors = vectors
        self.state = state or MsixState(vectors)
        self._config = config
        self._signal = signal
        self._on_route_changed = on_route_changed
        self._take_waiting = take_waiting
        places = (offset | bar for bar, offset in (table, pending_bits))  # offsets are multiples of 8
        self.capability = config.add_capability(CAPABILITY_ID, struct.pack("<HII", vectors - 1, *places))
        self._control_offset = self.capability + MESSAGE_CONTROL
        config.allow(self._control_offset, CONTROL_ENABLE | CONTROL_FUNCTION_MASK, 2)
        self._control = 0  # message control as it was last acted on
        self._may_write = bus_master
        self._told: list[Route] = [_NO_ROUTE] * vectors

    # The device's side

    @property
    def enabled(self) -> bool:
        return bool(self._control & CONTROL_ENABLE)

    def message(self, vector: int) -> tuple[int, int]:
        """The vector's address and data."""
        address, data, _ = _ENTRY.unpack_from(self.state.table, vector * ENTRY_SIZE)
        return address, data

    def interrupt(self, vector: int) -> None:
        """Send the vector's message, or let it wait behind a mask. With MSI-X off it is lost: there is no other way out."""
        if not self.enabled:
            return
        if self._is_masked(vector):
            self.state.pending |= 1 << vector
        else:
            self._signal(vector)

    def clear_pending(self) -> None:
        """The reasons for all waiting interrupts are gone, as when the device is reset."""
        self.gather_waiting()
        self.state.pending = 0

    def set_bus_master(self, allowed: bool) -> None:
        """Whether messages may go out: they are writes to memory. Until then they wait, as behind a mask."""
        if allowed != self._may_write:
            self._may_write = allowed
            self._update_all()

    def gather_waiting(self) -> None:
        """Note in the state what waits behind a mask in an eventfd."""
        if self._take_waiting is not None:
            for vector in range(self.vectors):
                if self._take_waiting(vector):
                    self.state.pending |= 1 << vector

    # The guest's side

    def config_written(self) -> None:
        """The guest wrote to the configuration space: take over a new message control."""
        control = self._config.value(self._control_offset, 2)
        if control == self._control:
            return
        self._control = control
        if not self.enabled:
            self.clear_pending()
        self._update_all()

    def read_table(self, offset: int, size: int) -> bytes:
        return bytes(self.state.table[offset : offset + size]).ljust(size, b"\0")

    def write_table(self, offset: int, data: bytes) -> None:
        """Any width: the specification knows 4 and 8 aligned bytes, of which this is what every part of them means."""
        table = self.state.table
        data = data[: max(len(table) - offset, 0)]
        for position, value in enumerate(data, offset):
            within = position % ENTRY_SIZE
            if within == _VECTOR_CONTROL:
                table[position] = value & _VECTOR_MASKED
            elif within not in _RESERVED_BYTES:
                table[position] = value
        if data:
            for vector in range(offset // ENTRY_SIZE, (offset + len(data) - 1) // ENTRY_SIZE + 1):
                self._update(vector)

    def read_pending(self, offset: int, size: int) -> bytes:
        """The PBA is read-only."""
        self.gather_waiting()
        bits = self.state.pending.to_bytes(pending_size(self.vectors), "little")
        return bits[offset : offset + size].ljust(size, b"\0")

    # Within

    def _is_masked(self, vector: int) -> bool:
        if self._control & (CONTROL_ENABLE | CONTROL_FUNCTION_MASK) != CONTROL_ENABLE or not self._may_write:
            return True
        return bool(self.state.table[vector * ENTRY_SIZE + _VECTOR_CONTROL] & _VECTOR_MASKED)

    def _update_all(self) -> None:
        for vector in range(self.vectors):
            self._update(vector)

    def _update(self, vector: int) -> None:
        """Tell a changed route, and send what waited for the mask to go."""
        masked = self._is_masked(vector)
        route = (*self.message(vector), masked)
        if route != self._told[vector]:
            self._told[vector] = route
            self._on_route_changed(vector, *route)
        if not masked and self.state.pending >> vector & 1:
            self.state.pending &= ~(1 << vector)
            self._signal(vector)
