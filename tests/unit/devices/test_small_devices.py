"""The keyboard controller's reset, the sleep and reset register, the event register."""

from __future__ import annotations

import pytest

from vmservice.devices.ged import CPU, MEMORY, PCI, POWER_BUTTON, GenericEvents, GenericEventsState
from vmservice.devices.i8042 import I8042, I8042State
from vmservice.devices.irq import IrqLine
from vmservice.devices.power import PowerRegister


class Edges:
    """Counts the rising edges of a line."""

    def __init__(self) -> None:
        self.count = 0
        self.line = IrqLine(self._changed)

    def _changed(self, level: bool) -> None:
        self.count += level


# i8042


def test_0xfe_to_the_command_port_resets() -> None:
    resets: list[int] = []
    device = I8042(lambda: resets.append(1))
    for value in (0x00, 0xAA, 0xD1, 0xFF, 0xFC):
        device.write(3, bytes((value,)))
    device.write(0, b"\xfe")
    device.write(1, b"\xfe")
    assert resets == []
    device.write(3, b"\xfe")
    assert resets == [1]


def test_a_wide_write_reaches_the_command_port_too() -> None:
    resets: list[int] = []
    I8042(lambda: resets.append(1)).write(0, b"\x00\x00\x00\xfe")
    assert resets == [1]


def test_the_command_port_is_idle() -> None:
    device = I8042(lambda: None)
    assert device.read(3, 1) == b"\x00"
    assert device.read(0, 4) == b"\x30\x00\x00\x00"
    assert device.read(0, 1) == b"\x20"


def test_pit_calibration_does_not_hang_and_refresh_turns_over() -> None:
    device = I8042(lambda: None)
    values = [device.read(0, 1)[0] for _ in range(4)]
    assert all(value & 0x20 for value in values)
    assert [value & 0x10 for value in values] == [0x10, 0, 0x10, 0]


def test_the_gate_and_speaker_bits_read_back_and_are_state() -> None:
    device = I8042(lambda: None)
    device.write(0, b"\xf1")
    assert device.read(0, 1)[0] & 0x0F == 0x01
    twin_state = I8042State()
    twin_state.control, twin_state.refresh = 1, 0x10
    assert device.state == twin_state
    assert I8042(lambda: None, state=twin_state).read(0, 1) == device.read(0, 1)


# Sleep and reset


@pytest.mark.parametrize("value", range(256))
def test_only_s5_and_one_do_anything(value: int) -> None:
    called: list[str] = []
    PowerRegister(lambda: called.append("sleep"), lambda: called.append("reset")).write(0, bytes((value,)))
    if value == 1:
        assert called == ["reset"]
    elif value & 0x20 and value >> 2 & 7 == 5:
        assert called == ["sleep"]
    else:
        assert called == []


def test_linux_way_to_s5() -> None:
    called: list[str] = []
    register = PowerRegister(lambda: called.append("sleep"), lambda: called.append("reset"))
    register.write(0, b"\x80")  # clear WAK_STS
    assert called == []
    register.write(0, b"\x34")
    assert called == ["sleep"]
    assert register.read(0, 1) == b"\x00"  # WAK_STS stays clear


def test_the_power_register_is_one_byte() -> None:
    called: list[str] = []
    register = PowerRegister(lambda: called.append("sleep"), lambda: called.append("reset"))
    register.write(1, b"\x34")
    register.write(3, b"\x01")
    assert called == []
    register.write(0, b"\x34\x01\x01\x01")
    assert called == ["sleep"]
    assert register.read(0, 4) == bytes(4)


# Events


def test_the_bits_are_those_of_the_aml() -> None:
    assert (CPU, MEMORY, PCI, POWER_BUTTON) == (1, 2, 4, 8)


def test_reading_returns_the_bits_and_clears_them() -> None:
    edges = Edges()
    device = GenericEvents(edges.line)
    device.raise_event(POWER_BUTTON)
    assert edges.count == 1
    assert device.read(0, 1) == b"\x08"
    assert device.read(0, 1) == b"\x00"


def test_two_events_before_the_read_are_both_seen() -> None:
    """Cloud Hypervisor (December 2019) kept one number: the second event replaced the first."""
    edges = Edges()
    device = GenericEvents(edges.line)
    device.raise_event(CPU)
    device.raise_event(POWER_BUTTON)
    assert edges.count == 2
    assert device.read(0, 1) == bytes((CPU | POWER_BUTTON,))


def test_an_event_after_the_read_comes_with_an_edge_of_its_own() -> None:
    edges = Edges()
    device = GenericEvents(edges.line)
    device.raise_event(CPU)
    assert device.read(0, 1) == b"\x01"
    device.raise_event(CPU | MEMORY)
    assert edges.count == 2
    assert edges.line.level is False
    assert device.read(0, 1) == b"\x03"


def test_a_wide_read_gets_the_bits_in_its_first_byte_and_other_offsets_clear_nothing() -> None:
    device = GenericEvents(Edges().line)
    device.raise_event(POWER_BUTTON)
    assert device.read(1, 4) == bytes(4)
    device.write(0, b"\x00")
    assert device.read(0, 4) == b"\x08\x00\x00\x00"


@pytest.mark.parametrize("bits", [0, 0x10, 0x18, -1])
def test_unknown_event_bits_are_our_bug(bits: int) -> None:
    edges = Edges()
    with pytest.raises(ValueError, match="event bits"):
        GenericEvents(edges.line).raise_event(bits)
    assert edges.count == 0


def test_pending_events_survive_in_the_state_without_a_second_edge() -> None:
    device = GenericEvents(Edges().line)
    device.raise_event(POWER_BUTTON)
    edges = Edges()
    twin = GenericEvents(edges.line, state=device.state)
    assert edges.count == 0
    assert twin.read(0, 1) == b"\x08"
    assert twin.state == GenericEventsState()
