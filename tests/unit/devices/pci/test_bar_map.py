"""BARs on the MMIO bus: where they answer when the guest moves them, on top of anything."""

from __future__ import annotations

import _thread

import pytest

from vmservice.devices.bus import Bus
from vmservice.devices.limited_warnings import INTERVAL_SEC
from vmservice.devices.pci.bus import PciBus, PciBusState
from vmservice.devices.pci.function import Bar, Identity, PciFunction

RAM = (0, 0xC0000000, "RAM")
LAPIC = (0xFEE00000, 0x100000, "the local APIC")
IOAPIC = 0xFEC00000
HOME = 0xC0000000
SIZE = 0x8000


class Fill:
    """A region in which every byte reads as one value."""

    def __init__(self, value: int) -> None:
        self.value = value

    def read(self, offset: int, size: int) -> bytes:
        return bytes((self.value,)) * size

    def write(self, offset: int, data: bytes) -> None: ...


class IoApicStandIn(Fill):
    """On the bus like the real one."""


class Machine:
    """Functions with one BAR each; function n reads as 0x10 + n and lies at HOME + n * SIZE, enabled."""

    def __init__(self, functions: int = 2) -> None:
        self.now = 100.0
        self.warnings: list[str] = []
        self.moves: list[tuple[int, int | None]] = []
        self.mmio = Bus()
        self.mmio.insert(IOAPIC, 0x1000, IoApicStandIn(0xAA), _thread.allocate_lock())
        self.bus = PciBus(self.mmio, reserved=[RAM, LAPIC], warn=self.warnings.append, monotonic=lambda: self.now)
        self.bus.start()
        self.functions: list[PciFunction] = []
        self.bars: list[Bar] = []
        for number in range(functions):
            function = PciFunction(Identity(0x1AF4, 0x1040 + number, 0x00_FF_00))
            bar = function.add_bar(0, SIZE, Fill(0x10 + number), is_64bit=True)
            bar.on_mapped = lambda base, number=number: self.moves.append((number, base))  # type: ignore[misc]
            function.place_bar(bar, HOME + number * SIZE)
            self.bus.insert(function)
            self.functions.append(function)
            self.bars.append(bar)
            self.enable(number)

    def enable(self, number: int, on: bool = True) -> None:
        self.functions[number].write_config(4, b"\x02\x00" if on else b"\x00\x00")

    def move(self, number: int, base: int) -> None:
        """As a driver moves a BAR while it decodes: the low half, then the high half."""
        self.functions[number].write_config(0x10, (base & 0xFFFFFFFF).to_bytes(4, "little"))
        self.functions[number].write_config(0x14, (base >> 32).to_bytes(4, "little"))

    def at(self, address: int) -> int:
        return self.mmio.read(address, 1)[0]


def test_a_bar_answers_where_it_was_placed_once_it_is_enabled() -> None:
    machine = Machine()
    assert [machine.at(HOME + offset) for offset in (0, SIZE - 1, SIZE, 2 * SIZE)] == [0x10, 0x10, 0x11, 0xFF]
    machine.enable(0, on=False)
    assert [machine.at(HOME), machine.at(HOME + SIZE)] == [0xFF, 0x11]
    assert machine.moves == [(0, HOME), (1, HOME + SIZE), (0, None)]
    assert machine.warnings == []


@pytest.mark.parametrize("base", [0xE0000000, 0x40_0000_0000])
def test_the_guest_moves_a_bar(base: int) -> None:
    machine = Machine()
    machine.enable(0, on=False)
    machine.move(0, base)
    machine.enable(0)
    assert (machine.at(HOME), machine.at(base), machine.at(base + SIZE - 1)) == (0xFF, 0x10, 0x10)
    assert machine.moves[2:] == [(0, None), (0, base)]
    assert machine.warnings == []


def test_no_bar_answers_where_memory_has_come() -> None:
    machine, base = Machine(), 0x1_4000_0000
    machine.bus.reserve(base, 0x200000, "a device's memory")
    machine.enable(0, on=False)
    machine.move(0, base + 0x100000)
    machine.enable(0)
    assert machine.at(base + 0x100000) == 0xFF
    assert machine.warnings[-1].endswith("0x140100000-0x140107fff overlaps a device's memory at 0x140000000-0x1401fffff")
    machine.bus.free(base)
    machine.enable(0, on=False)
    machine.enable(0)
    assert machine.at(base + 0x100000) == 0x10


def test_the_host_places_a_bar_that_answers_already() -> None:
    machine = Machine()
    machine.functions[0].place_bar(machine.bars[0], 0xD0000000)
    assert (machine.at(HOME), machine.at(0xD0000000)) == (0xFF, 0x10)


