"""The 16550A as Linux' 8250 driver meets it: detection, FIFO, interrupts by priority, loopback, the burst path."""

from __future__ import annotations

import random

import pytest

from vmservice.devices.irq import IrqLine
from vmservice.devices.serial import IER, IIR, LCR, LSR, MCR, MSR, SCR, Serial, SerialState

DATA, FCR = 0, 2


class Rig:
    """A UART with what came out of it and every level that its line had."""

    def __init__(self, state: SerialState | None = None) -> None:
        self.out = bytearray()
        self.writes: list[bytes] = []
        self.levels: list[bool] = []
        self.line = IrqLine(self.levels.append)
        self.room_calls = 0
        self.uart = Serial(self.line, self._sink, state=state, on_room=self._room)

    def _sink(self, data: bytes) -> None:
        self.writes.append(data)
        self.out += data

    def _room(self) -> None:
        self.room_calls += 1

    def get(self, register: int) -> int:
        return self.uart.read(register, 1)[0]

    def put(self, register: int, value: int) -> None:
        self.uart.write(register, bytes((value,)))

    @property
    def edges(self) -> int:
        return self.levels.count(True)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_registers_after_reset(rig: Rig) -> None:
    assert [rig.get(register) for register in range(8)] == [0, 0, 0x01, 0, 0, 0x60, 0xB0, 0]
    assert rig.levels == []


def test_the_divisor_after_reset_is_not_zero(rig: Rig) -> None:
    """Linux' probe_baud() divides by it."""
    rig.put(LCR, 0x80)
    assert (rig.get(0), rig.get(1)) == (12, 0)


def test_what_is_transmitted_reaches_the_sink_and_the_transmitter_stays_empty(rig: Rig) -> None:
    for value in b"hi\n\x00\xff":
        rig.put(DATA, value)
        assert rig.get(LSR) == 0x60
    assert rig.out == b"hi\n\x00\xff"


def test_dlab_turns_the_first_two_registers_into_the_divisor(rig: Rig) -> None:
    rig.put(IER, 0x05)
    rig.put(LCR, 0x83)
    rig.put(0, 0x34)
    rig.put(1, 0x12)
    assert (rig.get(0), rig.get(1)) == (0x34, 0x12)
    assert rig.uart.state.divisor == 0x1234
    rig.put(LCR, 0x03)
    assert rig.get(IER) == 0x05
    assert rig.out == b""


def test_registers_that_are_kept(rig: Rig) -> None:
    for register, written, kept in ((IER, 0xFF, 0x0F), (LCR, 0x7F, 0x7F), (MCR, 0xFF, 0x1F), (SCR, 0xA5, 0xA5)):
        rig.put(register, written)
        assert rig.get(register) == kept


def test_status_registers_are_read_only(rig: Rig) -> None:
    rig.put(LSR, 0x00)
    rig.put(MSR, 0xFF)
    assert rig.get(LSR) == 0x60
    assert rig.get(MSR) == 0xB0


# Access size. Cloud Hypervisor (December 2019) ignored every access that was not one byte.


def test_a_wide_access_goes_byte_by_byte_to_consecutive_registers(rig: Rig) -> None:
    rig.put(LCR, 0x80)
    rig.uart.write(0, b"\x01\x00\x01\x03")  # DLL, DLM, FCR, LCR: which ends DLAB
    assert rig.uart.state.divisor == 1
    assert rig.uart.state.fcr == 1
    assert rig.get(LCR) == 0x03
    rig.uart.receive(b"A")
    assert rig.uart.read(4, 4) == bytes((0x00, 0x61, 0xB0, 0x00))
    assert rig.uart.read(0, 2) == b"A\x00"
    assert rig.uart.read(7, 4) == b"\x00\xff\xff\xff"


# FIFO. Cloud Hypervisor (December 2019) ignored FCR.


def test_the_fifo_enable_bit_shows_in_iir(rig: Rig) -> None:
    rig.put(FCR, 0x01)
    assert rig.get(IIR) == 0xC1
    rig.put(FCR, 0x00)
    assert rig.get(IIR) == 0x01


def test_sixteen_bytes_are_accepted_with_fifo_and_one_without(rig: Rig) -> None:
    assert rig.uart.receive(b"abc") == 1
    assert rig.uart.receive(b"bc") == 0
    assert rig.get(DATA) == ord("a")
    rig.put(FCR, 0x01)
    assert rig.uart.receive(bytes(range(40))) == 16
    assert rig.get(LSR) == 0x61
    assert [rig.get(DATA) for _ in range(16)] == list(range(16))
    assert rig.get(LSR) == 0x60
    assert rig.get(DATA) == 0


