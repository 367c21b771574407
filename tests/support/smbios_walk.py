"""SMBIOS tables in guest memory, found and taken apart as Linux does it (drivers/firmware/dmi_scan.c), by DSP0134 3.3."""

from __future__ import annotations

import struct

from vmservice.memory.guest_memory import GuestMemory


class Structure:
    """One structure: its whole formatted part, and its strings in their order."""

    def __init__(self, formatted: bytes, strings: list[bytes]) -> None:
        self.kind, _, self.handle = struct.unpack_from("<BBH", formatted)
        self.formatted = formatted
        self.strings = strings

    def text(self, offset: int) -> str:
        """The string whose number is at `offset`; empty for number 0."""
        number = self.formatted[offset]
        return self.strings[number - 1].decode() if number else ""


def find_tables(memory: GuestMemory) -> tuple[int, bytes]:
    """(gpa, all bytes) of what the 64-bit entry point in the BIOS area leads to."""
    for gpa in range(0xF0000, 0x100000 - 31, 16):
        entry = memory.read(gpa, 32)
        if entry[:5] == b"_SM3_" and entry[6] <= 32 and sum(entry[: entry[6]]) & 0xFF == 0:
            _, length, major, minor, _, revision, reserved, size, table = struct.unpack_from("<BBBBBBBIQ", entry, 5)
            assert (length, major, minor, revision, reserved) == (24, 3, 3, 1, 0)
            return table, memory.read(table, size)
    raise AssertionError("no SMBIOS entry point where an OS looks")


def walk(data: bytes) -> list[Structure]:
    """All structures up to the end of table, which must be the end of `data`."""
    structures = []
    position = 0
    while True:
        length = data[position + 1]
        assert length >= 4, "a structure is shorter than its header"
        formatted = data[position : position + length]
        assert len(formatted) == length
        end = data.index(b"\0\0", position + length)
        strings = data[position + length : end].split(b"\0") if end > position + length else []
        structures.append(Structure(formatted, strings))
        position = end + 2
        if formatted[0] == 127:
            assert position == len(data), "something is behind the end of the table"
            return structures
