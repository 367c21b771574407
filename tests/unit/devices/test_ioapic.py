"""The I/O APIC: registers, edges and levels, EOI, the messages it sends, and the routes that KVM must know."""

from __future__ import annotations

import pytest

from vmservice.devices.ioapic import IoApic, IoApicState

MASKED = 1 << 16
LEVEL = 1 << 15
REMOTE_IRR = 1 << 14
LOGICAL = 1 << 11


class Rig:
    """An I/O APIC, the messages that it sent, and how often its routes changed."""

    def __init__(self, state: IoApicState | None = None) -> None:
        self.log: list[object] = []
        self.accepted = 1  # what the local APICs answer
        self.chip = IoApic(
            self._send,
            state=state,
            on_routes_changed=lambda: self.log.append("routes"),
        )

    def _send(self, address: int, data: int) -> int:
        self.log.append((address, data))
        return self.accepted

    @property
    def messages(self) -> list[object]:
        return [entry for entry in self.log if entry != "routes"]

    @property
    def route_changes(self) -> int:
        return self.log.count("routes")

    def get(self, register: int) -> int:
        self.chip.write(0x00, register.to_bytes(4, "little"))
        return int.from_bytes(self.chip.read(0x10, 4), "little")

    def put(self, register: int, value: int) -> None:
        self.chip.write(0x00, register.to_bytes(4, "little"))
        self.chip.write(0x10, value.to_bytes(4, "little"))

    def entry(self, pin: int, low: int, destination: int = 0) -> None:
        """As Linux does it: the high half first."""
        self.put(0x11 + 2 * pin, destination << 24)
        self.put(0x10 + 2 * pin, low)

    def low(self, pin: int) -> int:
        return self.get(0x10 + 2 * pin)

    def pulse(self, pin: int) -> None:
        self.chip.set_line(pin, True)
        self.chip.set_line(pin, False)


@pytest.fixture
def rig() -> Rig:
    return Rig()


# Registers


def test_every_entry_is_masked_at_reset(rig: Rig) -> None:
    """Cloud Hypervisor (December 2019) had them open, with vector 0."""
    assert [(rig.get(0x10 + 2 * pin), rig.get(0x11 + 2 * pin)) for pin in range(24)] == [(MASKED, 0)] * 24
    assert rig.chip.routes() == [None] * 24
    for pin in range(24):
        rig.pulse(pin)
    assert rig.log == []


def test_the_state_at_reset(rig: Rig) -> None:
    state = rig.chip.state
    assert (state.identity, state.select, state.lines, state.pending) == (0, 0, 0, 0)


def test_identity_version_and_arbitration(rig: Rig) -> None:
    assert (rig.get(0), rig.get(1), rig.get(2)) == (0, 0x00170011, 0)
    rig.put(0, 0xFFFFFFFF)
    rig.put(1, 0)
    rig.put(2, 0)
    assert (rig.get(0), rig.get(1), rig.get(2)) == (0x0F000000, 0x00170011, 0x0F000000)


def test_registers_that_are_not_there_read_as_zero(rig: Rig) -> None:
    for register in (0x03, 0x0F, 0x40, 0x80, 0xFF):
        rig.put(register, 0xFFFFFFFF)
        assert rig.get(register) == 0
    assert rig.chip.routes() == [None] * 24


def test_delivery_status_and_remote_irr_are_read_only(rig: Rig) -> None:
    rig.entry(3, 0xFFFFFFFF, destination=0xFF)
    assert rig.get(0x16) == 0x0001AFFF
    assert rig.get(0x17) == 0xFF000000


def test_there_is_no_eoi_register(rig: Rig) -> None:
    rig.entry(3, LEVEL | 0x33)
    rig.chip.set_line(3, True)
    rig.chip.write(0x40, (0x33).to_bytes(4, "little"))
    assert rig.low(3) & REMOTE_IRR
    assert rig.chip.read(0x40, 4) == bytes(4)


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_any_width_of_access_is_taken(rig: Rig, width: int) -> None:
    rig.chip.write(0x00, (0x01).to_bytes(width, "little"))
    assert rig.chip.read(0x00, width) == (0x01).to_bytes(width, "little")
    assert rig.chip.read(0x10, width) == (0x00170011 & (1 << 8 * width) - 1).to_bytes(width, "little")
    rig.chip.write(0x00, (0x18).to_bytes(width, "little"))
    rig.chip.write(0x10, (0x44).to_bytes(width, "little"))
    assert rig.low(4) == 0x44


