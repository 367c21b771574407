"""ACPI tables as bytes: hardware-reduced, 64-bit addresses only (ACPI 6.5 §5.2). Where they lie is not known here."""

from __future__ import annotations

import struct

OEM_ID = b"VMSVC "
# One for all: the XSDT's has to be the FADT's (§5.2.8).
OEM_TABLE_ID = b"VMSERVIC"
_OEM_REVISION = 1
_CREATOR_ID = b"VMSV"
_CREATOR_REVISION = 1

# What the register at `power_port` takes: the type in bits 4:2 of sleep control (§4.8.3.7), and the reset value (§4.8.3.6).
SLEEP_TYPE_S5 = 5
RESET_VALUE = 1

_HEADER = struct.Struct("<4sIBB6s8sI4sI")  # §5.2.6
_HEADER_CHECKSUM = 9
_RSDP = struct.Struct("<8sB6sBIIQB3x")  # §5.2.5.3
_RSDP_CHECKSUM = 8
_RSDP_CHECKSUM_SIZE = 20  # what ACPI 1.0 had
_RSDP_EXTENDED_CHECKSUM = 32

RSDP_SIZE = _RSDP.size

# FADT flags (§5.2.9, table 5.10). The buttons' two say: none in fixed hardware.
_FADT_WBINVD = 1 << 0
_FADT_PWR_BUTTON = 1 << 4
_FADT_SLP_BUTTON = 1 << 5
_FADT_FIX_RTC = 1 << 6  # no RTC wake status in fixed hardware
_FADT_RESET_REG_SUP = 1 << 10
_FADT_HW_REDUCED_ACPI = 1 << 20

# IA-PC boot architecture (§5.2.9.3). No 8042 bit: what answers at port 0x64 resets and nothing else, and a guest that probes
# it for a keyboard would wait for nothing. No "CMOS RTC not present" bit: there is one. MSI works. All else is in the DSDT.
_BOOT_ARCH_NO_VGA = 1 << 2

_FADT_SIZE = 276
_FADT_REVISION = 6
_FADT_MINOR_REVISION = 5

_GAS_SYSTEM_IO = 1
_GAS_BYTE_ACCESS = 1

_MADT_REVISION = 6
_MADT_LOCAL_APIC, _MADT_IO_APIC, _MADT_INTERRUPT_OVERRIDE, _, _MADT_LOCAL_APIC_NMI = range(5)
_LAPIC_ENABLED = 1 << 0
_LAPIC_ONLINE_CAPABLE = 1 << 1
_ISA_BUS = 0
_ACTIVE_HIGH_EDGE = 0b01_01  # MPS INTI flags (table 5.26): trigger mode in bits 3:2, polarity in bits 1:0
_ALL_PROCESSORS = 0xFF
_LINT1 = 1


def checksum(data: bytes | bytearray) -> int:
    """The byte that makes the sum of `data`, where it counts 0, come out as 0 modulo 256."""
    return -sum(data) & 0xFF


