"""MSI-X: masks, pending bits, the function mask, and what the host side is told of it."""

from __future__ import annotations

import random
import struct

import pytest

from vmservice.devices.pci.config_space import ConfigSpace
from vmservice.devices.pci.msix import Msix, pending_size

ENABLE = 0x8000
FUNCTION_MASK = 0x4000


class Rig:
    """MSI-X in a bare configuration space; `log` has what it told, in order."""

    def __init__(self, vectors: int = 4) -> None:
        self.log: list[tuple[object, ...]] = []
        self.config = ConfigSpace()
        self.msix = Msix(
            self.config,
            vectors,
            table=(0, 0x4000),
            pending_bits=(2, 0x6000),
            signal=lambda vector: self.log.append(("signal", vector)),
            on_route_changed=lambda *route: self.log.append(route),
        )

    def control(self, value: int) -> None:
        self.config.write(self.msix.capability + 2, value.to_bytes(2, "little"))
        self.msix.config_written()

    def entry(self, vector: int, address: int, data: int, control: int) -> None:
        """As Linux writes one: four dwords, the control last."""
        for index, value in enumerate((address & 0xFFFFFFFF, address >> 32, data, control)):
            self.msix.write_table(16 * vector + 4 * index, value.to_bytes(4, "little"))

    def mask(self, vector: int, masked: int) -> None:
        self.msix.write_table(16 * vector + 12, masked.to_bytes(4, "little"))

    def pending(self) -> int:
        return int.from_bytes(self.msix.read_pending(0, 8), "little")

    def take(self) -> list[tuple[object, ...]]:
        log, self.log = self.log, []
        return log


def ready(vectors: int = 4) -> Rig:
    """Enabled, every vector open, with a message of its own."""
    rig = Rig(vectors)
    rig.control(ENABLE)
    for vector in range(vectors):
        rig.entry(vector, 0xFEE01000, 0x4000 + vector, 0)
    rig.take()
    return rig


def test_capability() -> None:
    rig = Rig(vectors=34)
    assert rig.config.read(0x40, 12) == bytes.fromhex("1100 2100 00400000 02600000".replace(" ", ""))
    rig.control(0xFFFF)
    assert rig.config.value(0x42, 2) == 0xC021  # the size is read-only
    rig.config.write(0x44, b"\xff" * 8)
    assert rig.config.read(0x44, 8) == bytes.fromhex("0040000002600000")


def test_at_reset_every_entry_is_masked_and_nothing_is_pending() -> None:
    rig = Rig()
    assert rig.msix.read_table(0, 64) == (bytes(12) + b"\x01\0\0\0") * 4
    assert rig.pending() == 0
    assert not rig.msix.enabled


def test_an_open_vector_is_sent() -> None:
    rig = ready()
    rig.msix.interrupt(2)
    assert rig.take() == [("signal", 2)]
    assert rig.pending() == 0
    assert rig.msix.message(2) == (0xFEE01000, 0x4002)


def test_a_masked_vector_waits_and_goes_out_once() -> None:
    rig = ready()
    rig.mask(1, 1)
    rig.take()
    rig.msix.interrupt(1)
    rig.msix.interrupt(1)
    rig.msix.interrupt(0)
    assert rig.take() == [("signal", 0)]
    assert rig.pending() == 0b10
    rig.mask(1, 0)
    assert rig.take() == [(1, 0xFEE01000, 0x4001, False), ("signal", 1)]
    assert rig.pending() == 0
    rig.mask(1, 1)
    rig.mask(1, 0)
    assert ("signal", 1) not in rig.take()


def test_the_function_mask_holds_all_back_and_the_entrys_own_mask_stays() -> None:
    rig = ready()
    rig.mask(3, 1)
    rig.control(ENABLE | FUNCTION_MASK)
    rig.take()
    for vector in range(4):
        rig.msix.interrupt(vector)
    assert rig.take() == []
    assert rig.pending() == 0b1111
    rig.control(ENABLE)
    assert [event for event in rig.take() if event[0] == "signal"] == [("signal", 0), ("signal", 1), ("signal", 2)]
    assert rig.pending() == 0b1000


def test_with_msix_off_an_interrupt_is_lost_and_what_waited_too() -> None:
    rig = Rig()
    rig.msix.interrupt(0)
    rig.control(ENABLE)
    assert rig.pending() == 0
    rig.msix.interrupt(0)
    assert rig.pending() == 1
    rig.control(0)
    assert rig.pending() == 0
    rig.control(ENABLE)
    rig.entry(0, 0xFEE00000, 1, 0)
    assert ("signal", 0) not in rig.take()


def test_clear_pending_forgets_what_waits() -> None:
    rig = ready()
    rig.mask(0, 1)
    rig.msix.interrupt(0)
    rig.msix.clear_pending()
    assert rig.pending() == 0
    rig.mask(0, 0)
    assert ("signal", 0) not in rig.take()


