"""The command line in guest memory: its bytes, its NUL, its limits."""

from __future__ import annotations

import pytest

from vmservice.boot.cmdline import write_cmdline
from vmservice.boot.kernel import LoadedKernel
from vmservice.errors import ConfigError
from vmservice.memory.guest_memory import GuestMemory


def kernel(cmdline_max: int) -> LoadedKernel:
    return LoadedKernel(
        entry=0, protocol="ELF", setup_header=None, cmdline_max=cmdline_max, initrd_addr_max=0, start=0x100000, end=0x200000
    )


def test_text_and_nul_at_the_agreed_address(memory: GuestMemory) -> None:
    assert write_cmdline("console=ttyS0 quiet", memory, kernel(2047)) == 19
    assert memory.read(0x20000, 21) == b"console=ttyS0 quiet\0\xcc"
    assert memory.read(0x1FFFF, 1) == b"\xcc"


def test_empty_line_is_a_nul(memory: GuestMemory) -> None:
    assert write_cmdline("", memory, kernel(2047)) == 0
    assert memory.read(0x20000, 2) == b"\0\xcc"


def test_as_long_as_the_kernel_takes_and_one_more(memory: GuestMemory) -> None:
    assert write_cmdline("a" * 100, memory, kernel(100)) == 100
    with pytest.raises(ConfigError, match="has 101 bytes; this kernel takes at most 100"):
        write_cmdline("a" * 101, memory, kernel(100))


def test_the_room_in_low_memory_is_a_limit_too(memory: GuestMemory) -> None:
    assert write_cmdline("a" * 0xFFFF, memory, kernel(0xFFFFFFFF)) == 0xFFFF
    assert memory.read(0x20000 + 0xFFFE, 3) == b"a\0\xcc"
    with pytest.raises(ConfigError, match="has 65536 bytes; this kernel takes at most 65535"):
        write_cmdline("a" * 0x10000, memory, kernel(0xFFFFFFFF))


def test_bytes_count_not_characters(memory: GuestMemory) -> None:
    with pytest.raises(ConfigError, match="has 4 bytes; this kernel takes at most 3"):
        write_cmdline("éé", memory, kernel(3))


@pytest.mark.parametrize(
    ("character", "shown"),
    [("\0", "\\u0000"), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t"), ("\x1b", "\\u001B"), ("\u2028", "\\u2028")],
)
def test_control_characters_are_refused_and_named(memory: GuestMemory, character: str, shown: str) -> None:
    with pytest.raises(ConfigError) as caught:
        write_cmdline(f"a{character}b", memory, kernel(2047))
    assert str(caught.value) == f'the kernel command line has "{shown}"; it must be one line of printable characters'
    assert memory.read(0x20000, 4) == b"\xcc" * 4
