"""Finds ACPI tables in guest memory as an OS does: RSDP, XSDT, what it lists, and the DSDT that the FADT points to.

Written from the specification (ACPI 6.5 §5.2) and not from our builders, so that it can contradict them.
"""

from __future__ import annotations

import struct

from vmservice.memory.guest_memory import GuestMemory


def walk(memory: GuestMemory, rsdp_gpa: int) -> dict[str, tuple[int, bytes]]:
    """Signature → (gpa, bytes) of every table; AssertionError on a bad signature, checksum or pointer."""
    assert rsdp_gpa % 16 == 0, "the RSDP is not on a 16-byte boundary"
    rsdp = memory.read(rsdp_gpa, 36)
    assert rsdp[:8] == b"RSD PTR "
    assert sum(rsdp[:20]) & 0xFF == 0, "checksum of the ACPI 1.0 part"
    assert sum(rsdp) & 0xFF == 0, "extended checksum"
    assert rsdp[15] == 2, "revision"
    assert struct.unpack_from("<I", rsdp, 20) == (36,)
    xsdt_gpa = struct.unpack_from("<Q", rsdp, 24)[0]
    tables = {"RSDP": (rsdp_gpa, rsdp), "XSDT": (xsdt_gpa, sdt(memory, xsdt_gpa, b"XSDT"))}
    xsdt = tables["XSDT"][1]
    for (gpa,) in struct.iter_unpack("<Q", xsdt[36:]):
        data = sdt(memory, gpa)
        tables[data[:4].decode()] = (gpa, data)
    dsdt_gpa = struct.unpack_from("<Q", tables["FACP"][1], 140)[0]
    tables["DSDT"] = (dsdt_gpa, sdt(memory, dsdt_gpa, b"DSDT"))
    return tables


def sdt(memory: GuestMemory, gpa: int, signature: bytes = b"") -> bytes:
    size = struct.unpack("<I", memory.read(gpa + 4, 4))[0]
    data = memory.read(gpa, size)
    assert data.startswith(signature)
    assert sum(data) & 0xFF == 0, f"checksum of {data[:4]!r}"
    return data


def madt_entries(madt: bytes) -> list[bytes]:
    """The structures behind the MADT's 44 bytes, each with its type and length in its first two."""
    entries, rest = [], madt[44:]
    while rest:
        assert 2 <= rest[1] <= len(rest), "an entry runs past the table"
        entries.append(rest[: rest[1]])
        rest = rest[rest[1] :]
    return entries
