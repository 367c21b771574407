"""The bytes of one function's configuration space, and what a write may change in each of them (PCI Local Bus 3.0 §6.1).

Every bit is one of: read-only, read-write, or cleared by writing a one to it. What the bits mean is not known here, except
for the capability list, which is the same in every function (§6.7).
"""

from __future__ import annotations

from vmservice.devices.state import DeviceState

CONVENTIONAL_SIZE = 256

STATUS = 0x06
STATUS_CAPABILITY_LIST = 1 << 4
CAPABILITIES_POINTER = 0x34
# The header of 64 bytes ends here, and each capability begins on a 4-byte boundary.
_FIRST_CAPABILITY = 0x40
_CAPABILITY_ALIGNMENT = 4
_NEXT = 1  # offset in a capability: where the next one is


class ConfigSpaceState(DeviceState):
    """All bytes as the guest reads them."""

    __slots__ = ("data",)

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)


class ConfigSpace:
    """`size` bytes, 256 or 4096, all 0 and read-only until `preset` and `allow` say otherwise.

    A space that goes on from a `state` is built by the same calls, which then only lay the masks: its bytes stay.
    """

    def __init__(self, size: int = CONVENTIONAL_SIZE, state: ConfigSpaceState | None = None) -> None:
        self.size = size
        self.state = state or ConfigSpaceState(size)
        self._is_new = state is None
        self._writable = bytearray(size)
        self._clearable = bytearray(size)
        self._last_capability = CAPABILITIES_POINTER - _NEXT  # whose "next" is the header's pointer
        self._free = _FIRST_CAPABILITY

    # The builder's side

    def preset(self, offset: int, value: int, size: int) -> None:
        """What the guest finds: `value` in `size` bytes, little-endian."""
        if self._is_new:
            self.store(offset, value, size)

    def allow(self, offset: int, mask: int, size: int) -> None:
        """The bits of `mask` in `size` bytes at `offset` take what the guest writes."""
        self._writable[offset : offset + size] = mask.to_bytes(size, "little")

    def allow_clear(self, offset: int, mask: int, size: int) -> None:
        """The bits of `mask` in `size` bytes at `offset` become 0 when the guest writes 1, and stay when it writes 0."""
        self._clearable[offset : offset + size] = mask.to_bytes(size, "little")

    def add_capability(self, identifier: int, body: bytes) -> int:
        """`body` is what follows the capability's id and next pointer; the offset of the id. Behind the last capability.

        ValueError when the 256 bytes that pointers of one byte can reach are full.
        """
        offset, end = self._free, self._free + 2 + len(body)
        if end > CONVENTIONAL_SIZE:
            raise ValueError(f"the capability {identifier:#x} would end at {end:#x}: the list ends at {CONVENTIONAL_SIZE:#x}")
        self.preset(offset, int.from_bytes(bytes((identifier, 0)) + body, "little"), end - offset)
        self.preset(self._last_capability + _NEXT, offset, 1)
        self.preset(STATUS, self.value(STATUS, 2) | STATUS_CAPABILITY_LIST, 2)
        self._last_capability = offset
        self._free = end + -end % _CAPABILITY_ALIGNMENT
        return offset

    def value(self, offset: int, size: int) -> int:
        """`size` bytes at `offset` as they are, little-endian."""
        return int.from_bytes(self.state.data[offset : offset + size], "little")

    def store(self, offset: int, value: int, size: int) -> None:
        """Replace `size` bytes; masks do not count."""
        self.state.data[offset : offset + size] = value.to_bytes(size, "little")

    # The guest's side

    def read(self, offset: int, size: int) -> bytes:
        """Any width at any offset; beyond the end there is nothing, which reads as all ones."""
        return bytes(self.state.data[offset : offset + size]).ljust(size, b"\xff")

    def write(self, offset: int, data: bytes) -> None:
        """Any width at any offset; what is read-only or beyond the end stays."""
        end = min(offset + len(data), self.size)
        size = end - offset
        if size <= 0:
            return
        written = int.from_bytes(data[:size], "little")
        writable = int.from_bytes(self._writable[offset:end], "little")
        cleared = int.from_bytes(self._clearable[offset:end], "little") & written
        value = self.value(offset, size) & ~writable | written & writable
        self.store(offset, value & ~cleared, size)
