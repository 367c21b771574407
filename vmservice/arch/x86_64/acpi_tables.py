"""The ACPI tables of this machine, at their place in guest memory."""

from __future__ import annotations

from vmservice.acpi import tables
from vmservice.arch.x86_64 import layout
from vmservice.errors import InvalidArgument, VmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmservice.memory.guest_memory import GuestMemory

_ALIGNMENT = 16


def write_tables(memory: GuestMemory, *, vcpus: int, max_vcpus: int, dsdt_aml: bytes, more: Sequence[bytes] = ()) -> int:
    """RSDP, XSDT, FADT, MADT and DSDT in the ACPI area, and `more` whole tables, such as MCFG; the RSDP's gpa.

    `dsdt_aml` is what `acpi.devices_aml.dsdt` returns.

    VmmError, with nothing written, when they do not fit.
    """
    if not 1 <= vcpus <= max_vcpus <= layout.MAX_VCPUS:
        raise InvalidArgument(f"{vcpus} of {max_vcpus} vCPUs cannot be described: 1 to {layout.MAX_VCPUS} are possible")
    area = _Area(layout.ACPI_AREA)
    rsdp_gpa = area.reserve(tables.RSDP_SIZE)
    dsdt_gpa = area.add(tables.dsdt(dsdt_aml))
    listed = (
        tables.fadt(dsdt_gpa, layout.POWER_PORT),
        tables.madt(
            vcpus,
            max_vcpus,
            lapic_base=layout.LAPIC_BASE,
            ioapic_id=layout.IOAPIC_ID,
            ioapic_base=layout.IOAPIC_BASE,
            edge_irqs=(layout.COM1_GSI, layout.GED_GSI),
        ),
        *more,
    )
    xsdt_gpa = area.add(tables.xsdt([area.add(table) for table in listed]))
    area.put(rsdp_gpa, tables.rsdp(xsdt_gpa))
    if area.end > layout.ACPI_AREA_END:
        room = layout.ACPI_AREA_END - layout.ACPI_AREA
        raise VmmError(f"the ACPI tables take {area.end - layout.ACPI_AREA} bytes: there is room for {room}")
    memory.write(layout.ACPI_AREA, area.data)
    return rsdp_gpa


class _Area:
    """Tables packed from `base` upwards, each on a 16-byte boundary, as the RSDP must be."""

    def __init__(self, base: int) -> None:
        self.base = base
        self.data = bytearray()

    @property
    def end(self) -> int:
        return self.base + len(self.data)

    def reserve(self, size: int) -> int:
        self.data += bytes(-len(self.data) % _ALIGNMENT)
        gpa = self.end
        self.data += bytes(size)
        return gpa

    def put(self, gpa: int, table: bytes) -> None:
        offset = gpa - self.base
        self.data[offset : offset + len(table)] = table

    def add(self, table: bytes) -> int:
        gpa = self.reserve(len(table))
        self.put(gpa, table)
        return gpa
