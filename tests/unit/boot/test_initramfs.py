"""The initramfs: as high as may be, in whole pages, never over the kernel."""

from __future__ import annotations

import mmap

import pytest
from support.images import MakeFile, MakeMemory, pattern

from vmservice.boot.initramfs import load_initramfs
from vmservice.boot.kernel import LoadedKernel
from vmservice.errors import ConfigError
from vmservice.memory.guest_memory import GuestMemory, Region


def kernel(end: int = 0x200000, initrd_addr_max: int = 0x7FFFFFFF) -> LoadedKernel:
    return LoadedKernel(
        entry=0x100200,
        protocol="bzImage",
        setup_header=b"",
        cmdline_max=2047,
        initrd_addr_max=initrd_addr_max,
        start=0x100000,
        end=end,
    )


def test_ends_in_the_last_page_of_memory(memory: GuestMemory, make_file: MakeFile) -> None:
    content = pattern(0x1801)
    placed = load_initramfs(make_file(content), memory, kernel())
    assert (placed.gpa, placed.size_bytes) == (0x400000 - 0x2000, 0x1801)
    assert memory.read(placed.gpa, 0x1801) == content
    assert set(memory.read(0, placed.gpa)) == {0xCC}
    assert set(memory.read(placed.gpa + 0x1801, 0x2000 - 0x1801)) == {0xCC}


@pytest.mark.parametrize(("highest", "gpa"), [(0x2FFFFF, 0x2FF000), (0x2FFFFE, 0x2FE000), (0x300000, 0x2FF000)])
def test_stays_below_what_the_kernel_can_reach(memory: GuestMemory, make_file: MakeFile, highest: int, gpa: int) -> None:
    placed = load_initramfs(make_file(bytes(0x1000)), memory, kernel(initrd_addr_max=highest))
    assert placed.gpa == gpa
    assert placed.gpa + placed.size_bytes - 1 <= highest


def test_fills_all_between_kernel_and_end(memory: GuestMemory, make_file: MakeFile) -> None:
    assert load_initramfs(make_file(bytes(0x200000)), memory, kernel()).gpa == 0x200000


def test_too_big_names_the_sizes_and_what_to_do(memory: GuestMemory, make_file: MakeFile) -> None:
    path = make_file(bytes(0x200001))
    with pytest.raises(ConfigError) as caught:
        load_initramfs(path, memory, kernel())
    assert str(caught.value) == (
        f"the initramfs {path} of 2097153 bytes does not fit: 2097152 bytes lie between the kernel's end at 0x200000 "
        "and 0x400000; memory.size must be at least 5M"
    )
    assert set(memory.read(0, memory.size_bytes)) == {0xCC}


def test_that_memory_is_enough(make_memory: MakeMemory, make_file: MakeFile) -> None:
    assert load_initramfs(make_file(bytes(0x200001)), make_memory(5 << 20), kernel()).gpa >= 0x200000


def test_kernel_that_ends_inside_a_page(memory: GuestMemory, make_file: MakeFile) -> None:
    with pytest.raises(ConfigError, match="does not fit"):
        load_initramfs(make_file(bytes(0x1F0000)), memory, kernel(end=0x210001))


def test_more_memory_is_no_advice_where_the_kernel_is_the_limit(memory: GuestMemory, make_file: MakeFile) -> None:
    with pytest.raises(ConfigError) as caught:
        load_initramfs(make_file(bytes(0x1000)), memory, kernel(initrd_addr_max=0x1FFFFF))
    assert str(caught.value).endswith("0 bytes lie between the kernel's end at 0x200000 and 0x200000")


def test_empty(memory: GuestMemory, make_file: MakeFile) -> None:
    path = make_file(b"")
    with pytest.raises(ConfigError, match=f"the initramfs {path} is empty"):
        load_initramfs(path, memory, kernel())


def test_memory_above_the_hole_is_not_used(make_file: MakeFile) -> None:
    regions = [Region(gpa, mmap.mmap(-1, 4 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)) for gpa in (0, 4 << 30)]
    memory = GuestMemory(regions)
    try:
        assert load_initramfs(make_file(b"x"), memory, kernel()).gpa == 0x3FF000
    finally:
        memory.close()