@pytest.mark.parametrize(("value", "left"), [(0x03, 0), (0x05, 3), (0x02, 0), (0x00, 0), (0x01, 3)])
def test_fcr_clears_the_receiver_by_its_bit_and_when_the_fifo_is_switched(rig: Rig, value: int, left: int) -> None:
    rig.put(FCR, 0x01)
    rig.uart.receive(b"abc")
    rig.put(FCR, value)
    assert len(rig.uart.state.received) == left
    assert rig.get(LSR) & 1 == (1 if left else 0)


def test_the_clear_bit_counts_only_with_the_enable_bit(rig: Rig) -> None:
    rig.uart.receive(b"a")
    rig.put(FCR, 0x02)
    assert rig.get(DATA) == ord("a")


def test_the_host_hears_when_the_guest_has_taken_all(rig: Rig) -> None:
    rig.put(FCR, 0x01)
    assert rig.room_calls == 1  # switching the FIFO on emptied it
    rig.room_calls = 0
    rig.uart.receive(b"ab")
    rig.get(DATA)
    assert rig.room_calls == 0
    rig.get(DATA)
    assert rig.room_calls == 1
    rig.get(DATA)
    assert rig.room_calls == 1


def test_the_host_may_refill_from_within_the_call() -> None:
    waiting = bytearray(b"cdef")

    def refill() -> None:
        del waiting[: uart.receive(bytes(waiting))]

    uart = Serial(IrqLine(lambda level: None), lambda data: None, on_room=refill)
    uart.receive(b"b")
    assert bytes(uart.read(0, 1)[0] for _ in range(5)) == b"bcdef"


# Interrupts


@pytest.mark.parametrize(("fcr", "trigger"), [(0x01, 1), (0x41, 4), (0x81, 8), (0xC1, 14)])
def test_the_trigger_level_parts_received_data_from_timeout(rig: Rig, fcr: int, trigger: int) -> None:
    rig.put(FCR, fcr)
    rig.put(IER, 0x01)
    for count in range(1, 17):
        rig.uart.receive(b"x")
        assert rig.get(IIR) == (0xC4 if count >= trigger else 0xCC)
        assert rig.line.level
    for count in range(15, -1, -1):
        rig.get(DATA)
        assert rig.get(IIR) == (0xC1 if count == 0 else 0xC4 if count >= trigger else 0xCC)
    assert rig.levels == [True, False]


def test_received_data_interrupts_only_when_enabled(rig: Rig) -> None:
    rig.uart.receive(b"x")
    assert rig.get(IIR) == 0x01
    assert rig.levels == []
    rig.put(IER, 0x01)
    assert rig.get(IIR) == 0x04
    rig.put(IER, 0x00)
    assert rig.levels == [True, False]


def test_clearing_the_fifo_takes_the_interrupt_back(rig: Rig) -> None:
    rig.put(FCR, 0x01)
    rig.put(IER, 0x01)
    rig.uart.receive(b"x")
    rig.put(FCR, 0x03)
    assert rig.levels == [True, False]


def test_each_cause_yields_to_the_one_above(rig: Rig) -> None:
    rig.put(FCR, 0x01)
    rig.put(MCR, 0x10)  # loopback takes the modem inputs away: modem status
    for value in range(17):  # one more than fits: line status; and received data
        rig.put(DATA, value)
    rig.put(IER, 0x0F)  # and THR empty
    assert rig.get(IIR) == 0xC6
    assert rig.get(LSR) == 0x63
    assert rig.get(IIR) == 0xC4
    rig.put(FCR, 0x03)
    assert rig.get(IIR) == 0xC2
    assert rig.get(IIR) == 0xC0
    assert rig.get(MSR) == 0x0B
    assert rig.get(IIR) == 0xC1
    assert rig.levels == [True, False]


def test_line_status_interrupts_until_lsr_is_read(rig: Rig) -> None:
    rig.put(MCR, 0x10)
    rig.put(DATA, 1)
    rig.put(DATA, 2)  # overrun
    assert rig.get(IIR) == 0x01
    rig.put(IER, 0x04)
    assert rig.get(IIR) == 0x06
    assert rig.line.level
    assert rig.get(LSR) == 0x63
    assert not rig.line.level
    assert rig.get(IIR) == 0x01