def test_only_the_low_32_bits_of_a_wide_write_count(rig: Rig) -> None:
    rig.put(0x00, 0)
    rig.chip.write(0x00, b"\x18\x00\x00\x00\xff\xff\xff\xff")
    rig.chip.write(0x10, b"\x44\x00\x00\x00\xff\xff\xff\xff")
    assert (rig.low(4), rig.get(0x19)) == (0x44, 0)
    assert rig.chip.read(0x00, 8) == b"\x19" + bytes(7)


@pytest.mark.parametrize("offset", [1, 2, 4, 0x0F, 0x11, 0x13, 0x14, 0x20, 0x41, 0xFFC])
def test_offsets_beside_the_registers_do_nothing(rig: Rig, offset: int) -> None:
    rig.put(0x18, 0x44)
    before = repr(rig.chip.state)
    for width in (1, 2, 4, 8):
        assert rig.chip.read(offset, width) == bytes(width)
        rig.chip.write(offset, b"\xff" * width)
    assert repr(rig.chip.state) == before


# Messages


@pytest.mark.parametrize(
    ("low", "destination", "message"),
    [
        (0x31, 0, (0xFEE00000, 0x4031)),
        (0x31, 0xFD, (0xFEEFD000, 0x4031)),  # eight bits; Cloud Hypervisor (December 2019) cut physical ones to four
        (LOGICAL | 0x31, 0x83, (0xFEE83004, 0x4031)),
        (0x100 | LOGICAL | 0x31, 0xFF, (0xFEEFF004, 0x4131)),
        (LEVEL | 0x31, 1, (0xFEE01000, 0xC031)),
        (LEVEL | 0x100 | 0x31, 1, (0xFEE01000, 0xC131)),
        (0x400, 2, (0xFEE02000, 0x4400)),  # NMI
        (0x500, 2, (0xFEE02000, 0x4500)),  # INIT
        (0x700, 0, (0xFEE00000, 0x4700)),  # ExtINT
        (0x2000 | 0x31, 0, (0xFEE00000, 0x4031)),  # active low: the line is a matter of asserted or not
    ],
)
def test_the_message_is_the_entry(rig: Rig, low: int, destination: int, message: tuple[int, int]) -> None:
    rig.entry(9, low, destination)
    assert rig.chip.routes()[9] == message
    rig.chip.set_line(9, True)
    assert rig.messages == [message]


@pytest.mark.parametrize("pin", [0, 23])
def test_the_first_and_the_last_pin_are_like_the_others(rig: Rig, pin: int) -> None:
    rig.entry(pin, 0x31, destination=7)
    assert (rig.get(0x10 + 2 * pin), rig.get(0x11 + 2 * pin)) == (0x31, 7 << 24)
    rig.pulse(pin)
    assert rig.messages == [(0xFEE07000, 0x4031)]


# Edges


def test_each_rising_edge_is_one_message(rig: Rig) -> None:
    rig.entry(4, 0x34)
    rig.chip.set_line(4, True)
    rig.chip.set_line(4, True)
    rig.chip.set_line(4, False)
    assert len(rig.messages) == 1
    rig.pulse(4)
    assert len(rig.messages) == 2
    assert rig.low(4) & REMOTE_IRR == 0


def test_an_edge_behind_a_mask_is_delivered_when_the_mask_goes(rig: Rig) -> None:
    """Cloud Hypervisor (December 2019) lost it."""
    rig.entry(5, MASKED | 0x35)
    rig.pulse(5)
    rig.pulse(5)
    assert rig.messages == []
    rig.entry(5, 0x35)
    assert rig.messages == [(0xFEE00000, 0x4035)]
    rig.entry(5, MASKED | 0x35)
    rig.entry(5, 0x35)
    assert len(rig.messages) == 1


