"""The GDT, the segment registers made of it, and the boot page tables."""

from __future__ import annotations

import struct

import pytest
from support.guest_ram import guest_ram

from vmservice.arch.x86_64 import gdt, layout
from vmservice.arch.x86_64.paging import write_page_tables


@pytest.mark.parametrize(
    ("table", "bytes_of_it"),
    [
        (gdt.LONG_MODE, "0000000000000000ffff0000009baf00ffff00000093cf00ffff0000008b8f00"),
        (gdt.PROTECTED_MODE, "0000000000000000ffff0000009bcf00ffff00000093cf0067000000008b0000"),
    ],
)
def test_gdt_bytes(table: tuple[int, ...], bytes_of_it: str) -> None:
    memory = guest_ram()
    memory.write(layout.BOOT_IDT, b"\xff" * 8)
    gdt.write_gdt(memory, table)
    assert memory.read(0x500, gdt.GDT_LIMIT + 1).hex() == bytes_of_it
    assert memory.read(0x520, gdt.IDT_LIMIT + 1) == bytes(8)
    memory.close()


@pytest.mark.parametrize(
    ("table", "index", "fields"),
    [
        (gdt.LONG_MODE, gdt.CODE, {"selector": 0x08, "type": 0xB, "s": 1, "l": 1, "db": 0}),
        (gdt.LONG_MODE, gdt.DATA, {"selector": 0x10, "type": 0x3, "s": 1, "l": 0, "db": 1}),
        (gdt.LONG_MODE, gdt.TSS, {"selector": 0x18, "type": 0xB, "s": 0, "l": 0, "db": 0}),
        (gdt.PROTECTED_MODE, gdt.CODE, {"selector": 0x08, "type": 0xB, "s": 1, "l": 0, "db": 1}),
        (gdt.PROTECTED_MODE, gdt.DATA, {"selector": 0x10, "type": 0x3, "s": 1, "l": 0, "db": 1}),
        (gdt.PROTECTED_MODE, gdt.TSS, {"selector": 0x18, "type": 0xB, "s": 0, "l": 0, "db": 0, "g": 0, "limit": 0x67}),
    ],
)
def test_segments(table: tuple[int, ...], index: int, fields: dict[str, int]) -> None:
    """The limit is in bytes once the granularity is 4 KiB, as the checks on VM entry want it."""
    segment = gdt.segment(table, index)
    expected = {"base": 0, "limit": 0xFFFFFFFF, "present": 1, "dpl": 0, "g": 1, "avl": 0, "unusable": 0} | fields
    assert {name: getattr(segment, name) for name in segment.__slots__} == expected


def test_segment_takes_its_descriptor_apart() -> None:
    """Base 0x12345678 in three pieces, limit 0xabcde in bytes, DPL 3, AVL (Intel SDM vol. 3A, segment descriptor)."""
    segment = gdt.Segment(0x28, 0x12_1A_F2_345678_BCDE)
    assert (segment.selector, segment.base, segment.limit) == (0x28, 0x12345678, 0xABCDE)
    assert (segment.type, segment.s, segment.dpl, segment.present) == (2, 1, 3, 1)
    assert (segment.avl, segment.l, segment.db, segment.g) == (1, 0, 0, 0)


def test_null_segment_is_unusable() -> None:
    assert gdt.segment(gdt.LONG_MODE, gdt.NULL).unusable == 1


def test_page_tables_map_the_first_gib_one_to_one() -> None:
    memory = guest_ram()
    memory.write(layout.PML4, b"\xff" * 3 * 4096)  # what a guest of before a reset might have left
    write_page_tables(memory)

    def translate(linear: int) -> int | None:
        entry = 0
        table = layout.PML4
        for shift in (39, 30, 21):
            entry = struct.unpack("<Q", memory.read(table + (linear >> shift & 0x1FF) * 8, 8))[0]
            if not entry & 1:
                return None
            assert entry & 2, "writable"
            table = entry & 0xFFFFFFFFFF000
        assert entry & 1 << 7, "a 2 MiB page"
        return (entry & 0xFFFFFFFE00000) + (linear & 0x1FFFFF)

    for linear in (0, 0x7000, 0x1FFFFF, 0x200000, 0x1234_5678, (1 << 30) - 1):
        assert translate(linear) == linear
    for linear in (1 << 30, 1 << 39, 0xFFFFFFFF80000000):
        assert translate(linear) is None
    memory.close()