def table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A system description table: the header of 36 bytes (§5.2.6), checksum set, and `body`."""
    size = _HEADER.size + len(body)
    header = (signature, size, revision, 0, OEM_ID, OEM_TABLE_ID, _OEM_REVISION, _CREATOR_ID, _CREATOR_REVISION)
    data = bytearray(_HEADER.pack(*header) + body)
    data[_HEADER_CHECKSUM] = checksum(data)
    return bytes(data)


def rsdp(xsdt_gpa: int) -> bytes:
    """The root pointer, revision 2: an XSDT and no RSDT (§5.2.5.3). It must lie on a 16-byte boundary."""
    data = bytearray(_RSDP.pack(b"RSD PTR ", 0, OEM_ID, 2, 0, _RSDP.size, xsdt_gpa, 0))
    data[_RSDP_CHECKSUM] = checksum(data[:_RSDP_CHECKSUM_SIZE])
    data[_RSDP_EXTENDED_CHECKSUM] = checksum(data)
    return bytes(data)


def xsdt(table_gpas: list[int]) -> bytes:
    """The list of tables; the DSDT is not in it, the FADT points there (§5.2.8)."""
    return table(b"XSDT", 1, struct.pack(f"<{len(table_gpas)}Q", *table_gpas))


def dsdt(aml: bytes) -> bytes:
    """Revision 2: AML integers have 64 bits (§19.6.29)."""
    return table(b"DSDT", 2, aml)


def fadt(dsdt_gpa: int, power_port: int) -> bytes:
    """Hardware-reduced: no PM blocks, no PM timer, no SCI, no FACS. Sleep and reset are one byte at I/O port `power_port`."""
    data = bytearray(_FADT_SIZE)
    register = struct.pack("<BBBBQ", _GAS_SYSTEM_IO, 8, 0, _GAS_BYTE_ACCESS, power_port)
    flags = _FADT_WBINVD | _FADT_PWR_BUTTON | _FADT_SLP_BUTTON | _FADT_FIX_RTC | _FADT_RESET_REG_SUP | _FADT_HW_REDUCED_ACPI
    struct.pack_into("<H", data, 109, _BOOT_ARCH_NO_VGA)
    struct.pack_into("<I", data, 112, flags)
    data[116:128] = register  # RESET_REG
    data[128] = RESET_VALUE
    data[131] = _FADT_MINOR_REVISION
    struct.pack_into("<Q", data, 140, dsdt_gpa)  # X_DSDT
    data[244:256] = register  # SLEEP_CONTROL_REG
    data[256:268] = register  # SLEEP_STATUS_REG
    data[268:276] = b"VMSVC\0\0\0"  # hypervisor vendor identity
    return table(b"FACP", _FADT_REVISION, bytes(data[_HEADER.size :]))


def madt(vcpus: int, max_vcpus: int, *, lapic_base: int, ioapic_id: int, ioapic_base: int, edge_irqs: tuple[int, ...]) -> bytes:
    """All vCPUs there can be, APIC ids 0 to max_vcpus - 1; the first `vcpus` are there at boot, the others may come (§5.2.12).

    `edge_irqs` are the ISA interrupts in use: identity-mapped, and said to be edge-triggered and active high, so that no guest
    falls back on level.
    """
    no_8259 = 0
    entries = [
        *(local_apic(apic_id, enabled=apic_id < vcpus) for apic_id in range(max_vcpus)),
        struct.pack("<BBBxII", _MADT_IO_APIC, 12, ioapic_id, ioapic_base, 0),
        *(struct.pack("<BBBBIH", _MADT_INTERRUPT_OVERRIDE, 10, _ISA_BUS, irq, irq, _ACTIVE_HIGH_EDGE) for irq in edge_irqs),
        struct.pack("<BBBHB", _MADT_LOCAL_APIC_NMI, 6, _ALL_PROCESSORS, 0, _LINT1),
    ]
    return table(b"APIC", _MADT_REVISION, struct.pack("<II", lapic_base, no_8259) + b"".join(entries))


def local_apic(apic_id: int, *, enabled: bool) -> bytes:
    """A processor local APIC entry (§5.2.12.2); ACPI processor UID and APIC id are the same.

    Since ACPI 6.3 an entry that is not enabled needs the online-capable bit: Linux (5.19 and later, by the FADT's revision)
    takes a vCPU that has neither for one that never comes, and cannot hot-plug it.
    """
    flags = _LAPIC_ENABLED if enabled else _LAPIC_ONLINE_CAPABLE
    return struct.pack("<BBBBI", _MADT_LOCAL_APIC, 8, apic_id, apic_id, flags)


def mcfg(ecam_base: int, buses: int) -> bytes:
    """Where PCI's configuration space lies in memory, for buses 0 to `buses` - 1 of segment 0 (PCI Firmware 3.3 §4.1.2)."""
    segment = 0
    return table(b"MCFG", 1, bytes(8) + struct.pack("<QHBBI", ecam_base, segment, 0, buses - 1, 0))
