"""Configuration space: which bits a write changes, at every width and offset, and the list of capabilities."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmservice.devices.pci.config_space import CONVENTIONAL_SIZE, ConfigSpace

EXPRESS_SIZE = 4096
SIZES = (CONVENTIONAL_SIZE, EXPRESS_SIZE)


def mixed(size: int) -> ConfigSpace:
    """0x40-0x4f read-write, 0x50-0x5f cleared by ones, all else read-only; every byte starts as 0xa5."""
    space = ConfigSpace(size)
    space.preset(0, int.from_bytes(b"\xa5" * size, "little"), size)
    space.allow(0x40, (1 << 128) - 1, 16)
    space.allow_clear(0x50, (1 << 128) - 1, 16)
    return space


def test_nothing_is_writable_until_it_is_allowed() -> None:
    space = ConfigSpace()
    space.write(0, b"\xff" * CONVENTIONAL_SIZE)
    assert space.read(0, CONVENTIONAL_SIZE) == bytes(CONVENTIONAL_SIZE)


def test_masks_are_by_the_bit() -> None:
    space = ConfigSpace()
    space.preset(0x10, 0xF0F0, 2)
    space.allow(0x10, 0x0FF0, 2)
    space.write(0x10, b"\xff\xff")
    assert space.value(0x10, 2) == 0xFFF0
    space.write(0x10, b"\x00\x00")
    assert space.value(0x10, 2) == 0xF000


def test_a_one_clears_and_a_zero_leaves() -> None:
    space = ConfigSpace()
    space.preset(0x06, 0xF910, 2)
    space.allow_clear(0x06, 0xF900, 2)
    space.write(0x06, b"\x00\x00")
    assert space.value(0x06, 2) == 0xF910
    space.write(0x07, b"\x81")
    assert space.value(0x06, 2) == 0x7810
    space.write(0x04, b"\x00\x00\xff\xff")
    assert space.value(0x06, 2) == 0x0010


def expected(before: bytes, offset: int, data: bytes) -> bytes:
    after = bytearray(before)
    for position, value in enumerate(data, offset):
        if 0x40 <= position < 0x50:
            after[position] = value
        elif 0x50 <= position < 0x60:
            after[position] &= ~value & 0xFF
    return bytes(after)


@pytest.mark.parametrize("size", SIZES)
@settings(derandomize=True, max_examples=300, deadline=None, database=None)
@given(
    offset=st.one_of(st.integers(0x38, 0x68), st.integers(0, EXPRESS_SIZE + 8)),
    data=st.binary(min_size=0, max_size=9),
)
def test_every_width_at_every_offset(size: int, offset: int, data: bytes) -> None:
    space = mixed(size)
    before = space.read(0, size)
    space.write(offset, data)
    assert space.read(0, size) == expected(before, offset, data)
    there = space.read(0, size)[offset : offset + len(data)]
    assert space.read(offset, len(data)) == there + b"\xff" * (len(data) - len(there))


@pytest.mark.parametrize("size", SIZES)
def test_every_single_write_of_a_dword_or_less(size: int) -> None:
    """No sampling: 1, 2, 4 and 8 bytes at each offset, and past the end."""
    space = mixed(size)
    for offset in range(size + 8):
        for width in (1, 2, 4, 8):
            before = space.read(0, size)
            data = bytes((offset * 7 + position * 31 + width) & 0xFF for position in range(width))
            space.write(offset, data)
            assert space.read(0, size) == expected(before, offset, data)


def test_capabilities_are_a_list_on_dword_boundaries() -> None:
    space = ConfigSpace()
    assert not space.value(0x06, 2) & 0x10
    first = space.add_capability(0x09, b"\x05abc")  # ends at 0x46
    second = space.add_capability(0x11, bytes(10))
    third = space.add_capability(0x05, b"")
    assert (first, second, third) == (0x40, 0x48, 0x54)
    assert space.value(0x06, 2) & 0x10
    assert space.value(0x34, 1) == first
    assert space.read(0x40, 6) == b"\x09\x48\x05abc"
    assert space.read(0x48, 2) == b"\x11\x54"
    assert space.read(0x54, 2) == b"\x05\x00"


def test_the_list_ends_where_a_pointer_of_one_byte_does() -> None:
    space = ConfigSpace(EXPRESS_SIZE)
    space.add_capability(0x09, bytes(0xB2))  # up to 0xf4
    before = space.read(0, EXPRESS_SIZE)
    with pytest.raises(ValueError, match="capability 0x11 would end at 0x101"):
        space.add_capability(0x11, bytes(11))
    assert space.read(0, EXPRESS_SIZE) == before
    assert space.add_capability(0x11, bytes(10)) == 0xF4


def build(space: ConfigSpace) -> int:
    space.preset(0x10, 0x8, 4)
    space.allow(0x10, 0xFFFF0000, 4)
    return space.add_capability(0x11, bytes(10))


def test_a_space_built_from_a_state_goes_on() -> None:
    old = ConfigSpace()
    capability = build(old)
    old.write(0x10, b"\x00\x00\x12\xc0")
    new = ConfigSpace(state=old.state)
    assert build(new) == capability
    assert new.read(0, 256) == old.read(0, 256)
    new.write(0x10, b"\xff\xff\xff\xff")
    assert new.value(0x10, 4) == 0xFFFF0008