def test_an_overrun_raises_the_line_at_once(rig: Rig) -> None:
    rig.put(MCR, 0x10)
    rig.put(IER, 0x04)
    rig.put(DATA, 1)
    assert rig.levels == []
    rig.put(DATA, 2)
    assert rig.levels == [True]


def test_modem_status_interrupts_until_msr_is_read(rig: Rig) -> None:
    rig.put(IER, 0x08)
    assert rig.levels == []
    rig.put(MCR, 0x10)
    assert rig.levels == [True]
    assert rig.get(IIR) == 0x00
    rig.put(IER, 0x05)
    assert rig.get(IIR) == 0x01
    rig.put(IER, 0x08)
    assert rig.get(MSR) == 0x0B
    assert rig.levels == [True, False, True, False]


def test_reading_iir_clears_thr_empty_only_when_it_reports_it(rig: Rig) -> None:
    rig.put(IER, 0x03)
    rig.uart.receive(b"x")
    assert rig.get(IIR) == 0x04
    assert rig.get(IIR) == 0x04
    rig.get(DATA)
    assert rig.get(IIR) == 0x02
    assert rig.get(IIR) == 0x01


def test_each_transmitted_byte_raises_thr_empty_again(rig: Rig) -> None:
    rig.put(IER, 0x02)
    assert rig.get(IIR) == 0x02
    assert rig.edges == 1
    for value in b"abc":
        rig.put(DATA, value)
    assert rig.edges == 2
    assert rig.get(IIR) == 0x02
    assert rig.get(IIR) == 0x01
    assert rig.line.level is False


def test_linux_startup_sees_no_thre_and_no_txen_bug(rig: Rig) -> None:
    """serial8250_do_startup(): THRI must come again after IER was cleared, and at once when it is enabled."""
    rig.put(IER, 0x02)
    assert rig.get(IIR) & 0x01 == 0
    rig.put(IER, 0x00)
    rig.put(IER, 0x02)
    assert rig.get(IIR) & 0x01 == 0
    rig.put(IER, 0x00)
    assert rig.line.level is False
    rig.put(IER, 0x02)
    assert rig.get(LSR) & 0x40
    assert rig.get(IIR) & 0x01 == 0


def test_writing_ier_with_thri_already_set_raises_nothing(rig: Rig) -> None:
    rig.put(IER, 0x02)
    rig.get(IIR)
    rig.put(IER, 0x03)
    assert rig.get(IIR) == 0x01


def test_out2_does_not_gate_the_interrupt(rig: Rig) -> None:
    rig.put(MCR, 0x00)
    rig.put(IER, 0x02)
    assert rig.line.level


# Loopback and modem status


def test_linux_loopback_test_finds_a_uart(rig: Rig) -> None:
    """8250 autoconfig(): MCR = LOOP | OUT2 | RTS must show as DCD and CTS."""
    rig.put(MCR, 0x1A)
    assert rig.get(MSR) & 0xF0 == 0x90


@pytest.mark.parametrize(("mcr", "msr"), [(0x11, 0x20), (0x12, 0x10), (0x14, 0x40), (0x18, 0x80), (0x1F, 0xF0)])
def test_loopback_wires_outputs_to_inputs(rig: Rig, mcr: int, msr: int) -> None:
    rig.put(MCR, mcr)
    assert rig.get(MSR) & 0xF0 == msr


def test_modem_changes_are_reported_once(rig: Rig) -> None:
    rig.put(MCR, 0x1F)
    assert rig.get(MSR) == 0xF0  # RI rose, which is no event
    rig.put(MCR, 0x1A)  # DTR and OUT1 go
    assert rig.get(MSR) == 0x90 | 0x02 | 0x04
    assert rig.get(MSR) == 0x90


def test_loopback_returns_what_is_transmitted_and_keeps_the_host_out(rig: Rig) -> None:
    rig.put(FCR, 0x01)
    rig.room_calls = 0
    rig.put(MCR, 0x10)
    rig.put(DATA, 0x5A)
    assert rig.uart.receive(b"x") == 0
    assert rig.get(DATA) == 0x5A
    assert rig.out == b""
    assert rig.room_calls == 0
    rig.put(MCR, 0x10)
    assert rig.room_calls == 0
    rig.put(MCR, 0x00)
    assert rig.room_calls == 1
    rig.put(MCR, 0x0B)
    assert rig.room_calls == 1
    assert rig.uart.receive(b"x") == 1


