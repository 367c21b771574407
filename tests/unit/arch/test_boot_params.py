"""The zero page at the offsets of Documentation/arch/x86/zero-page.rst, and the e820 map in it."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from support.guest_ram import GIB, MIB, guest_ram

from vmservice.arch.x86_64 import layout
from vmservice.arch.x86_64.boot_params import e820, write_zero_page
from vmservice.errors import ConfigError, VmmError
from vmservice.memory.guest_memory import GuestMemory

RAM, RESERVED, ACPI = 1, 2, 3
RSDP = 0xE0000


def zero_page(
    memory: GuestMemory,
    setup_header: bytes | None = None,
    initramfs: tuple[int, int] | None = None,
    cmdline_size: int = 7,
) -> bytes:
    memory.write(0x7000, b"\xa5" * 4096)  # what was there must not shine through
    write_zero_page(memory, setup_header=setup_header, cmdline_size=cmdline_size, initramfs=initramfs, rsdp=RSDP)
    return memory.read(0x7000, 4096)


def field(page: bytes, offset: int, size: int) -> int:
    return int.from_bytes(page[offset : offset + size], "little")


def e820_of(page: bytes) -> list[tuple[int, int, int]]:
    return [struct.unpack_from("<QQI", page, 0x2D0 + 20 * index) for index in range(page[0x1E8])]


def make_header() -> bytes:
    """A setup header as a bzImage has it from 0x1f1 on, of protocol 2.15: it ends at 0x202 + 0x6a."""
    header = bytearray((index * 7 + 1) & 0xFF for index in range(0x26C - 0x1F1))
    header[0x201 - 0x1F1] = 0x6A
    header[0x210 - 0x1F1] = 0  # type_of_loader, as in the file
    header[0x218 - 0x1F1 : 0x220 - 0x1F1] = bytes(8)  # ramdisk_image, ramdisk_size
    return bytes(header)


def test_elf_header_from_scratch() -> None:
    memory = guest_ram()
    page = zero_page(memory)
    assert field(page, 0x1FE, 2) == 0xAA55
    assert page[0x202:0x206] == b"HdrS"
    assert page[0x210] == 0xFF
    assert field(page, 0x228, 4) == 0x20000
    assert field(page, 0x230, 4) == 0x1000000
    assert field(page, 0x238, 4) == 7
    assert field(page, 0x70, 8) == RSDP
    memory.close()


def test_everything_else_is_zero() -> None:
    """The sentinel at 0x1ef among it: were it set, Linux would take most of the page for rubbish and clear it."""
    memory = guest_ram()
    page = bytearray(zero_page(memory))
    entries = page[0x1E8]
    for start, end in (
        (0x70, 0x78),
        (0x1E8, 0x1E9),
        (0x1FE, 0x200),
        (0x202, 0x206),
        (0x210, 0x211),
        (0x228, 0x22C),
        (0x230, 0x234),
        (0x238, 0x23C),
        (0x2D0, 0x2D0 + 20 * entries),
    ):
        page[start:end] = bytes(end - start)
    assert bytes(page) == bytes(4096)
    memory.close()


def test_bzimage_header_is_copied_whole() -> None:
    memory = guest_ram()
    header = make_header()
    page = zero_page(memory, header, cmdline_size=300)
    end = 0x1F1 + len(header)
    ours = [(0x210, 1), (0x228, 4), (0x238, 4)]
    written = {offset for start, size in ours for offset in range(start, start + size)}
    assert all(page[offset] == header[offset - 0x1F1] for offset in range(0x1F1, end) if offset not in written)
    assert page[end:0x2D0] == bytes(0x2D0 - end)
    assert page[0x1EF] == 0
    assert (field(page, 0x228, 4), field(page, 0x238, 4)) == (0x20000, 300)
    memory.close()


def test_loader_type_is_set_for_bzimage_too() -> None:
    """Cloud Hypervisor (December 2019) left the file's 0: Linux then takes it that nobody loaded an initramfs and drops it."""
    memory = guest_ram()
    assert zero_page(memory, make_header(), (0x1000000, 4096))[0x210] == 0xFF
    memory.close()


def test_header_that_would_run_over_the_rest_of_the_page_is_refused() -> None:
    memory = guest_ram()
    longest = bytes(0x290 - 0x1F1)
    zero_page(memory, longest)
    with pytest.raises(ConfigError, match="end at 0x291: the boot protocol gives it room up to 0x290"):
        zero_page(memory, longest + b"\0")
    memory.close()


@pytest.mark.parametrize("setup_header", [None, make_header()], ids=["elf", "bzimage"])
def test_initramfs(setup_header: bytes | None) -> None:
    memory = guest_ram()
    page = zero_page(memory, setup_header, (0x1_2345_6000, 0x2_0000_1234))
    assert (field(page, 0x218, 4), field(page, 0x0C0, 4)) == (0x23456000, 1)
    assert (field(page, 0x21C, 4), field(page, 0x0C4, 4)) == (0x1234, 2)
    page = zero_page(memory, setup_header)
    assert page[0x218:0x220] == page[0x0C0:0x0C8] == bytes(8)
    memory.close()


FIXED = [
    (0xE0000, 0x10000, ACPI),
    (0xF0000, 0x10000, RESERVED),
    (0xE8000000, 0x10000000, RESERVED),
    (0xFEFFC000, 0x4000, RESERVED),
]


@pytest.mark.parametrize(
    ("size", "ram"),
    [
        (2 * MIB, [(0, 0xA0000), (MIB, MIB)]),
        (128 * MIB, [(0, 0xA0000), (MIB, 127 * MIB)]),
        (3 * GIB, [(0, 0xA0000), (MIB, 3 * GIB - MIB)]),
        (3 * GIB + 2 * MIB, [(0, 0xA0000), (MIB, 3 * GIB - MIB), (4 * GIB, 2 * MIB)]),
    ],
)
def test_e820(size: int, ram: list[tuple[int, int]]) -> None:
    """Low 640 KiB and what is above 1 MiB are RAM, round the hole; ACPI, MP table, ECAM and KVM's own pages are not."""
    memory = guest_ram(*layout.ram_ranges(size))
    expected = sorted([(start, length, RAM) for start, length in ram] + FIXED)
    assert e820_of(zero_page(memory)) == expected
    assert all(start + length <= following for (start, length, _), (following, _, _) in pairwise(expected))
    memory.close()


def test_e820_of_a_guest_that_ends_below_1_mib_has_no_empty_ranges() -> None:
    memory = guest_ram((0, MIB))
    assert [entry for entry in e820(memory) if entry[2] == RAM] == [(0, 0xA0000, RAM)]
    memory.close()


def test_e820_table_full() -> None:
    """128 entries fit: four fixed, the low RAM, and so 123 regions more; with the next one nothing is written."""
    regions = [(0, 64 << 10), *((MIB + index * 8192, 4096) for index in range(123))]
    memory = guest_ram(*regions)
    page = zero_page(memory)
    assert page[0x1E8] == 128
    assert len(e820_of(page)) == 128
    memory.close()

    memory = guest_ram(*regions, (64 * MIB, 4096))
    with pytest.raises(VmmError, match="129 entries: the zero page has room for 128"):
        zero_page(memory)
    assert memory.read(0x7000, 4096) == b"\xa5" * 4096
    memory.close()
