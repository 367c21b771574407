"""AML, byte for byte against the encodings of ACPI 6.5 §20 and the descriptors of §6.4."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmservice.acpi import aml


def decode_pkg_length(data: bytes) -> tuple[int, int]:
    """(length, its own size), after §20.2.4."""
    following = data[0] >> 6
    if following == 0:
        return data[0] & 0x3F, 1
    assert data[0] & 0x30 == 0, "bits 5:4 are reserved when more bytes follow"
    return data[0] & 0xF | int.from_bytes(data[1 : 1 + following], "little") << 4, 1 + following


# The length counts itself, so each encoding ends one to four bytes below 63, 4095, 1048575 and 2^28 - 1.
@pytest.mark.parametrize(
    ("body", "encoded"),
    [
        (0, "01"),
        (1, "02"),
        (62, "3f"),
        (63, "4104"),
        (4093, "4fff"),
        (4094, "810001"),
        (1048572, "8fffff"),
        (1048573, "c1000001"),
        ((1 << 28) - 5, "cfffffff"),
    ],
)
def test_pkg_length_at_every_boundary(body: int, encoded: str) -> None:
    assert aml.pkg_length(body).hex() == encoded


def test_pkg_length_refuses_what_28_bits_cannot_hold() -> None:
    with pytest.raises(ValueError, match="at most 268435451"):
        aml.pkg_length((1 << 28) - 4)


@given(st.integers(0, (1 << 28) - 5))
def test_pkg_length_counts_itself_and_is_the_shortest(body: int) -> None:
    encoded = aml.pkg_length(body)
    assert decode_pkg_length(encoded) == (body + len(encoded), len(encoded))
    shorter_limit = {1: -1, 2: 0x3F, 3: 0xFFF, 4: 0xFFFFF}[len(encoded)]
    assert body + len(encoded) - 1 > shorter_limit


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (1, "01"),
        (2, "0a02"),
        (0xFF, "0aff"),
        (0x100, "0b0001"),
        (0xFFFF, "0bffff"),
        (0x10000, "0c00000100"),
        (0xFFFFFFFF, "0cffffffff"),
        (0x1_0000_0000, "0e0000000001000000"),
        ((1 << 64) - 2, "0efeffffffffffffff"),
        ((1 << 64) - 1, "ff"),
    ],
)
def test_integer(value: int, encoded: str) -> None:
    assert aml.integer(value).hex() == encoded


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_integer_out_of_range(value: int) -> None:
    with pytest.raises(ValueError, match="no AML integer"):
        aml.integer(value)


@pytest.mark.parametrize(
    ("path", "encoded"),
    [
        ("PWRB", b"PWRB"),
        ("GED", b"GED_"),
        ("_SB", b"_SB_"),
        (r"\_SB", b"\\_SB_"),
        (r"\_SB.PCI0", b"\\\x2e_SB_PCI0"),
        (r"\_SB.PCI0.ISA.COM1", b"\\\x2f\x04_SB_PCI0ISA_COM1"),
        ("^^X", b"^^X___"),
        ("\\", b"\\\x00"),
    ],
)
def test_name_string(path: str, encoded: bytes) -> None:
    assert aml.name_string(path) == encoded


@pytest.mark.parametrize("path", ["1ABC", "TOOLONG", "ab", r"\_SB..X", r"\\X", r"^\X", r"\^X", "A-B", "É"])
def test_name_string_refuses_what_is_no_name(path: str) -> None:
    with pytest.raises(ValueError, match="ACPI path"):
        aml.name_string(path)


def test_eisaid() -> None:
    assert aml.eisaid("PNP0A03").hex() == "0c41d00a03"
    assert aml.eisaid("PNP0501").hex() == "0c41d00501"


@pytest.mark.parametrize("text", ["PNP050", "PNP05011", "pnp0501", "PN00501", "PNP05G1"])
def test_eisaid_refuses_what_is_none(text: str) -> None:
    with pytest.raises(ValueError):
        aml.eisaid(text)


def test_objects() -> None:
    assert aml.name("_UID", aml.integer(0)) == b"\x08_UID\x00"
    assert aml.scope(r"\_SB") == b"\x10\x06\\_SB_"
    assert aml.device("PWRB", b"") == b"\x5b\x82\x05PWRB"
    assert aml.package(aml.integer(5), aml.integer(0)) == b"\x12\x05\x02\x0a\x05\x00"
    assert aml.buffer(b"ab") == b"\x11\x05\x0a\x02ab"
    assert aml.buffer(b"") == b"\x11\x02\x00"
    assert aml.string("ACPI0013") == b"\x0dACPI0013\x00"
    assert aml.op_region("GEDR", aml.SYSTEM_IO, 0xB000, 1) == b"\x5b\x80GEDR\x01\x0b\x00\xb0\x01"
    assert aml.op_region("MEMR", 0, 0xFED00000, 0x1000) == b"\x5b\x80MEMR\x00\x0c\x00\x00\xd0\xfe\x0b\x00\x10"


def test_string_with_nul_or_other_than_ascii_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        aml.string("a\0b")
    with pytest.raises(UnicodeEncodeError):
        aml.string("ä")


def test_package_of_more_elements_than_a_byte_counts_is_refused() -> None:
    aml.package(*[b"\x00"] * 255)
    with pytest.raises(ValueError):
        aml.package(*[b"\x00"] * 256)


def test_method_flags() -> None:
    assert aml.method("_STA", 0, aml.return_(aml.integer(0xF))) == b"\x14\x09_STA\x00\xa4\x0a\x0f"
    assert aml.method("_EVT", 1, serialized=True) == b"\x14\x06_EVT\x09"
    with pytest.raises(ValueError, match="0 to 7"):
        aml.method("_STA", 8)


def test_field_lengths_count_bits_and_not_themselves() -> None:
    """A field of 63 bits takes one byte of length, one of 64 takes two: unlike a package's, the length is exclusive."""
    field = aml.field("PRST", aml.DWORD_ACCESS, aml.PRESERVE, ("CSEL", 32), (None, 63), ("CDAT", 64))
    assert field == b"\x5b\x81\x13PRST\x03CSEL\x20\x00\x3fCDAT\x40\x04"
    assert aml.field("PRST", aml.BYTE_ACCESS, aml.WRITE_AS_ZEROS, ("CPEN", 1)) == b"\x5b\x81\x0bPRST\x41CPEN\x01"
    with pytest.raises(ValueError, match="0 bits"):
        aml.field("PRST", aml.BYTE_ACCESS, aml.PRESERVE, ("CPEN", 0))