def test_a_line_that_stays_high_is_no_new_edge_after_the_mask(rig: Rig) -> None:
    rig.entry(4, 0x34)
    rig.chip.set_line(4, True)
    rig.entry(4, MASKED | 0x34)
    rig.entry(4, 0x34)
    assert len(rig.messages) == 1


@pytest.mark.parametrize("mode", [0x200, 0x400, 0x500, 0x700])
def test_smi_nmi_init_and_extint_are_edges_whatever_the_trigger_mode_says(rig: Rig, mode: int) -> None:
    rig.entry(6, LEVEL | mode)
    rig.chip.set_line(6, True)
    rig.chip.end_of_interrupt(0)
    assert rig.messages == [(0xFEE00000, 0x4000 | mode)]
    assert rig.low(6) & REMOTE_IRR == 0


# Levels


def test_a_level_interrupts_once_until_its_eoi(rig: Rig) -> None:
    rig.entry(10, LEVEL | 0x3A)
    rig.chip.set_line(10, True)
    assert rig.low(10) & REMOTE_IRR
    rig.chip.set_line(10, False)
    rig.chip.set_line(10, True)
    assert len(rig.messages) == 1
    rig.chip.set_line(10, False)
    rig.chip.end_of_interrupt(0x3A)
    assert rig.low(10) & REMOTE_IRR == 0
    assert len(rig.messages) == 1
    rig.chip.set_line(10, True)
    assert len(rig.messages) == 2


def test_a_level_that_is_still_high_at_the_eoi_interrupts_again(rig: Rig) -> None:
    rig.entry(10, LEVEL | 0x3A)
    rig.chip.set_line(10, True)
    for count in (2, 3):
        rig.chip.end_of_interrupt(0x3A)
        assert len(rig.messages) == count
        assert rig.low(10) & REMOTE_IRR


def test_an_eoi_reaches_every_pin_of_its_vector_and_no_other(rig: Rig) -> None:
    for pin, vector in ((10, 0x3A), (11, 0x3A), (12, 0x3B)):
        rig.entry(pin, LEVEL | vector)
        rig.chip.set_line(pin, True)
        rig.chip.set_line(pin, False)
    rig.chip.end_of_interrupt(0x3A)
    assert [rig.low(pin) & REMOTE_IRR for pin in (10, 11, 12)] == [0, 0, REMOTE_IRR]


def test_a_level_is_looked_at_when_the_mask_goes(rig: Rig) -> None:
    rig.entry(10, MASKED | LEVEL | 0x3A)
    rig.pulse(10)
    rig.entry(10, LEVEL | 0x3A)
    assert rig.messages == []  # it has gone: a level input has no memory
    rig.entry(10, MASKED | LEVEL | 0x3A)
    rig.chip.set_line(10, True)
    rig.entry(10, LEVEL | 0x3A)
    assert rig.messages == [(0xFEE00000, 0xC03A)]


def test_a_high_line_found_by_a_level_entry_is_not_delivered_twice(rig: Rig) -> None:
    rig.chip.set_line(10, True)  # an edge, as the entry stands at reset
    rig.entry(10, LEVEL | 0x3A)
    assert len(rig.messages) == 1
    rig.chip.set_line(10, False)
    rig.chip.end_of_interrupt(0x3A)
    rig.entry(10, 0x3A)
    assert len(rig.messages) == 1


def test_masked_while_served_and_still_high_it_comes_again_after_the_mask(rig: Rig) -> None:
    rig.entry(10, LEVEL | 0x3A)
    rig.chip.set_line(10, True)
    rig.put(0x24, MASKED | LEVEL | 0x3A)
    rig.chip.end_of_interrupt(0x3A)
    assert len(rig.messages) == 1
    rig.put(0x24, LEVEL | 0x3A)
    assert len(rig.messages) == 2


def test_edge_for_a_moment_ends_a_level_interrupt(rig: Rig) -> None:
    """What Linux' __eoi_ioapic_pin() does on a chip without EOI register."""
    rig.entry(10, LEVEL | 0x3A)
    rig.chip.set_line(10, True)
    rig.chip.set_line(10, False)
    rig.put(0x24, MASKED | 0x3A)
    rig.put(0x24, LEVEL | 0x3A)
    assert rig.low(10) == LEVEL | 0x3A
    rig.chip.set_line(10, True)
    assert len(rig.messages) == 2