def test_overrun_loses_the_new_character_with_fifo_and_the_old_one_without(rig: Rig) -> None:
    rig.put(MCR, 0x10)
    rig.put(DATA, 1)
    rig.put(DATA, 2)
    assert rig.get(LSR) == 0x63
    assert rig.get(LSR) == 0x61
    assert rig.get(DATA) == 2
    rig.put(FCR, 0x01)
    for value in range(20):
        rig.put(DATA, value)
    assert rig.get(LSR) == 0x63
    assert [rig.get(DATA) for _ in range(17)] == [*range(16), 0]


def test_loopback_never_holds_more_than_the_fifo(rig: Rig) -> None:
    rig.put(FCR, 0x01)
    rig.put(MCR, 0x10)
    rig.uart.write_burst(bytes(100_000))
    assert len(rig.uart.state.received) == 16


# Linux' detection of the chip


def test_linux_autoconfig_takes_it_for_a_16550a(rig: Rig) -> None:
    """The probes of 8250 autoconfig() and autoconfig_16550a(), one after the other."""
    rig.put(IER, 0x00)
    assert rig.get(IER) & 0x0F == 0x00
    rig.put(IER, 0x0F)
    assert rig.get(IER) & 0x0F == 0x0F
    rig.put(IER, 0x00)
    rig.put(LCR, 0xBF)
    rig.put(2, 0x00)
    rig.put(LCR, 0x00)
    rig.put(FCR, 0x01)
    assert rig.get(IIR) >> 6 == 3  # 16550A, by its FIFO bits
    rig.put(LCR, 0x80)
    assert rig.get(2) != 0  # no EFR: not a 16C950 or a 16654
    rig.put(LCR, 0xBF)
    assert rig.get(2) != 0  # nor an XR16C850
    rig.put(LCR, 0x00)
    rig.put(FCR, 0x21)
    plain = rig.get(IIR) >> 5
    rig.put(FCR, 0x01)
    rig.put(LCR, 0x80)
    rig.put(FCR, 0x21)
    assert (plain, rig.get(IIR) >> 5) == (6, 6)  # not a TI16750, which would show 6 and 7
    rig.put(LCR, 0x00)
    rig.put(IER, 0x40)
    assert rig.get(IER) & 0x40 == 0  # not an XScale


# The burst path


def accesses(rng: random.Random, count: int) -> list[tuple[int, int]]:
    return [(rng.randrange(8), rng.randrange(256)) for _ in range(count)]


@pytest.mark.parametrize("seed", range(200))
def test_a_burst_is_the_same_as_its_single_writes(seed: int) -> None:
    rng = random.Random(seed)
    one, other = Rig(), Rig()
    for register, value in accesses(rng, 20):
        for rig in (one, other):
            rig.put(register, value)
    for rig in (one, other):
        if seed % 2:
            rig.get(IIR)
        rig.levels.clear()
    data = rng.randbytes(rng.randrange(40))
    one.uart.write_burst(data)
    for value in data:
        other.uart.write(0, bytes((value,)))
    assert one.out == other.out
    assert one.uart.state == other.uart.state
    assert one.levels == other.levels
    assert one.line.level == other.line.level


def test_a_burst_is_one_call_of_the_sink_and_one_edge(rig: Rig) -> None:
    rig.put(IER, 0x02)
    rig.get(IIR)
    rig.uart.write_burst(b"a whole line\n")
    assert rig.writes == [b"a whole line\n"]
    assert rig.edges == 2
    rig.uart.write_burst(b"")
    assert len(rig.writes) == 1


# State


@pytest.mark.parametrize("seed", range(50))
def test_a_uart_built_from_the_state_goes_on_the_same(seed: int) -> None:
    rng = random.Random(seed)
    one = Rig()
    for register, value in accesses(rng, 30):
        one.put(register, value)
        one.uart.receive(rng.randbytes(2))
    other = Rig(SerialState.from_values(one.uart.state.values()))
    assert other.line.level == one.line.level
    for register, value in accesses(rng, 30):
        assert other.get(register) == one.get(register)
        one.put(register, value)
        other.put(register, value)
        assert other.line.level == one.line.level
    assert other.uart.state == one.uart.state
