"""COM1: a 16550A UART (National Semiconductor PC16550D data sheet), with FIFO, interrupts and loopback.

The line is infinitely fast: what the guest transmits is gone at once, so the transmitter is always empty, and received
characters wait for nothing, so the receive timeout of the FIFO is reported as soon as there is less than the trigger level.
Line format, parity and break have no meaning here; their bits are kept and read back.
"""

from __future__ import annotations

from vmservice.devices.state import DeviceState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.devices.irq import IrqLine

# Registers; with DLAB set, the first two are the divisor latch.
DATA = 0  # RBR when read, THR when written
IER = 1
IIR = 2  # FCR when written
LCR = 3
MCR = 4
LSR = 5
MSR = 6
SCR = 7

# Interrupt enable register
IER_RECEIVED = 0x01
IER_THR_EMPTY = 0x02
IER_LINE_STATUS = 0x04
IER_MODEM_STATUS = 0x08
IER_MASK = 0x0F

# Interrupt identification register
IIR_MODEM_STATUS = 0x00
IIR_NONE = 0x01
IIR_THR_EMPTY = 0x02
IIR_RECEIVED = 0x04
IIR_LINE_STATUS = 0x06
IIR_TIMEOUT = 0x0C
IIR_FIFO_ENABLED = 0xC0

# FIFO control register
FCR_ENABLE = 0x01
FCR_CLEAR_RECEIVER = 0x02
FCR_TRIGGER_SHIFT = 6
TRIGGER_LEVELS = (1, 4, 8, 14)

LCR_DLAB = 0x80

# Modem control register
MCR_DTR = 0x01
MCR_RTS = 0x02
MCR_OUT1 = 0x04
MCR_OUT2 = 0x08
MCR_LOOP = 0x10
MCR_MASK = 0x1F

# Line status register
LSR_DATA_READY = 0x01
LSR_OVERRUN = 0x02
LSR_TRANSMITTER_EMPTY = 0x60  # THRE and TEMT
_READY = bytes((LSR_TRANSMITTER_EMPTY,))
_READY_WITH_DATA = bytes((LSR_TRANSMITTER_EMPTY | LSR_DATA_READY,))

# Modem status register: four inputs, and below them what has changed since the last read
MSR_RI = 0x40
MSR_CONNECTED = 0xB0  # DCD, DSR, CTS: somebody listens
MSR_CHANGED_CTS_DSR_DCD = 0x0B
MSR_TRAILING_EDGE_RI = 0x04

FIFO_BYTES = 16

# 9600 baud. The chip leaves it undefined, but Linux' console without a speed divides by what it finds here.
RESET_DIVISOR = 12


class SerialState(DeviceState):
    """The registers as the chip's reset leaves them (data sheet, table "UART reset configuration").

    `polled`: the guest has read the line status, as a driver does that looks there before each byte.
    """

    __slots__ = (
        "divisor",
        "fcr",
        "ier",
        "lcr",
        "line_errors",
        "mcr",
        "modem_changes",
        "polled",
        "received",
        "scr",
        "thr_empty_pending",
    )

    def __init__(self) -> None:
        self.divisor = RESET_DIVISOR
        self.fcr = 0
        self.ier = 0
        self.lcr = 0
        self.line_errors = 0
        self.mcr = 0
        self.modem_changes = 0
        self.polled = False
        self.received = bytearray()
        self.scr = 0
        self.thr_empty_pending = False


