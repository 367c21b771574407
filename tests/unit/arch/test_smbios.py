"""The SMBIOS tables, taken apart by a walker written from DSP0134, and by dmidecode."""

from __future__ import annotations

import base64
import shutil
import struct
import subprocess
import uuid
from pathlib import Path

import pytest
from support.guest_ram import guest_ram
from support.smbios_walk import find_tables, walk

from vmservice.arch.x86_64 import layout, smbios
from vmservice.arch.x86_64.boot_params import E820_RESERVED, e820
from vmservice.arch.x86_64.mptable import write_mptable
from vmservice.errors import ConfigError

UUID = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")


def make(*strings: bytes, serial: str = "S-1") -> bytes:
    return smbios.tables(uuid=UUID.bytes, serial=serial, version="1.2.3", oem_strings=strings)


def test_every_byte_of_the_structures() -> None:
    bios = bytes((0, 26)) + struct.pack("<H", 0) + bytes((1, 2, 0, 0, 3, 0)) + struct.pack("<Q", 8)
    bios += bytes((0, 0x10, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0)) + b"vmservice\x001.2.3\x0001/01/2026\0\0"
    mixed = bytes.fromhex("33221100 5544 7766 8899aabbccddeeff")
    system = bytes((1, 27)) + struct.pack("<H", 1) + bytes((1, 2, 3, 4)) + mixed + bytes((6, 0, 0))
    system += b"vmservice\0Virtual Machine\x001.2.3\0S-1\0\0"
    strings = bytes((11, 5)) + struct.pack("<H", 0xB00) + b"\2one\0two\0\0"
    assert make(b"one", b"two") == bios + system + strings + bytes((127, 4)) + struct.pack("<H", 0x7F00) + b"\0\0"


def test_the_entry_point_byte_by_byte() -> None:
    entry = smbios.entry_point(0xF2020, 0x1234)
    assert entry[:5] == b"_SM3_"
    assert sum(entry) & 0xFF == 0
    assert entry[6:] == bytes((24, 3, 3, 0, 1, 0)) + struct.pack("<IQ", 0x1234, 0xF2020)


def test_the_uuid_is_read_as_it_was_written() -> None:
    system = walk(make())[1]
    assert uuid.UUID(bytes_le=system.formatted[8:24]) == UUID


def test_without_a_serial_number_there_is_no_string_of_it() -> None:
    system = walk(make(serial=""))[1]
    assert (system.text(7), len(system.strings)) == ("", 3)


