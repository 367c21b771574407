"""The I/O APIC in user space: an Intel 82093AA (data sheet 290566) whose messages KVM's local APICs get as MSIs.

Used with KVM_CAP_SPLIT_IRQCHIP. A redirection entry of 64 bits:

    bits 0-7    vector                              bit 13   polarity
    bits 8-10   delivery mode                       bit 14   remote IRR, read-only: a level interrupt is being served
    bit  11     destination mode, 1 = logical       bit 15   trigger mode, 1 = level
    bit  12     delivery status, read-only, always  bit 16   mask
                0: a message is sent at once        56-63    destination, eight bits in either mode

Polarity is kept and read back but means nothing: what reaches `set_line` is whether a device asserts its line, not a voltage,
and the ACPI tables describe each line as the device has it.
"""

from __future__ import annotations

import _thread

from vmservice.devices.state import DeviceState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Message = tuple[int, int]

PINS = 24

# MMIO: an index and a window
REGISTER_SELECT = 0x00
WINDOW = 0x10

# Indirect registers
ID = 0x00
VERSION = 0x01
ARBITRATION = 0x02
REDIRECTION = 0x10

# Version 0x11 and the highest entry, 23. This version has no EOI register at offset 0x40 (0x20 and later do): an EOI comes from
# the local APIC as KVM_EXIT_IOAPIC_EOI, or is simulated by a driver that makes the entry edge-triggered for a moment.
VERSION_VALUE = 0x11 | (PINS - 1) << 16
ID_MASK = 0x0F << 24

# Redirection entry
VECTOR_MASK = 0xFF
DELIVERY_MODE_MASK = 7 << 8
DELIVERY_FIXED = 0 << 8
DELIVERY_LOWEST_PRIORITY = 1 << 8
LOGICAL = 1 << 11
REMOTE_IRR = 1 << 14
LEVEL = 1 << 15
MASKED = 1 << 16
DESTINATION_SHIFT = 56
READ_ONLY = 1 << 12 | REMOTE_IRR
WRITABLE = (0xFF << DESTINATION_SHIFT | 0x1FFFF) & ~READ_ONLY

# A message to a local APIC (Intel SDM volume 3, "Message Signalled Interrupts"). Vector, delivery mode and trigger mode have
# the same bits in the data as in the entry. The redirection hint stays clear: with it KVM would take any logical destination
# for lowest priority and reach one vCPU of several.
MSI_ADDRESS = 0xFEE00000
MSI_DESTINATION_SHIFT = 12
MSI_LOGICAL = 1 << 2
MSI_ASSERT = 1 << 14


def _ignore() -> None:
    """Nobody wants to know."""


class IoApicState(DeviceState):
    """`lines` and `pending` are bit sets over the pins: inputs that are high, edges that wait behind a mask.

    Every entry is masked at reset. (Cloud Hypervisor of December 2019 had them open, with vector 0.)
    """

    __slots__ = ("identity", "lines", "pending", "redirection", "select")

    def __init__(self) -> None:
        self.identity = 0
        self.lines = 0
        self.pending = 0
        self.redirection = [MASKED] * PINS
        self.select = 0