class Serial:
    """A UART at eight ports. `sink` gets what the guest transmits; `line` is high while an enabled interrupt is pending.

    MCR's OUT2 does not gate the interrupt, though it does so on a PC's board: Linux sets it anyway, small guests forget it, and
    the UARTs of other VMMs do without. `on_room` is called when the guest has taken or cleared all that was received, or when
    the receiver is open again after loopback: the moment to offer more. It may call `receive`. `on_polled` is called once, at
    the first read of the line status.
    """

    def __init__(
        self,
        line: IrqLine,
        sink: Callable[[bytes], None],
        state: SerialState | None = None,
        on_room: Callable[[], None] | None = None,
        on_polled: Callable[[], None] | None = None,
    ) -> None:
        self.state = state or SerialState()
        self._line = line
        self._sink = sink
        self._on_room = on_room
        self._on_polled = on_polled
        line.level = self._interrupt_cause() != IIR_NONE  # the interrupt controller's state has it already

    # The host's side

    def receive(self, data: bytes) -> int:
        """Characters for the guest; returns how many of them found room: never more than the FIFO holds."""
        accepted = min(len(data), self._room())
        if accepted:
            self.state.received += data[:accepted]
            self._update_line()
        return accepted

    # The guest's side

    def read(self, offset: int, size: int) -> bytes:
        if size == 1:
            # What nearly every read is: a driver that polls before each byte it transmits.
            state = self.state
            if offset == LSR and state.polled and not state.line_errors:
                return _READY_WITH_DATA if state.received else _READY
            return bytes((self._read_register(offset),))
        return bytes([self._read_register(register) for register in range(offset, offset + size)])

    def write(self, offset: int, data: bytes) -> None:
        """The ISA bus takes a wide access apart into bytes for consecutive ports."""
        state = self.state
        # What nearly every write is, and the path of each byte of a console: kept short.
        if offset == DATA and len(data) == 1 and not (state.lcr & LCR_DLAB or state.mcr & MCR_LOOP):
            self._sink(data)
            state.thr_empty_pending = True
            if state.ier:
                self._update_line()
            return
        for register, value in enumerate(data, offset):
            self._write_register(register, value)

    def write_burst(self, data: bytes) -> None:
        """The same as `write(0, byte)` for each byte in turn, but `sink` is called once."""
        state = self.state
        if state.lcr & LCR_DLAB or state.mcr & MCR_LOOP:
            for value in data:
                self._write_register(DATA, value)
        elif data:
            self._sink(data)
            self._transmitted()

    def _read_register(self, register: int) -> int:
        state = self.state
        if register == LSR:
            return self._read_line_status()
        if register in (DATA, IER) and state.lcr & LCR_DLAB:
            return state.divisor >> 8 * register & 0xFF
        if register == DATA:
            return self._read_received()
        if register == IER:
            return state.ier
        if register == IIR:
            return self._read_interrupt_identification()
        if register == LCR:
            return state.lcr
        if register == MCR:
            return state.mcr
        if register == MSR:
            return self._read_modem_status()
        return state.scr if register == SCR else 0xFF

    def _write_register(self, register: int, value: int) -> None:
        state = self.state
        if register in (DATA, IER) and state.lcr & LCR_DLAB:
            shift = 8 * register
            state.divisor = state.divisor & ~(0xFF << shift) | value << shift
        elif register == DATA:
            self._transmit(value)
        elif register == IER:
            self._write_interrupt_enable(value)
        elif register == IIR:
            self._write_fifo_control(value)
        elif register == LCR:
            state.lcr = value
        elif register == MCR:
            self._write_modem_control(value)
        elif register == SCR:
            state.scr = value

    # Transmitter and receiver

    def _transmit(self, value: int) -> None:
        if self.state.mcr & MCR_LOOP:
            self._loop_back(value)
        else:
            self._sink(bytes((value,)))
        self._transmitted()

    def _transmitted(self) -> None:
        # A write to THR takes the interrupt back, and the character is gone at once: THR is empty anew.
        self.state.thr_empty_pending = True
        if self.state.ier:
            self._update_line()

    def _loop_back(self, value: int) -> None:
        state = self.state
        if len(state.received) >= self._depth():
            state.line_errors |= LSR_OVERRUN
            if state.fcr & FCR_ENABLE:
                return  # the FIFO stays as it is, the character is lost
            state.received.clear()  # without FIFO the new character replaces the old one
        state.received.append(value)

    def _depth(self) -> int:
        return FIFO_BYTES if self.state.fcr & FCR_ENABLE else 1

    def _room(self) -> int:
        # In loopback the receiver is cut off from the line; what the host has to say waits.
        return 0 if self.state.mcr & MCR_LOOP else max(0, self._depth() - len(self.state.received))

    def _read_received(self) -> int:
        received = self.state.received
        if not received:
            return 0
        value = received.pop(0)
        self._update_line()
        if not received:
            self._tell_room()
        return value

    def _tell_room(self) -> None:
        if self._on_room is not None and self._room():
            self._on_room()

    # Status and control

    def _read_line_status(self) -> int:
        state = self.state
        if not state.polled:
            state.polled = True
            if self._on_polled is not None:
                self._on_polled()
        value = LSR_TRANSMITTER_EMPTY | state.line_errors
        if state.received:
            value |= LSR_DATA_READY
        if state.line_errors:
            state.line_errors = 0
            self._update_line()
        return value

    def _modem_inputs(self) -> int:
        # In loopback the four outputs are wired to the four inputs: DTR to DSR, RTS to CTS, OUT1 to RI, OUT2 to DCD.
        mcr = self.state.mcr
        if mcr & MCR_LOOP:
            return (mcr & MCR_DTR) << 5 | (mcr & MCR_RTS) << 3 | (mcr & (MCR_OUT1 | MCR_OUT2)) << 4
        return MSR_CONNECTED

    def _read_modem_status(self) -> int:
        value = self._modem_inputs() | self.state.modem_changes
        self.state.modem_changes = 0
        self._update_line()
        return value

    def _write_modem_control(self, value: int) -> None:
        state, before = self.state, self._modem_inputs()
        left_loopback = state.mcr & MCR_LOOP and not value & MCR_LOOP
        state.mcr = value & MCR_MASK
        now = self._modem_inputs()
        state.modem_changes |= (before ^ now) >> 4 & MSR_CHANGED_CTS_DSR_DCD
        if before & ~now & MSR_RI:
            state.modem_changes |= MSR_TRAILING_EDGE_RI
        self._update_line()
        if left_loopback:
            self._tell_room()

    def _write_fifo_control(self, value: int) -> None:
        state = self.state
        # Switching the FIFO on or off empties it; the other bits count only together with the enable bit.
        clear = (value ^ state.fcr) & FCR_ENABLE or (value & FCR_ENABLE and value & FCR_CLEAR_RECEIVER)
        state.fcr = value & (FCR_ENABLE | 3 << FCR_TRIGGER_SHIFT) if value & FCR_ENABLE else 0
        if clear:
            state.received.clear()
        self._update_line()
        if clear:
            self._tell_room()

    # Interrupts

    def _write_interrupt_enable(self, value: int) -> None:
        # THR is always empty, so enabling its interrupt raises it: Linux' serial8250_do_startup() tests for that twice.
        if value & ~self.state.ier & IER_THR_EMPTY:
            self.state.thr_empty_pending = True
        self.state.ier = value & IER_MASK
        self._update_line()

    def _read_interrupt_identification(self) -> int:
        cause = self._interrupt_cause()
        if cause == IIR_THR_EMPTY:
            self.state.thr_empty_pending = False
            self._update_line()
        return cause | IIR_FIFO_ENABLED if self.state.fcr & FCR_ENABLE else cause

    def _interrupt_cause(self) -> int:
        # By falling priority (data sheet, table "Interrupt control functions").
        state, enabled = self.state, self.state.ier
        if enabled & IER_LINE_STATUS and state.line_errors:
            return IIR_LINE_STATUS
        if enabled & IER_RECEIVED and state.received:
            if state.fcr & FCR_ENABLE and len(state.received) < TRIGGER_LEVELS[state.fcr >> FCR_TRIGGER_SHIFT]:
                return IIR_TIMEOUT
            return IIR_RECEIVED
        if enabled & IER_THR_EMPTY and state.thr_empty_pending:
            return IIR_THR_EMPTY
        if enabled & IER_MODEM_STATUS and state.modem_changes:
            return IIR_MODEM_STATUS
        return IIR_NONE

    def _update_line(self) -> None:
        self._line.set(self._interrupt_cause() != IIR_NONE)
