"""ELF kernels into guest memory: segments at their physical addresses, and no damage that gets past a ConfigError."""

from __future__ import annotations

import os
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.images import MakeFile, elf, pattern, segment

from vmservice.boot.loader import load_kernel
from vmservice.errors import ConfigError
from vmservice.memory.guest_memory import GuestMemory

TEXT = pattern(0x1234)
DATA = pattern(0x345, seed=11)


def kernel_image(**fields: int) -> bytes:
    return elf([segment(0x100000, TEXT), segment(0x200000, DATA, memory_size=0x5000)], entry=0x100010, **fields)


def test_segments_lie_at_their_physical_addresses(memory: GuestMemory, make_file: MakeFile) -> None:
    kernel = load_kernel(make_file(kernel_image()), memory)
    assert memory.read(0x100000, len(TEXT)) == TEXT
    assert memory.read(0x200000, len(DATA)) == DATA
    assert set(memory.read(0, 0x100000)) == {0xCC}
    assert memory.read(0x100000 + len(TEXT), 1) == b"\xcc"
    assert (kernel.protocol, kernel.entry, kernel.start, kernel.end) == ("64-bit", 0x100010, 0x100000, 0x205000)
    assert (kernel.setup_header, kernel.cmdline_max, kernel.initrd_addr_max) == (None, 2047, 0x7FFFFFFF)


def test_bss_is_cleared_in_memory_that_was_used_before(memory: GuestMemory, make_file: MakeFile) -> None:
    load_kernel(make_file(kernel_image()), memory)
    assert memory.read(0x200000 + len(DATA), 0x5000 - len(DATA)) == bytes(0x5000 - len(DATA))
    assert memory.read(0x205000, 1) == b"\xcc"


def test_bss_larger_than_one_piece_of_zeros(memory: GuestMemory, make_file: MakeFile) -> None:
    size = (2 << 20) + 5
    load_kernel(make_file(elf([segment(0x100000, TEXT, memory_size=size)], entry=0x100000)), memory)
    assert memory.read(0x100000 + len(TEXT), size - len(TEXT)) == bytes(size - len(TEXT))
    assert memory.read(0x100000 + size, 1) == b"\xcc"


def test_segments_in_any_order_and_other_program_headers(memory: GuestMemory, make_file: MakeFile) -> None:
    image = elf(
        [segment(0x200000, DATA), segment(0, b"note", kind=4), segment(0x100000, TEXT), segment(0, b"")],
        entry=0x200000,
    )
    kernel = load_kernel(make_file(image), memory)
    assert (kernel.start, kernel.end) == (0x100000, 0x200000 + len(DATA))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (elf([], entry=0x100000), "no PT_LOAD"),
        (elf([segment(0xFF000, TEXT)], entry=0xFF000), "wants to be at 0xff000"),
        (elf([segment(0x400000, TEXT)], entry=0x400000), "memory.size must be at least 5M"),
        (elf([segment(0x3FF000, TEXT)], entry=0x3FF000), "guest memory ends at 0x400000"),
        (elf([segment(0x100000, TEXT, memory_size=0x300001)], entry=0x100000), "guest memory ends at 0x400000"),
        (elf([segment(0xD0000000, TEXT)], entry=0xD0000000), "first GiB"),
        (elf([segment(0x100000, TEXT, memory_size=1 << 63)], entry=0x100000), "first GiB"),
        (elf([segment(0xFFFFFFFFFFFFF000, TEXT)], entry=0x100000), "first GiB"),
        (elf([segment(0x100000, TEXT, memory_size=0x100)], entry=0x100000), "4660 bytes in the file, but only 256"),
        (
            elf([segment(0x100000, TEXT), segment(0x101000, DATA)], entry=0x100000),
            "overlapping segments at 0x100000 and 0x101000",
        ),
        (elf([segment(0x100000, TEXT)], entry=0x100000 + len(TEXT)), "entry at 0x101234"),
        (elf([segment(0x100000, TEXT)], entry=0xFFFFFFFF81000000), "entry at 0xffffffff81000000"),
        (kernel_image(kind=1), "type REL;"),
        (kernel_image(kind=3), "type DYN;"),
        (kernel_image(machine=183), "64-bit little-endian ELF file for AARCH64;"),
        (kernel_image(machine=0xFEFE), "ELF file for 65278;"),
        (kernel_image(phnum=0xFFFF), "65535 program headers"),
        (kernel_image(phnum=129), "129 program headers"),
        (kernel_image(phnum=128), "truncated"),
    ],
)
def test_refused_image(memory: GuestMemory, make_file: MakeFile, image: bytes, words: str) -> None:
    path = make_file(image)
    with pytest.raises(ConfigError, match=words) as caught:
        load_kernel(path, memory)
    assert path in str(caught.value)
    assert set(memory.read(0, memory.size_bytes)) == {0xCC}


@pytest.mark.parametrize(
    ("elf_class", "order", "machine", "words"),
    [
        (1, 1, 3, "32-bit little-endian ELF file for 386;"),
        (1, 1, 62, "32-bit little-endian ELF file for X86_64;"),  # x32
        (2, 2, 22, "64-bit big-endian ELF file for S390;"),
        (1, 2, 20, "32-bit big-endian ELF file for PPC;"),
    ],
)
def test_other_machines_are_named(
    memory: GuestMemory, make_file: MakeFile, elf_class: int, order: int, machine: int, words: str
) -> None:
    endian = "<" if order == 1 else ">"
    address = "I" if elf_class == 1 else "Q"
    ident = b"\x7fELF" + bytes([elf_class, order, 1]) + bytes(9)
    header = struct.pack(f"{endian}HHI3{address}I6H", 2, machine, 1, 0x100000, 0, 0, 0, 52, 32, 0, 40, 0, 0)
    with pytest.raises(ConfigError, match=words):
        load_kernel(make_file(ident + header + bytes(64)), memory)


def test_truncated_at_any_byte(memory: GuestMemory, make_file: MakeFile) -> None:
    image = kernel_image()
    path = make_file(image)
    for size in reversed(range(len(image))):
        os.truncate(path, size)
        if size > 400 and size % 97:
            continue
        with pytest.raises(ConfigError):
            load_kernel(path, memory)
    assert set(memory.read(0, memory.size_bytes)) == {0xCC}


@settings(derandomize=True, max_examples=400, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(4, 64 + 2 * 56 - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_damaged_headers_are_refused_or_loaded_inside_memory(
    memory: GuestMemory, make_file: MakeFile, changes: list[tuple[int, int]]
) -> None:
    image = bytearray(kernel_image())
    for offset, value in changes:
        image[offset] = value
    try:
        kernel = load_kernel(make_file(bytes(image)), memory)
    except ConfigError as error:
        assert "\n" not in str(error)
    else:
        assert 0x100000 <= kernel.start <= kernel.entry < kernel.end <= memory.end


@settings(derandomize=True, max_examples=200, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_random_bytes_behind_the_magic_are_refused(memory: GuestMemory, make_file: MakeFile, content: bytes) -> None:
    with pytest.raises(ConfigError):
        load_kernel(make_file(b"\x7fELF" + content), memory)