def test_sizing_with_decoding_off_moves_nothing_and_says_nothing() -> None:
    machine = Machine()
    machine.enable(0, on=False)
    machine.move(0, (1 << 64) - 1)
    machine.move(0, HOME)
    machine.enable(0)
    assert machine.at(HOME) == 0x10
    assert machine.warnings == []


@pytest.mark.parametrize(
    ("base", "obstacle"),
    [
        (0, "RAM at 0x0-0xbfffffff"),
        (0xBFFF8000, "RAM at 0x0-0xbfffffff"),
        (0xFEE00000, "the local APIC at 0xfee00000-0xfeefffff"),
        (0xFEEF8000, "the local APIC at 0xfee00000-0xfeefffff"),
        (IOAPIC, "IoApicStandIn at 0xfec00000-0xfec00fff"),
        (HOME + SIZE, "Fill at 0xc0008000-0xc000ffff"),
    ],
)
def test_a_bar_on_top_of_something_does_not_answer_and_what_is_there_does(base: int, obstacle: str) -> None:
    machine = Machine()
    before = machine.at(base)
    machine.move(0, base)
    assert machine.at(base) == before != 0x10
    assert machine.at(HOME) == 0xFF
    (warning,) = machine.warnings
    assert warning.startswith("the guest put BAR 0 of the PCI device 00:00.0 where it cannot answer: ")
    assert warning.endswith(f"overlaps {obstacle}")
    machine.move(0, 0xD0000000)
    assert machine.at(0xD0000000) == 0x10
    assert len(machine.warnings) == 1
    assert machine.moves[2:] == [(0, None), (0, 0xD0000000)]


def test_a_blocked_bar_answers_when_the_other_one_goes() -> None:
    machine = Machine()
    machine.move(1, HOME)
    assert (machine.at(HOME), machine.at(HOME + SIZE)) == (0x10, 0xFF)
    machine.move(0, HOME + 4 * SIZE)
    assert (machine.at(HOME), machine.at(HOME + 4 * SIZE)) == (0x11, 0x10)
    assert machine.moves[2:] == [(1, None), (0, None), (0, HOME + 4 * SIZE), (1, HOME)]


def test_a_blocked_bar_answers_when_the_other_one_is_disabled() -> None:
    machine = Machine()
    machine.move(1, HOME)
    machine.enable(0, on=False)
    assert machine.at(HOME) == 0x11
    machine.enable(0)
    assert machine.at(HOME) == 0x11
    assert len(machine.warnings) == 1  # the second one falls into the silence after the first


def test_two_bars_change_places_by_way_of_each_other() -> None:
    machine = Machine()
    machine.move(0, HOME + SIZE)
    machine.move(1, HOME)
    assert (machine.at(HOME), machine.at(HOME + SIZE)) == (0x11, 0x10)


def test_a_loop_of_moves_is_told_of_now_and_then() -> None:
    machine = Machine()
    for step in range(50):
        machine.move(0, step * SIZE)
    assert len(machine.warnings) == 1
    machine.now += INTERVAL_SEC
    machine.move(0, IOAPIC)
    assert len(machine.warnings) == 2
    assert machine.warnings[1].endswith("(49 more like it since the last warning)")
    machine.now += INTERVAL_SEC
    machine.move(0, 0)
    assert "more like it" not in machine.warnings[2]


def test_a_disabled_bar_that_is_enabled_in_the_same_bad_place_is_told_of_again() -> None:
    machine = Machine()
    machine.move(0, 0)
    machine.enable(0, on=False)
    machine.now += INTERVAL_SEC
    machine.enable(0)
    assert len(machine.warnings) == 2
    machine.now += INTERVAL_SEC
    machine.move(1, HOME)  # another's move tries it again, and says nothing new
    assert len(machine.warnings) == 2


def test_of_two_bars_on_one_spot_the_same_one_answers_in_a_bus_built_from_the_state() -> None:
    """Function 1 was at the spot first; where they lie does not tell."""
    machine = Machine()
    machine.move(0, HOME + SIZE)
    assert machine.at(HOME + SIZE) == 0x11
    state = PciBusState.from_values(machine.bus.state.values())
    mmio = Bus()
    other = PciBus(mmio, reserved=[RAM, LAPIC], warn=machine.warnings.append, state=state)
    for number, old in enumerate(machine.functions):
        function = PciFunction(Identity(0x1AF4, 0x1040 + number, 0x00_FF_00), config_state=old.config.state)
        function.add_bar(0, SIZE, Fill(0x10 + number), is_64bit=True)
        other.insert(function)
    assert mmio.find(HOME + SIZE) is None
    other.start()
    assert mmio.read(HOME + SIZE, 1) == b"\x11"
    assert other.state == machine.bus.state