def test_routes_are_told_on_each_change_and_before_the_message() -> None:
    rig = Rig(2)
    rig.control(ENABLE | FUNCTION_MASK)
    rig.entry(1, 0x1_FEE00000, 0x55, 0)
    assert rig.take() == [(1, 0xFEE00000, 0, True), (1, 0x1_FEE00000, 0, True), (1, 0x1_FEE00000, 0x55, True)]
    rig.msix.interrupt(1)
    rig.control(ENABLE)
    assert rig.take() == [(1, 0x1_FEE00000, 0x55, False), ("signal", 1)]
    rig.entry(1, 0x1_FEE00000, 0x55, 0)
    assert rig.take() == []
    rig.msix.write_table(16 + 8, b"\x56\0\0\0")
    assert rig.take() == [(1, 0x1_FEE00000, 0x56, False)]
    rig.control(0)
    assert rig.take() == [(1, 0x1_FEE00000, 0x56, True)]


def test_a_write_of_eight_bytes_is_one_change() -> None:
    rig = Rig(2)
    rig.control(ENABLE)
    rig.msix.write_table(16, struct.pack("<Q", 0xFEE02000))
    rig.msix.write_table(24, struct.pack("<II", 0x31, 0))
    assert rig.take() == [(1, 0xFEE02000, 0, True), (1, 0xFEE02000, 0x31, False)]


def test_a_write_over_two_entries_counts_for_both() -> None:
    """Not what the specification allows, and no reason to lose an interrupt."""
    rig = ready(2)
    rig.mask(0, 1)
    rig.take()
    rig.msix.interrupt(0)
    rig.msix.write_table(12, struct.pack("<II", 0, 0xFEE03000))
    assert rig.take() == [(0, 0xFEE01000, 0x4000, False), ("signal", 0), (1, 0xFEE03000, 0x4001, False)]


def test_reserved_bits_of_vector_control_stay_zero() -> None:
    rig = Rig(1)
    rig.msix.write_table(0, b"\xff" * 16)
    assert rig.msix.read_table(0, 16) == b"\xff" * 12 + b"\x01\0\0\0"
    rig.mask(0, 0xFFFFFFFE)
    assert rig.msix.read_table(12, 4) == bytes(4)


def test_the_pending_bits_are_in_words_of_64() -> None:
    assert [pending_size(vectors) for vectors in (1, 64, 65, 2048)] == [8, 8, 16, 256]
    rig = ready(vectors=70)
    rig.control(ENABLE | FUNCTION_MASK)
    rig.msix.interrupt(69)
    assert rig.msix.read_pending(0, 16) == bytes(8) + b"\x20" + bytes(7)
    assert rig.msix.read_pending(8, 4) == b"\x20\0\0\0"
    assert rig.msix.read_pending(12, 8) == bytes(8)
    assert rig.msix.read_pending(1 << 20, 4) == bytes(4)


def test_behind_the_table_is_nothing() -> None:
    rig = ready(1)
    before = rig.msix.read_table(0, 16)
    rig.msix.write_table(16, b"\xff" * 8)
    rig.msix.write_table(0x10000, b"\xff")
    assert rig.msix.read_table(0, 16) == before
    assert rig.msix.read_table(12, 8) == bytes(8)
    assert rig.take() == []


@pytest.mark.parametrize("vectors", [0, 2049])
def test_an_impossible_number_of_vectors_is_refused(vectors: int) -> None:
    with pytest.raises(ValueError, match=f"{vectors} MSI-X vectors"):
        Rig(vectors)


def test_no_interrupt_is_lost_or_doubled_whatever_is_masked() -> None:
    """2,000 steps beside a model of the rules: enabled and open → now; enabled and masked → once, when it opens."""
    rng, rig = random.Random(6), ready(3)
    masks, control, waiting, expected = [0, 0, 0], ENABLE, set[int](), []

    def open_vectors() -> set[int]:
        return {vector for vector in range(3) if control == ENABLE and not masks[vector]}

    for _ in range(2000):
        vector = rng.randrange(3)
        match rng.randrange(4):
            case 0 | 1:
                rig.msix.interrupt(vector)
                if vector in open_vectors():
                    expected.append(vector)
                elif control & ENABLE:
                    waiting.add(vector)
            case 2:
                masks[vector] = rng.randrange(2)
                rig.mask(vector, masks[vector])
            case _:
                control = rng.choice((ENABLE, ENABLE, ENABLE | FUNCTION_MASK, FUNCTION_MASK, 0))
                rig.control(control)
                if not control & ENABLE:
                    waiting.clear()
        going = sorted(waiting & open_vectors())
        expected += going
        waiting -= set(going)
        assert [event[1] for event in rig.log if event[0] == "signal"] == expected
        assert rig.pending() == sum(1 << waits for waits in waiting)
    assert len(expected) > 200
