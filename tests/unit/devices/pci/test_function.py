"""A function's header and BARs, looked at as Linux does: what it writes to find a size, and what it must read back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmservice.devices.pci.function import COMMAND_MEMORY, Bar, Identity, PciFunction
from vmservice.devices.pci.host_bridge import host_bridge

IDENTITY = Identity(0x1AF4, 0x1043, 0x07_80_00, revision=1, subsystem_vendor=0x1AF4, subsystem=0x1100)


class Region:
    """Nothing behind it."""

    def read(self, offset: int, size: int) -> bytes:
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None: ...


def function_with(size: int, *, is_64bit: bool, prefetchable: bool = False) -> tuple[PciFunction, Bar]:
    function = PciFunction(IDENTITY)
    return function, function.add_bar(0, size, Region(), is_64bit=is_64bit, prefetchable=prefetchable)


def u32(function: PciFunction, offset: int) -> int:
    return int.from_bytes(function.read_config(offset, 4), "little")


def write32(function: PciFunction, offset: int, value: int) -> None:
    function.write_config(offset, value.to_bytes(4, "little"))


def test_header() -> None:
    function = PciFunction(IDENTITY)
    assert function.read_config(0, 0x10) == bytes.fromhex("f41a431000000000 01008007 00000000".replace(" ", ""))
    assert function.read_config(0x2C, 4) == bytes.fromhex("f41a0011")
    assert function.read_config(0x3C, 2) == b"\x00\x00"  # no interrupt pin


def test_host_bridge_is_what_a_guest_looks_for() -> None:
    bridge = host_bridge()
    assert u32(bridge, 0x00) == 0x0D578086
    assert u32(bridge, 0x08) == 0x06000000
    assert u32(bridge, 0x0C) == 0
    for offset in range(0x10, 0x28, 4):
        write32(bridge, offset, 0xFFFFFFFF)
        assert u32(bridge, offset) == 0


def test_command_keeps_what_a_driver_sets_and_has_no_io_space() -> None:
    function = PciFunction(IDENTITY)
    function.write_config(0x04, b"\xff\xff")
    assert function.read_config(0x04, 2) == b"\x46\x05"
    function.write_config(0x04, b"\x06\x00")
    assert function.read_config(0x04, 2) == b"\x06\x00"


def test_only_the_fields_of_drivers_take_a_write() -> None:
    function = PciFunction(IDENTITY)
    before = function.read_config(0, 0x100)
    function.write_config(0, b"\xff" * 0x100)
    after = function.read_config(0, 0x100)
    changed = {offset for offset in range(0x100) if before[offset] != after[offset]}
    assert changed == {0x04, 0x05, 0x0C, 0x3C}  # command, cache line size, interrupt line


def linux_size(function: PciFunction, *, is_64bit: bool) -> int:
    """pci_read_bases(): memory decoding off, all ones into each half, read back, put back, decoding as before."""
    command = function.read_config(0x04, 2)
    function.write_config(0x04, bytes((command[0] & ~0x03, command[1])))
    masks = []
    for offset in (0x10, 0x14)[: 1 + is_64bit]:
        original = u32(function, offset)
        write32(function, offset, 0xFFFFFFFF)
        masks.append(u32(function, offset))
        write32(function, offset, original)
        assert u32(function, offset) == original
    function.write_config(0x04, command)
    mask = masks[0] & ~0xF | (masks[1] << 32 if is_64bit else 0xFFFFFFFF << 32)
    return (~mask & (1 << 64) - 1) + 1


@pytest.mark.parametrize("is_64bit", [False, True])
@pytest.mark.parametrize("size", [16, 0x1000, 0x8000, 1 << 20, 1 << 31])
def test_sizing_as_linux_does_it(size: int, is_64bit: bool) -> None:
    function, bar = function_with(size, is_64bit=is_64bit)
    function.place_bar(bar, 0x8000_0000)
    assert linux_size(function, is_64bit=is_64bit) == size
    assert u32(function, 0x10) == 0x8000_0000 | (4 if is_64bit else 0)


def test_sizing_a_bar_beyond_4_gib() -> None:
    function, bar = function_with(1 << 36, is_64bit=True, prefetchable=True)
    function.place_bar(bar, 1 << 40)
    assert linux_size(function, is_64bit=True) == 1 << 36
    assert (u32(function, 0x10), u32(function, 0x14)) == (0xC, 0x100)


def test_a_32_bit_bar_leaves_its_neighbour_alone() -> None:
    function, _ = function_with(0x1000, is_64bit=False)
    write32(function, 0x14, 0xFFFFFFFF)
    assert u32(function, 0x14) == 0


def test_a_bar_decodes_only_while_memory_space_is_enabled() -> None:
    function, bar = function_with(0x8000, is_64bit=True)
    function.place_bar(bar, 0x1_2345_8000)
    assert function.decoded(bar) is None
    function.write_config(0x04, b"\x02")
    assert function.decoded(bar) == 0x1_2345_8000
    function.write_config(0x04, b"\x00")
    assert function.decoded(bar) is None


def test_the_bus_is_told_of_changed_decoding_and_of_nothing_else() -> None:
    function, bar = function_with(0x8000, is_64bit=True)
    told: list[int | None] = []
    function.on_decode_changed = lambda: told.append(function.decoded(bar))
    function.write_config(0x04, b"\x02\x00")
    function.write_config(0x04, b"\x02\x00")
    function.write_config(0x04, b"\x06\x04")  # bus master, INTx disable
    function.write_config(0x0C, b"\x10")
    function.write_config(0x3C, b"\x0b")
    assert told == [0]
    write32(function, 0x10, 0xC000_7FFF)
    write32(function, 0x14, 1)
    assert told == [0, 0xC000_0000, 0x1_C000_0000]
    # A dword over command and status, as Linux never writes it: still one change.
    write32(function, 0x04, 0)
    assert told[3:] == [None]


@pytest.mark.parametrize(
    ("index", "size", "is_64bit"), [(0, 8, True), (0, 0x3000, True), (0, 0, False), (5, 16, True), (6, 16, False)]
)
def test_an_impossible_bar_is_refused(index: int, size: int, is_64bit: bool) -> None:
    with pytest.raises(ValueError, match=f"BAR {index}"):
        PciFunction(IDENTITY).add_bar(index, size, Region(), is_64bit=is_64bit)


@pytest.mark.parametrize(("index", "is_64bit"), [(1, True), (2, False), (2, True), (3, False)])
def test_a_bar_on_a_taken_register_is_refused(index: int, is_64bit: bool) -> None:
    function = PciFunction(IDENTITY)
    function.add_bar(2, 0x1000, Region(), is_64bit=True)
    function.add_bar(0, 0x1000, Region(), is_64bit=True)
    with pytest.raises(ValueError, match=f"BAR {index} is not free"):
        function.add_bar(index, 0x1000, Region(), is_64bit=is_64bit)


@pytest.mark.parametrize("base", [0x1000, -0x8000, 1 << 32])
def test_a_bar_goes_nowhere_impossible(base: int) -> None:
    function, bar = function_with(0x8000, is_64bit=False)
    with pytest.raises(ValueError, match="cannot lie at"):
        function.place_bar(bar, base)


@settings(derandomize=True, max_examples=300, deadline=None, database=None)
@given(writes=st.lists(st.tuples(st.integers(0, 0x110), st.binary(min_size=1, max_size=8)), max_size=20))
def test_no_write_moves_a_bar_off_its_size(writes: list[tuple[int, bytes]]) -> None:
    function, bar = function_with(0x8000, is_64bit=True)
    for offset, data in writes:
        function.write_config(offset, data)
        base = function.decoded(bar)
        assert base is None or (base % 0x8000 == 0 and base + 0x8000 <= 1 << 64)
        assert u32(function, 0x10) & 0xF == 4
        assert (base is not None) == bool(function.read_config(4, 1)[0] & COMMAND_MEMORY)
        assert len(function.read_config(offset, len(data))) == len(data)
