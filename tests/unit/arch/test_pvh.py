"""The PVH start info, its modules and its memory map, byte by byte (Xen, public/arch-x86/hvm/start_info.h)."""

from __future__ import annotations

import struct

import pytest
from support.guest_ram import GIB, MIB, guest_ram

from vmservice.arch.x86_64 import layout
from vmservice.arch.x86_64.boot_params import e820
from vmservice.arch.x86_64.pvh import write_start_info
from vmservice.errors import VmmError


def test_every_byte() -> None:
    memory = guest_ram((0, 2 * MIB))
    memory.write(0x6000, b"\xa5" * 0x2000)
    write_start_info(
        memory, initramfs=(0x1_2345_6000, 0x4321), rsdp=0xE0000, address_map=[(0, 0xA0000, 1), (0xE0000, 0x10000, 3)]
    )
    assert memory.read(0x6000, 56).hex(" ", 4) == (
        "78c56e33 01000000 00000000 01000000"  # magic, version, flags, modules
        " 40600000 00000000 00000200 00000000"  # module list, command line
        " 00000e00 00000000 00700000 00000000"  # RSDP, memory map
        " 02000000 00000000"
    )
    assert memory.read(0x6040, 32) == struct.pack("<4Q", 0x123456000, 0x4321, 0, 0)
    assert memory.read(0x7000, 48) == struct.pack("<QQIIQQII", 0, 0xA0000, 1, 0, 0xE0000, 0x10000, 3, 0)
    assert memory.read(0x7030, 0xFD0) == b"\xa5" * 0xFD0
    memory.close()


def test_without_an_initramfs_there_is_no_module() -> None:
    memory = guest_ram()
    write_start_info(memory, initramfs=None, rsdp=0, address_map=[])
    modules, module_list = struct.unpack_from("<12xIQ", memory.read(0x6000, 56))
    assert (modules, module_list) == (0, 0)
    assert memory.read(0x6040, 32) == bytes(32)
    memory.close()


def test_the_map_is_the_one_of_the_zero_page() -> None:
    memory = guest_ram(*layout.ram_ranges(5 * GIB))
    expected = e820(memory)
    write_start_info(memory, initramfs=None, rsdp=0, address_map=expected)
    (entries,) = struct.unpack_from("<I", memory.read(0x6030, 4))
    assert [struct.unpack_from("<QQI", memory.read(0x7000 + 24 * index, 24)) for index in range(entries)] == expected
    memory.close()


def test_a_map_that_does_not_fit_is_refused() -> None:
    memory = guest_ram()
    write_start_info(memory, initramfs=None, rsdp=0, address_map=[(0, 1, 1)] * 170)
    with pytest.raises(VmmError, match="171 entries: there is room for 170"):
        write_start_info(memory, initramfs=None, rsdp=0, address_map=[(0, 1, 1)] * 171)
    memory.close()
