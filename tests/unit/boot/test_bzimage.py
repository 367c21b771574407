"""bzImage into guest memory: the bytes, the places, and every header that is refused."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.images import MakeFile, bzimage, pattern

from vmservice.boot.loader import load_kernel
from vmservice.errors import ConfigError
from vmservice.memory.guest_memory import GuestMemory

CODE = pattern(0x1230)


def test_code_lies_at_the_preferred_address_and_nothing_else_is_written(memory: GuestMemory, make_file: MakeFile) -> None:
    kernel = load_kernel(make_file(bzimage(CODE)), memory)
    assert memory.read(0x200000, len(CODE)) == CODE
    assert set(memory.read(0, 0x200000)) == {0xCC}
    assert set(memory.read(0x200000 + len(CODE), 0x1000)) == {0xCC}
    assert (kernel.protocol, kernel.start, kernel.entry) == ("64-bit", 0x200000, 0x200200)
    assert kernel.end == 0x280000  # init_size, not the end of the packed code


def test_facts_for_the_zero_page_come_from_the_header(memory: GuestMemory, make_file: MakeFile) -> None:
    image = bzimage(CODE, cmdline_size=511, initrd_addr_max=0x37FFFFFF)
    kernel = load_kernel(make_file(image), memory)
    assert kernel.setup_header == image[0x1F1:0x26C]
    assert kernel.cmdline_max == 511
    assert kernel.initrd_addr_max == 0x37FFFFFF


def test_setup_sects_of_zero_means_four(memory: GuestMemory, make_file: MakeFile) -> None:
    load_kernel(make_file(bzimage(CODE, setup_sects=0)), memory)
    assert memory.read(0x200000, len(CODE)) == CODE


def test_a_signature_behind_the_code_is_not_loaded(memory: GuestMemory, make_file: MakeFile) -> None:
    load_kernel(make_file(bzimage(CODE) + b"signature"), memory)
    assert memory.read(0x200000 + len(CODE), 9) == b"\xcc" * 9


def test_a_kernel_that_needs_no_more_than_its_code(memory: GuestMemory, make_file: MakeFile) -> None:
    assert load_kernel(make_file(bzimage(CODE, init_size=0)), memory).end == 0x200000 + len(CODE)


@pytest.mark.parametrize(
    ("fields", "start"),
    [
        ({"pref_address": 0, "kernel_alignment": 0x1000}, 0x100000),  # no preference: code32_start
        ({"pref_address": 0x201000, "relocatable_kernel": 0}, 0x201000),
        ({"pref_address": 0x101000}, 0x200000),  # it would move itself up to its alignment
        ({"pref_address": 0x101000, "relocatable_kernel": 0, "kernel_alignment": 0}, 0x101000),
    ],
)
def test_load_address(memory: GuestMemory, make_file: MakeFile, fields: dict[str, int], start: int) -> None:
    kernel = load_kernel(make_file(bzimage(CODE, **fields)), memory)
    assert (kernel.start, kernel.entry) == (start, start + 0x200)
    assert memory.read(start, len(CODE)) == CODE


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"boot_flag": 0}, "damaged boot sector"),
        ({"version": 0x020B}, r"boot protocol 2\.11; at least 2\.12"),
        ({"version": 0x0100}, r"boot protocol 1\.00"),
        ({"xloadflags": 0}, "32-bit kernel"),
        ({"xloadflags": 0xFFFE}, "32-bit kernel"),
        ({"loadflags": 0}, "zImage"),
        ({"jump_length": 0x10}, "ends at 0x212"),
        ({"syssize": 0}, "0 bytes of code"),
        ({"syssize": 0x20}, "512 bytes of code"),
        ({"kernel_alignment": 0x3000}, "alignment of 0x3000"),
        ({"kernel_alignment": 0}, "alignment of 0x0"),
        ({"relocatable_kernel": 0, "pref_address": 0xFFFF0}, "0xffff0"),
        ({"relocatable_kernel": 0, "pref_address": 0xFFFFFFFFFFFFFFF0}, "first GiB"),
        ({"init_size": 0x200001}, r"guest memory ends at 0x400000; memory\.size must be at least 5M"),
        ({"init_size": 0xFFFFFFFF}, "first GiB"),
        ({"syssize": 0xFFFFFFFF}, "truncated"),
    ],
)
def test_refused_header(memory: GuestMemory, make_file: MakeFile, fields: dict[str, int], words: str) -> None:
    path = make_file(bzimage(CODE, **fields))
    with pytest.raises(ConfigError, match=words) as caught:
        load_kernel(path, memory)
    assert path in str(caught.value)
    assert set(memory.read(0, memory.size_bytes)) == {0xCC}


def test_exactly_enough_memory_is_enough(memory: GuestMemory, make_file: MakeFile) -> None:
    assert load_kernel(make_file(bzimage(CODE, init_size=0x200000)), memory).end == memory.end


def test_truncated_at_any_byte_of_the_header(memory: GuestMemory, make_file: MakeFile) -> None:
    image = bzimage(CODE)
    path = make_file(image)
    for size in reversed(range(0x400)):
        os.truncate(path, size)
        with pytest.raises(ConfigError) as caught:
            load_kernel(path, memory)
        if size == 0:
            expected = "is empty"
        elif size < 0x206:
            expected = f"({size} bytes) is neither a bzImage nor an ELF file"
        elif size < 0x264:
            expected = f"is truncated: {size} of {0x264} bytes are there"
        elif size < 0x26C:
            expected = f"is truncated: {size} of {0x26C} bytes are there"
        else:
            expected = f"is truncated: {size} of {len(image)} bytes are there"
        assert expected in str(caught.value)
    assert set(memory.read(0, memory.size_bytes)) == {0xCC}


def test_setup_sects_that_point_behind_the_file(memory: GuestMemory, make_file: MakeFile) -> None:
    image = bytearray(bzimage(CODE))
    image[0x1F1] = 255
    with pytest.raises(ConfigError, match=f"truncated: {len(image)} of {256 * 512 + len(CODE)} bytes"):
        load_kernel(make_file(bytes(image)), memory)


@pytest.mark.parametrize("missing", [1, 16, len(CODE) - 1])
def test_truncated_in_the_code(memory: GuestMemory, make_file: MakeFile, missing: int) -> None:
    image = bzimage(CODE)
    path = make_file(image[:-missing])
    with pytest.raises(ConfigError, match=f"truncated: {len(image) - missing} of {len(image)} bytes"):
        load_kernel(path, memory)
    assert set(memory.read(0, memory.size_bytes)) == {0xCC}


def test_header_that_is_longer_than_the_zero_page_has_room_for_is_cut(memory: GuestMemory, make_file: MakeFile) -> None:
    image = bzimage(CODE, jump_length=0xFF)
    kernel = load_kernel(make_file(image), memory)
    assert kernel.setup_header == image[0x1F1:0x290]


@settings(derandomize=True, max_examples=300, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0x1F1, 0x26B), st.integers(0, 255)), min_size=1, max_size=8))
def test_damaged_headers_are_refused_or_loaded_inside_memory(
    memory: GuestMemory, make_file: MakeFile, changes: list[tuple[int, int]]
) -> None:
    image = bytearray(bzimage(CODE))
    for offset, value in changes:
        image[offset] = value
    try:
        kernel = load_kernel(make_file(bytes(image)), memory)
    except ConfigError as error:
        assert "\n" not in str(error)
    else:
        assert 0x100000 <= kernel.start < kernel.entry < kernel.end <= memory.end
