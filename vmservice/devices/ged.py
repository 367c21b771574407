"""The event register behind ACPI's generic event device (ACPI 6.5 §5.6.9): one byte of event bits and one interrupt.

The host side sets bits and pulses the line; the guest's `_EVT` method reads the byte, which clears it, and acts on each bit.
"""

from __future__ import annotations

from vmservice.devices.state import DeviceState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.devices.irq import IrqLine

EVENTS = 0

CPU = 1
MEMORY = 2
PCI = 4
POWER_BUTTON = 8
ALL_EVENTS = CPU | MEMORY | PCI | POWER_BUTTON


class GenericEventsState(DeviceState):
    __slots__ = ("pending",)

    def __init__(self) -> None:
        self.pending = 0


class GenericEvents:
    """`line` leads to an edge-triggered pin.

    No event is lost: bits gather until the guest reads them, and a bit that comes after the read comes with an edge of its
    own. (Cloud Hypervisor of December 2019 kept a single number, so the second event replaced the first.)
    """

    def __init__(self, line: IrqLine, state: GenericEventsState | None = None) -> None:
        self.state = state or GenericEventsState()
        self._line = line

    def raise_event(self, bits: int) -> None:
        """Tell the guest of one or more events."""
        if not bits or bits & ~ALL_EVENTS:
            raise ValueError(f"event bits {bits:#x} are not among those of the event register, {ALL_EVENTS:#x}")
        self.state.pending |= bits
        self._line.pulse()

    def read(self, offset: int, size: int) -> bytes:
        if offset != EVENTS or not size:
            return bytes(size)
        pending, self.state.pending = self.state.pending, 0
        return pending.to_bytes(size, "little")

    def write(self, offset: int, data: bytes) -> None:
        """The register is read-only."""