class IoApic:
    """`send_msi(address, data)` delivers a message; more than 0 says that a local APIC has it.

    `lock` is taken by the host's side itself, and to be held during the guest's accesses: devices with locks of their own
    raise their lines at the same time. Neither `send_msi` nor `on_routes_changed` may come back here.

    `on_routes_changed` is called when `routes()` has changed, before any interrupt goes out by the new route: KVM makes
    EOI exits only for the level-triggered vectors in its routing table, so the table must be in place by then.
    """

    def __init__(
        self,
        send_msi: Callable[[int, int], int],
        state: IoApicState | None = None,
        on_routes_changed: Callable[[], None] = _ignore,
    ) -> None:
        self.lock = _thread.allocate_lock()
        self.state = state or IoApicState()
        self._send_msi = send_msi
        self._on_routes_changed = on_routes_changed

    # The host's side

    def start(self) -> None:
        """Tell of the routes that a state has brought along: without them no EOI of a level interrupt would ever come."""
        with self.lock:
            if any(_route(entry) is not None for entry in self.state.redirection):
                self._on_routes_changed()

    def set_line(self, pin: int, level: bool) -> None:
        """An input changes, or is said again to be what it was."""
        state, bit = self.state, 1 << pin
        with self.lock:
            rising = level and not state.lines & bit
            state.lines = state.lines | bit if level else state.lines & ~bit
            if _is_level(state.redirection[pin]):
                self._deliver_level(pin)
            elif rising:
                state.pending |= bit
                self._deliver_edge(pin)

    def end_of_interrupt(self, vector: int) -> None:
        """A local APIC has finished `vector` (KVM_EXIT_IOAPIC_EOI). A line that is still high interrupts again."""
        with self.lock:
            for pin, entry in enumerate(self.state.redirection):
                if entry & REMOTE_IRR and entry & VECTOR_MASK == vector:
                    self._change(pin, entry & ~REMOTE_IRR)
                    self._deliver_level(pin)

    def routes(self) -> list[Message | None]:
        """For each pin the message (address, data) that it sends, or None while it can send none.

        An entry that is masked while its level interrupt is being served stays in the list: without it KVM would make no
        exit for the EOI that is still to come, and the pin would be dead for good.
        """
        return [_route(entry) for entry in self.state.redirection]

    # The guest's side

    def read(self, offset: int, size: int) -> bytes:
        """Any width is answered from the 32 bits of the register, cut or filled up with zeros."""
        value = 0
        if offset == REGISTER_SELECT:
            value = self.state.select
        elif offset == WINDOW:
            value = self._read_register(self.state.select)
        return value.to_bytes(max(size, 4), "little")[:size]

    def write(self, offset: int, data: bytes) -> None:
        """Any width is taken; a narrow one is filled up with zeros."""
        value = int.from_bytes(data[:4], "little")
        if offset == REGISTER_SELECT:
            self.state.select = value & 0xFF
        elif offset == WINDOW:
            self._write_register(self.state.select, value)

    def _read_register(self, register: int) -> int:
        if register in (ID, ARBITRATION):
            return self.state.identity  # the arbitration id is loaded with each write of the id, and nobody arbitrates here
        if register == VERSION:
            return VERSION_VALUE
        pin, high = divmod(register - REDIRECTION, 2)
        if 0 <= pin < PINS:
            return self.state.redirection[pin] >> (32 if high else 0) & 0xFFFFFFFF
        return 0

    def _write_register(self, register: int, value: int) -> None:
        if register == ID:
            self.state.identity = value & ID_MASK
        pin, high = divmod(register - REDIRECTION, 2)
        if 0 <= pin < PINS:
            entry = self.state.redirection[pin]
            entry = entry & 0xFFFFFFFF | value << 32 if high else entry & ~0xFFFFFFFF | value
            self._write_entry(pin, entry & WRITABLE | self.state.redirection[pin] & READ_ONLY)

    def _write_entry(self, pin: int, entry: int) -> None:
        if _is_level(entry):
            # A level input has no memory: what counts is the line now.
            self.state.pending &= ~(1 << pin)
        else:
            # Linux makes an entry edge-triggered for a moment to end an interrupt on an I/O APIC without EOI register.
            entry &= ~REMOTE_IRR
        self._change(pin, entry)
        if _is_level(entry):
            self._deliver_level(pin)
        else:
            self._deliver_edge(pin)

    # Delivery

    def _change(self, pin: int, entry: int) -> None:
        before = _route(self.state.redirection[pin])
        self.state.redirection[pin] = entry
        if _route(entry) != before:
            self._on_routes_changed()

    def _deliver_edge(self, pin: int) -> None:
        # An edge behind a mask waits until the mask is gone. The chip loses it, and a device that speaks once is never heard.
        entry, bit = self.state.redirection[pin], 1 << pin
        if self.state.pending & bit and not entry & MASKED:
            self.state.pending &= ~bit
            self._send_msi(*_message(entry))

    def _deliver_level(self, pin: int) -> None:
        entry = self.state.redirection[pin]
        if not self.state.lines >> pin & 1 or entry & (MASKED | REMOTE_IRR):
            return
        # Remote IRR says that a local APIC has accepted the interrupt, whose EOI clears it (data sheet, §3.2.4). What none
        # has accepted is sent again with the next change of the line or of the entry.
        if self._send_msi(*_message(entry)) > 0:
            self.state.redirection[pin] = entry | REMOTE_IRR


def _is_level(entry: int) -> bool:
    # SMI, NMI, INIT and ExtINT are edges whatever the trigger mode says (data sheet, §3.2.4, delivery mode).
    return bool(entry & LEVEL) and entry & DELIVERY_MODE_MASK in (DELIVERY_FIXED, DELIVERY_LOWEST_PRIORITY)


def _route(entry: int) -> Message | None:
    return None if entry & MASKED and not entry & REMOTE_IRR else _message(entry)


def _message(entry: int) -> Message:
    address = MSI_ADDRESS | (entry >> DESTINATION_SHIFT & 0xFF) << MSI_DESTINATION_SHIFT
    if entry & LOGICAL:
        address |= MSI_LOGICAL
    data = MSI_ASSERT | entry & (VECTOR_MASK | DELIVERY_MODE_MASK)
    return address, data | LEVEL if _is_level(entry) else data
