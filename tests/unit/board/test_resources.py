"""Interrupts, ports and addresses: the lowest that fits, named errors for what does not, and areas that keep clear of RAM."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from support.boards import make_board, make_services
from support.guest_ram import guest_ram

from vmservice.arch.x86_64 import layout
from vmservice.arch.x86_64.layout import GIB, MIB
from vmservice.board.pci_slots import PciSlots
from vmservice.board.resources import RangeAllocator, RangeOutside, RangeOverlap, Resources, ResourcesExhausted
from vmservice.board.timers import Timers
from vmservice.errors import ConfigError

TIB = 1 << 40


def ram_end(size_bytes: int) -> int:
    gpa, size = layout.ram_ranges(size_bytes)[-1]
    return gpa + size


def test_the_lowest_gap_that_fits() -> None:
    area = RangeAllocator("addresses", 0x1000, 0x1000)
    area.reserve(0x1100, 0x100, "a")
    area.reserve(0x1280, 0x80, "b")
    assert area.allocate(0x100, "c") == 0x1000
    assert area.allocate(0x81, "d") == 0x1300
    assert area.allocate(0x80, "e") == 0x1200
    assert area.allocate(1, "f") == 0x1381


@pytest.mark.parametrize(("alignment", "base"), [(1, 0x1001), (0x10, 0x1010), (0x100, 0x1100), (0x800, 0x1800)])
def test_alignment(alignment: int, base: int) -> None:
    area = RangeAllocator("addresses", 0x1000, 0x1000)
    area.reserve(0x1000, 1, "a")
    assert area.allocate(0x10, "b", alignment=alignment) == base


def test_alignment_counts_behind_each_taken_range() -> None:
    area = RangeAllocator("addresses", 0, 0x1000)
    area.reserve(0x180, 0x10, "a")
    area.reserve(0x2F0, 0x20, "b")
    assert area.allocate(0x100, "c", alignment=0x100) == 0
    assert area.allocate(0x100, "d", alignment=0x100) == 0x400


def test_all_of_an_area_can_be_had_and_not_more() -> None:
    area = RangeAllocator("addresses", 0x1000, 0x300)
    assert [area.allocate(0x100, "a") for _ in range(3)] == [0x1000, 0x1100, 0x1200]
    with pytest.raises(
        ResourcesExhausted, match=r"^disk 4 wants 0x1 of the addresses, but 0x1000-0x12ff has no such gap left$"
    ):
        area.allocate(1, "disk 4")
    area.free(0x1100)
    assert area.allocate(0x80, "b", alignment=0x80) == 0x1100


@pytest.mark.parametrize(("base", "size"), [(0x100, 0x10), (0x0FF, 2), (0x10F, 1), (0xF0, 0x40), (0x108, 0x100)])
def test_an_overlap_is_named_and_takes_nothing(base: int, size: int) -> None:
    area = RangeAllocator("addresses", 0, 0x1000)
    area.reserve(0x100, 0x10, "COM1")
    with pytest.raises(
        RangeOverlap, match=f"^disk wants {base:#x}-{base + size - 1:#x} of the addresses, but COM1 has 0x100-0x10f$"
    ):
        area.reserve(base, size, "disk")
    area.reserve(0x110, 0x10, "b")
    area.reserve(0xF0, 0x10, "c")


@pytest.mark.parametrize(("base", "size"), [(0xFFF, 2), (0x1FFF, 2), (0x2000, 1), (0, 1), (0, 0x10000)])
def test_a_range_outside_is_named(base: int, size: int) -> None:
    area = RangeAllocator("addresses", 0x1000, 0x1000)
    with pytest.raises(RangeOutside, match=r"^disk wants .* of the addresses, which are 0x1000-0x1fff$"):
        area.reserve(base, size, "disk")


def test_every_refusal_is_the_configurations() -> None:
    assert all(issubclass(error, ConfigError) for error in (ResourcesExhausted, RangeOverlap, RangeOutside))


def test_senseless_requests_are_ours() -> None:
    area = RangeAllocator("addresses", 0, 0x1000)
    for size, alignment in ((0, 1), (-1, 1), (1, 0)):
        with pytest.raises(ValueError, match="both are positive"):
            area.allocate(size, "a", alignment=alignment)
    with pytest.raises(ValueError, match="not empty"):
        area.reserve(0, 0, "a")
    with pytest.raises(ValueError, match="nobody has a range of the addresses that starts at 0x10"):
        area.free(0x10)


def test_a_thousand_requests_never_overlap() -> None:
    rng, area = random.Random(3), RangeAllocator("addresses", 0x1000, 1 << 20)
    held: dict[int, int] = {}
    for _ in range(1000):
        if held and rng.random() < 0.4:
            base = rng.choice(list(held))
            area.free(base)
            del held[base]
            continue
        size, alignment = rng.randrange(1, 0x2000), 1 << rng.randrange(14)
        try:
            base = area.allocate(size, "x", alignment=alignment)
        except ResourcesExhausted:
            continue
        assert base % alignment == 0
        assert base >= 0x1000
        assert base + size <= 0x1000 + (1 << 20)
        assert all(base + size <= other or other + other_size <= base for other, other_size in held.items())
        held[base] = size


# The areas of a machine


@pytest.fixture
def of_a_machine() -> Iterator[Resources]:
    """With what its board has taken, and its PCI bus."""
    memory, timers = guest_ram((0, 2 * MIB)), Timers()
    board = make_board(memory, timers=timers, max_vcpus=2, console=lambda data: None)
    PciSlots(board, make_services(board, memory, timers), None, irqfd=False, ioeventfd=False)  # type: ignore[arg-type]
    yield board.resources
    memory.close()
    timers.close()


def test_pins_are_those_of_the_ioapic_without_the_taken_ones(of_a_machine: Resources) -> None:
    pins = of_a_machine.pins
    assert [pins.allocate(1, "virtio-mmio") for _ in range(18)] == list(range(6, 24))
    with pytest.raises(
        ResourcesExhausted, match=r"^virtio-mmio 18 wants 1 of the interrupt pins, but 5-23 has no such gap left$"
    ):
        pins.allocate(1, "virtio-mmio 18")


def test_message_gsis_begin_behind_the_pins() -> None:
    gsis = Resources(1 * GIB, 39).msi_gsis
    assert gsis.allocate(3, "a") == 24
    assert gsis.allocate(1, "b") == 27
    assert gsis.allocate(4096 - 28, "c") == 28
    with pytest.raises(ResourcesExhausted, match="message GSIs, but 24-4095"):
        gsis.allocate(1, "d")


def test_ports_keep_clear_of_a_pcs_and_of_the_fixed_devices(of_a_machine: Resources) -> None:
    pio = of_a_machine.pio
    assert pio.allocate(8, "a") == 0x1000
    assert pio.allocate(0x9FF8, "b") == 0x1008
    assert pio.allocate(8, "c") == 0xB001
    for port in (0x3F8, 0x64, 0x71, 0x505, 0x600, 0x620, 0xCD8, 0xCFC, 0xB000):
        with pytest.raises(RangeOverlap):
            pio.reserve(port, 1, "d")
    pio.reserve(0x80, 1, "a port of a PC that is not taken")


def test_device_addresses_below_4_gib() -> None:
    resources = Resources(ram_end(2 * GIB), 39)
    assert resources.mmio32.allocate(0x8000, "a", alignment=0x8000) == 0xC0000000
    assert resources.mmio32.allocate(256 * MIB, "b", alignment=256 * MIB) == 0xD0000000
    with pytest.raises(RangeOutside):
        resources.mmio32.reserve(layout.PCI_ECAM, 1, "a device on the ECAM")


@pytest.mark.parametrize(
    ("memory", "bits", "window"),
    [
        (512 * MIB, 36, (4 * GIB, 64 * GIB - 1)),
        (3 * GIB, 39, (4 * GIB, 512 * GIB - 1)),
        (3 * GIB + 1 * MIB, 39, (5 * GIB, 512 * GIB - 1)),
        (64 * GIB, 46, (65 * GIB, 64 * TIB - 1)),
        (1 * TIB, 41, (1 * TIB + 1 * GIB, 2 * TIB - 1)),
        (1 * TIB, 48, (1 * TIB + 1 * GIB, 256 * TIB - 1)),
        (1 * TIB - 1 * GIB, 40, None),  # RAM takes all
        (1 * TIB - 1 * GIB - 4096, 40, None),  # what is left is no piece of a GiB
        (2 * GIB, 32, None),
    ],
)
def test_the_64_bit_area_begins_above_ram_and_ends_with_the_processor(
    memory: int, bits: int, window: tuple[int, int] | None
) -> None:
    assert Resources(ram_end(memory), bits).mmio64_window() == window


def test_a_terabyte_leaves_room_for_large_bars() -> None:
    resources = Resources(ram_end(1 * TIB), 46)
    base = resources.mmio64.allocate(16 * GIB, "a", alignment=16 * GIB)
    assert base >= ram_end(1 * TIB)
    assert base % (16 * GIB) == 0


def test_where_ram_leaves_no_64_bit_area_nothing_is_given() -> None:
    with pytest.raises(
        ResourcesExhausted, match=r"^a wants 0x8000 of the device addresses above RAM, of which this machine has none$"
    ):
        Resources(ram_end(1 * TIB - 1 * GIB), 40).mmio64.allocate(0x8000, "a")


def test_memory_of_devices_lies_between_ram_and_the_64_bit_area() -> None:
    resources = Resources(ram_end(3 * GIB + 1 * MIB), 39, [2 * MIB, 1 * GIB + 2 * MIB])
    assert resources.place_memory(2 * MIB, "a") == 5 * GIB
    assert resources.place_memory(1 * GIB + 2 * MIB, "b") == 6 * GIB
    assert resources.mmio64_window() == (8 * GIB, 512 * GIB - 1)
    with pytest.raises(ResourcesExhausted, match=r"c wants 0x1 of the addresses of devices' memory, but .* no such gap left"):
        resources.place_memory(1, "c")


def test_memory_of_a_device_is_where_it_was() -> None:
    resources = Resources(ram_end(1 * GIB), 39, [2 * MIB, 2 * MIB])
    assert resources.place_memory(2 * MIB, "b", 5 * GIB) == 5 * GIB
    assert resources.place_memory(2 * MIB, "a") == 4 * GIB
    with pytest.raises(RangeOverlap, match=r"c wants 0x100000000-0x1001fffff .*, but a has"):
        resources.place_memory(2 * MIB, "c", 4 * GIB)
    with pytest.raises(RangeOutside):
        resources.place_memory(2 * MIB, "c", 6 * GIB)


def test_memory_of_devices_that_the_processors_do_not_reach_is_refused() -> None:
    with pytest.raises(RangeOutside, match=r"^memory and the memory of devices would end at 0x1040000000, .* 36 address bits"):
        Resources(ram_end(1 * GIB), 36, [60 * GIB, 1])
    Resources(ram_end(1 * GIB), 36, [60 * GIB])


def test_memory_that_the_processors_do_not_reach_is_refused() -> None:
    with pytest.raises(
        RangeOutside, match=r"end at 0x10040000000, but this host's processors have 40 address bits.*0x10000000000"
    ):
        Resources(ram_end(1 * TIB), 40)