def test_statements() -> None:
    assert aml.store(aml.integer(1), aml.LOCAL0) == b"\x70\x01\x60"
    assert aml.and_(aml.LOCAL0, aml.integer(8)) == b"\x7b\x60\x0a\x08\x00"
    assert aml.equal(aml.ARG0, aml.integer(0)) == b"\x93\x68\x00"
    assert aml.if_(aml.equal(aml.ARG0, aml.integer(0)), aml.return_(aml.integer(1))) == b"\xa0\x06\x93\x68\x00\xa4\x01"
    assert aml.notify(r"\_SB.PWRB", 0x80) == b"\x86\\\x2e_SB_PWRB\x0a\x80"


def test_resources() -> None:
    assert aml.io(0x3F8, 8).hex() == "4701f803f8030108"
    # Edge is bit 1. Cloud Hypervisor (December 2019) had the GED's interrupt level-triggered, on a pin that is pulsed.
    assert aml.interrupt(5).hex() == "890600030105000000"
    assert aml.interrupt(5, edge=False).hex() == "890600010105000000"
    assert aml.memory32_fixed(0xE8000000, 0x10000000).hex() == "86090001000000e800000010"
    assert aml.resource_template() == b"\x11\x05\x0a\x02\x79\x00"


def test_address_spaces() -> None:
    """§6.4.3.5: DWord 0x87 with 23 bytes behind the length, QWord 0x8a with 43; minimum and maximum fixed, a producer."""
    assert aml.dword_address_space(aml.MEMORY_RANGE, 0xC0000000, 0xE7FFFFFF) == bytes.fromhex(
        "871700000c0100000000000000c0ffffffe70000000000000028"
    )
    assert aml.dword_address_space(aml.IO_RANGE, 0xD00, 0xFFFF)[3:6] == b"\x01\x0c\x03"
    assert aml.dword_address_space(aml.BUS_RANGE, 0, 255)[3:6] == b"\x02\x0c\x00"
    assert aml.qword_address_space(aml.MEMORY_RANGE, 1 << 32, (1 << 36) - 1) == bytes.fromhex(
        "8a2b00000c0100000000000000000000000001000000ffffffff0f0000000000000000000000000000000f000000"
    )
    with pytest.raises(ValueError, match="empty"):
        aml.dword_address_space(aml.MEMORY_RANGE, 1, 0)