@pytest.mark.parametrize("count", [0, 1, 255, 256, 600])
def test_strings_beyond_what_one_structure_counts_come_in_the_next_in_order(count: int) -> None:
    strings = [b"%d" % number for number in range(1000, 1000 + count)]
    structures = walk(make(*strings))
    assert [one.kind for one in structures] == [0, 1, *[11] * -(-count // 255), 127]
    assert [string for one in structures if one.kind == 11 for string in one.strings] == strings
    assert all(one.formatted[4] == len(one.strings) for one in structures if one.kind == 11)
    assert len({one.handle for one in structures}) == len(structures)


def test_no_structure_is_longer_than_systemd_before_256_reads_unless_a_string_is() -> None:
    """And what is too long comes behind all that is not."""
    strings = [bytes((65 + number,)) * length for number, length in enumerate((5000, 10, 4088, 3000, 1000, 4089, 80, 2000))]
    structures = [one for one in walk(make(*strings)) if one.kind == 11]
    sizes = [len(one.formatted) + sum(len(string) + 1 for string in one.strings) + 1 for one in structures]
    assert [len(string) for one in structures for string in one.strings] == [10, 80, 1000, 2000, 3000, 4088, 4089, 5000]
    assert sizes == [5 + 11 + 81 + 1001 + 2001 + 1, 3007, 4095, 4096, 5007]


@pytest.mark.parametrize("string", [b"", b"a\0b"])
def test_what_is_no_string_of_smbios_is_refused(string: bytes) -> None:
    with pytest.raises(ValueError, match="type 11"):
        make(string)


@pytest.mark.parametrize("value", [b"", b"text", bytes(range(256)), b"\xff" * 1000])
def test_a_credential_is_one_string_that_systemd_decodes(value: bytes) -> None:
    string = smbios.credential_string("tls.key", value)
    name, _, text = string.removeprefix(b"io.systemd.credential.binary:").partition(b"=")
    assert name == b"tls.key"
    assert base64.b64decode(text, validate=True) == value
    assert b"\n" not in string


TABLES_MAX = 0xFFFF0 - 0xF2020


@pytest.mark.parametrize("size", [200, TABLES_MAX])
def test_they_are_where_an_os_looks_and_over_nothing_else(size: int) -> None:
    """Neither the MP table of 254 vCPUs, nor ACPI, nor what a warm reset runs."""
    data = make(b"x" * (size - len(make(b"x")) + 1))
    assert len(data) == size
    memory = guest_ram()
    write_mptable(memory, layout.MAX_VCPUS)
    before = memory.read(0xE0000, 0x12000), memory.read(0xFFFF0, 16)
    smbios.write_smbios(memory, data)
    found = find_tables(memory)
    assert (memory.read(0xE0000, 0x12000), memory.read(0xFFFF0, 16)) == before
    assert found == (0xF2020, data)
    assert before[0][0x10000:].startswith(b"_MP_")
    reserved = [(start, start + length) for start, length, kind in e820(memory) if kind == E820_RESERVED]
    assert any(start <= 0xF2000 and 0xF2020 + size <= end for start, end in reserved)
    memory.close()


def test_more_than_there_is_room_for() -> None:
    smbios.check_room(TABLES_MAX, [])
    with pytest.raises(
        ConfigError, match="57297 bytes of SMBIOS tables; at most 57296 fit, which is about 41 KiB of credentials"
    ):
        smbios.check_room(TABLES_MAX + 1, [])


@pytest.mark.parametrize(("length", "most"), [(31, 881), (32, 835), (400, 142)])
def test_more_strings_than_linux_copies_at_its_start(length: int, most: int) -> None:
    """A struct dmi_device of 40 bytes for each, and the string with its NUL in steps of four: extend_brk() in dmi_alloc()."""
    strings = [b"s" * length] * most
    assert most * (40 + (length + 1 + 3) // 4 * 4) <= 62 << 10
    smbios.check_room(100, strings)
    with pytest.raises(ConfigError, match=rf"the {most + 1} credentials take \d+ bytes of what Linux has for SMBIOS strings"):
        smbios.check_room(100, [*strings, b"s" * length])


@pytest.mark.skipif(shutil.which("dmidecode") is None, reason="dmidecode is not installed")
def test_dmidecode_reads_them_without_a_remark(tmp_path: Path) -> None:
    data = make(smbios.credential_string("a", b"1"), b"two")
    dump = tmp_path / "dump"
    dump.write_bytes(smbios.entry_point(32, len(data)).ljust(32, b"\0") + data)
    done = subprocess.run(["dmidecode", "--from-dump", dump], capture_output=True, text=True, check=True, timeout=20)
    assert done.stderr == ""
    for line in (
        "SMBIOS 3.3.0 present.",
        "Vendor: vmservice",
        "Release Date: 01/01/2026",
        "BIOS characteristics not supported",
        "System is a virtual machine",
        "Product Name: Virtual Machine",
        "Serial Number: S-1",
        f"UUID: {UUID}",
        "Wake-up Type: Power Switch",
        "String 1: two",
        "String 2: io.systemd.credential.binary:a=MQ==",
        "End Of Table",
    ):
        assert line in done.stdout, line
    assert "broken" not in done.stdout.lower()
    assert "invalid" not in done.stdout.lower()
