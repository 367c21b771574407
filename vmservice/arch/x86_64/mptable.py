"""The MP configuration table (Intel MultiProcessor Specification 1.4), for guests that do not read ACPI."""

from __future__ import annotations

import struct

from vmservice.arch.x86_64 import layout
from vmservice.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.memory.guest_memory import GuestMemory

_SPEC_1_4 = 4
_OEM_ID = b"VMSVC   "
_PRODUCT_ID = b"VMSERVICE   "

# §4.1 floating pointer; §4.2 header; §4.3 the entries, by type.
_FLOATING_POINTER = struct.Struct("<4sIBBB5x")
_HEADER = struct.Struct("<4sHBB8s12sIHHIHBx")
_PROCESSOR = struct.Struct("<BBBBII8x")
_BUS = struct.Struct("<BB6s")
_IOAPIC = struct.Struct("<BBBBI")
_INTERRUPT = struct.Struct("<BBHBBBB")
_TYPE_PROCESSOR, _TYPE_BUS, _TYPE_IOAPIC, _TYPE_IO_INTERRUPT, _TYPE_LOCAL_INTERRUPT = range(5)

_ENABLED = 1 << 0
_BOOT_PROCESSOR = 1 << 1
_APIC_VERSION = 0x14  # integrated local APIC
_CPU_SIGNATURE = 0x600  # family 6; CPUID has the truth
_CPU_FEATURES = 0x201  # APIC and FPU on chip

_BUS_ISA = 0
_ISA_IRQS = 16
_INT, _NMI, _EXTINT = 0, 1, 3
_CONFORMS_TO_BUS = 0  # on ISA: edge-triggered, active high
_ALL_LAPICS = 0xFF


def write_mptable(memory: GuestMemory, vcpus: int) -> None:
    """Floating pointer and table at MPTABLE for `vcpus` processors (1 to MAX_VCPUS), APIC ids from 0; else InvalidArgument."""
    if not 1 <= vcpus <= layout.MAX_VCPUS:
        raise InvalidArgument(f"an MP table for {vcpus} vCPUs cannot be made: 1 to {layout.MAX_VCPUS} are possible")
    table_gpa = layout.MPTABLE + _FLOATING_POINTER.size
    pointer = bytearray(_FLOATING_POINTER.pack(b"_MP_", table_gpa, _FLOATING_POINTER.size // 16, _SPEC_1_4, 0))
    pointer[10] = -sum(pointer) & 0xFF
    memory.write(layout.MPTABLE, bytes(pointer) + _table(vcpus))


def _table(vcpus: int) -> bytes:
    entries = _entries(vcpus)
    body = b"".join(entries)
    header = (
        b"PCMP",
        _HEADER.size + len(body),
        _SPEC_1_4,
        0,
        _OEM_ID,
        _PRODUCT_ID,
        0,
        0,
        len(entries),
        layout.LAPIC_BASE,
        0,
        0,
    )
    table = bytearray(_HEADER.pack(*header) + body)
    table[7] = -sum(table) & 0xFF
    return bytes(table)


def _entries(vcpus: int) -> list[bytes]:
    """The entries in the order of their types, as §4.3 asks."""
    processors = [
        _PROCESSOR.pack(
            _TYPE_PROCESSOR,
            apic_id,
            _APIC_VERSION,
            _ENABLED | (0 if apic_id else _BOOT_PROCESSOR),
            _CPU_SIGNATURE,
            _CPU_FEATURES,
        )
        for apic_id in range(vcpus)
    ]
    isa_interrupts = [
        _INTERRUPT.pack(_TYPE_IO_INTERRUPT, _INT, _CONFORMS_TO_BUS, _BUS_ISA, irq, layout.IOAPIC_ID, irq)
        for irq in range(_ISA_IRQS)
    ]
    return [
        *processors,
        _BUS.pack(_TYPE_BUS, _BUS_ISA, b"ISA   "),
        _IOAPIC.pack(_TYPE_IOAPIC, layout.IOAPIC_ID, _APIC_VERSION, _ENABLED, layout.IOAPIC_BASE),
        *isa_interrupts,
        _INTERRUPT.pack(_TYPE_LOCAL_INTERRUPT, _EXTINT, _CONFORMS_TO_BUS, _BUS_ISA, 0, 0, 0),
        _INTERRUPT.pack(_TYPE_LOCAL_INTERRUPT, _NMI, _CONFORMS_TO_BUS, _BUS_ISA, 0, _ALL_LAPICS, 1),
    ]
