"""The note by which an ELF kernel says that it can be entered by PVH, and notes that only look like it."""

from __future__ import annotations

import random
import struct

import pytest
from support.images import MakeFile, elf, note_segment, pattern, pvh_note, segment

from vmservice.boot.elf import find_pvh_entry
from vmservice.boot.loader import load_kernel
from vmservice.errors import ConfigError
from vmservice.memory.guest_memory import GuestMemory

TEXT = pattern(0x1000)
BUILD_ID = struct.pack("<III", 4, 20, 3) + b"GNU\0" + bytes(20)
VERSION = struct.pack("<III", 6, 5, 257) + b"Linux\0\0\0" + b"6.12\0\0\0\0"  # both padded


def image(notes: bytes, entry: int = 0x100000) -> bytes:
    return elf([segment(0x100000, TEXT), note_segment(notes)], entry=entry)


@pytest.mark.parametrize("size", [4, 8])
@pytest.mark.parametrize("before", [b"", BUILD_ID, VERSION + BUILD_ID])
def test_a_kernel_with_the_note_is_entered_by_pvh(memory: GuestMemory, make_file: MakeFile, before: bytes, size: int) -> None:
    kernel = load_kernel(make_file(image(before + pvh_note(0x100B20, size=size) + BUILD_ID)), memory)
    assert (kernel.protocol, kernel.entry) == ("PVH", 0x100B20)


def test_the_entry_of_the_header_then_does_not_matter(memory: GuestMemory, make_file: MakeFile) -> None:
    """A kernel that is only made for PVH may have a virtual address there."""
    kernel = load_kernel(make_file(image(pvh_note(0x100010), entry=0xFFFFFFFF80100000)), memory)
    assert (kernel.protocol, kernel.entry) == ("PVH", 0x100010)


@pytest.mark.parametrize(
    "notes",
    [
        b"",
        BUILD_ID,
        pvh_note(0x100010, kind=17),
        pvh_note(0x100010, name=b"Xem\0"),
        pvh_note(0x100010, name=b"Xen"),
        pvh_note(0x10, size=2),
        pvh_note(0x100010)[:-1],
        struct.pack("<III", 0xFFFFFFFF, 4, 18) + b"Xen\0",
    ],
)
def test_without_it_by_its_64_bit_start(memory: GuestMemory, make_file: MakeFile, notes: bytes) -> None:
    kernel = load_kernel(make_file(image(notes)), memory)
    assert (kernel.protocol, kernel.entry) == ("64-bit", 0x100000)


@pytest.mark.parametrize("entry", [0, 0xFFFFF, 0x101000, 0xFFFFFFFF])
def test_an_entry_outside_the_kernel_is_refused(memory: GuestMemory, make_file: MakeFile, entry: int) -> None:
    with pytest.raises(ConfigError, match=f"has its entry at {entry:#x}, which is in none of its segments"):
        load_kernel(make_file(image(pvh_note(entry))), memory)


def test_notes_padded_to_eight_bytes() -> None:
    """As GNU properties are: with the padding of 4 the next note would not be found."""
    padded = struct.pack("<III", 4, 4, 5) + b"GNU\0" + b"abcd" + bytes(4)
    wide = struct.pack("<III", 4, 4, 18) + b"Xen\0" + (0x100010).to_bytes(4, "little")
    assert find_pvh_entry(padded + wide, 8) == 0x100010
    assert find_pvh_entry(padded + wide, 4) is None


def test_random_notes_raise_nothing() -> None:
    rng = random.Random(18)
    for _ in range(2000):
        notes = rng.randbytes(rng.randrange(80))
        find_pvh_entry(notes, rng.choice((4, 8)))
        find_pvh_entry(struct.pack("<II", rng.randrange(16), rng.randrange(16)) + notes, 4)