# Routes


def test_routes_follow_the_entries(rig: Rig) -> None:
    rig.entry(4, 0x34)
    rig.entry(10, LEVEL | 0x3A, destination=2)
    expected: list[tuple[int, int] | None] = [None] * 24
    expected[4] = (0xFEE00000, 0x4034)
    expected[10] = (0xFEE02000, 0xC03A)
    assert rig.chip.routes() == expected


def test_only_a_change_that_matters_is_told(rig: Rig) -> None:
    rig.entry(4, MASKED | 0x34, destination=1)  # masked before and after
    assert rig.route_changes == 0
    rig.entry(4, 0x34, destination=1)
    assert rig.route_changes == 1
    rig.entry(4, 0x34, destination=1)
    rig.entry(4, 0x2034, destination=1)  # polarity
    assert rig.route_changes == 1
    rig.put(0x19, 2 << 24)
    assert rig.route_changes == 2
    rig.put(0x18, MASKED | 0x34)
    assert rig.route_changes == 3


def test_the_route_is_told_before_the_interrupt_goes_out(rig: Rig) -> None:
    """KVM makes EOI exits for what is in its table: an interrupt before that would never end."""
    rig.entry(10, MASKED | LEVEL | 0x3A)
    rig.chip.set_line(10, True)
    rig.put(0x24, LEVEL | 0x3A)
    assert rig.log == ["routes", (0xFEE00000, 0xC03A)]


def test_an_entry_masked_while_served_keeps_its_route_until_the_eoi(rig: Rig) -> None:
    rig.entry(10, LEVEL | 0x3A)
    rig.chip.set_line(10, True)
    rig.chip.set_line(10, False)
    rig.log.clear()
    rig.put(0x24, MASKED | LEVEL | 0x3A)
    assert rig.chip.routes()[10] == (0xFEE00000, 0xC03A)
    assert rig.route_changes == 0
    rig.chip.end_of_interrupt(0x3A)
    assert rig.chip.routes()[10] is None
    assert rig.route_changes == 1


def test_a_level_interrupt_that_no_local_apic_has_accepted_is_sent_again() -> None:
    """Remote IRR stayed set for ever: no EOI could come, and the pin was dead until the next reset."""
    rig = Rig()
    rig.accepted = -1
    rig.entry(10, 0x3A | LEVEL, destination=7)
    rig.chip.set_line(10, True)
    assert rig.messages == [(0xFEE07000, 0xC03A)]
    assert not rig.low(10) & REMOTE_IRR
    rig.accepted = 1
    rig.entry(10, 0x3A | LEVEL, destination=0)
    assert rig.messages[-1] == (0xFEE00000, 0xC03A)
    assert rig.low(10) & REMOTE_IRR
    rig.accepted = 0  # its local APIC is disabled
    rig.entry(11, 0x3B | LEVEL)
    rig.chip.set_line(11, True)
    assert not rig.low(11) & REMOTE_IRR


def test_an_io_apic_without_listener_works() -> None:
    sent: list[tuple[int, int]] = []

    def send(address: int, data: int) -> int:
        sent.append((address, data))
        return 1

    chip = IoApic(send)
    chip.write(0x00, b"\x18\x00\x00\x00")
    chip.write(0x10, b"\x34\x00\x00\x00")
    chip.set_line(4, True)
    assert sent == [(0xFEE00000, 0x4034)]


# State


def test_an_io_apic_built_from_the_state_goes_on_where_it_stood(rig: Rig) -> None:
    rig.entry(4, 0x34)
    rig.chip.set_line(4, True)
    rig.entry(5, MASKED | 0x35)
    rig.pulse(5)
    rig.entry(10, LEVEL | 0x3A)
    rig.chip.set_line(10, True)
    twin = Rig(rig.chip.state)
    assert twin.log == []
    assert twin.chip.routes() == rig.chip.routes()
    twin.chip.set_line(4, True)  # a device that restores its line makes no edge
    assert twin.messages == []
    twin.entry(5, 0x35)
    twin.chip.end_of_interrupt(0x3A)
    assert twin.messages == [(0xFEE00000, 0x4035), (0xFEE00000, 0xC03A)]
