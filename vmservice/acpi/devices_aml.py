"""The DSDT's devices, each given its ports and GSI, and the DSDT made of them."""

from __future__ import annotations

from vmservice.acpi import aml
from vmservice.acpi.tables import SLEEP_TYPE_S5

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# The bit of the event byte that says so.
EVENT_POWER_BUTTON = 1 << 3

_POWER_BUTTON_PATH = r"\_SB.PWRB"
_NOTIFY_PRESSED = 0x80  # ACPI 6.5 §4.8.2.2.1.2, S0 power button pressed

_VIRTIO_MMIO_BYTES = 0x1000


def com_port(index: int, port: int, gsi: int) -> bytes:
    """COM1 to COM4 (`index` 1 to 4): a 16550A at eight I/O ports from `port`, edge-triggered on `gsi`."""
    return aml.device(
        f"COM{index}",
        aml.name("_HID", aml.eisaid("PNP0501")),
        aml.name("_UID", aml.integer(index)),
        aml.name("_CRS", aml.resource_template(aml.interrupt(gsi), aml.io(port, 8))),
    )


def real_time_clock(port: int) -> bytes:
    """The CMOS clock at two I/O ports from `port`, without an interrupt.

    Undeclared, Linux makes up a clock with IRQ 8, which a machine without a PIC has not, and then drops it (rtc-cmos).
    """
    return aml.device(
        "RTC",
        aml.name("_HID", aml.eisaid("PNP0B00")),
        aml.name("_CRS", aml.resource_template(aml.io(port, 2))),
    )


def pvpanic(port: int) -> bytes:
    """The port by which a guest says that it has panicked (QEMU, docs/specs/pvpanic.rst)."""
    return aml.device(
        "PEVT",
        aml.name("_HID", aml.string("QEMU0001")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_CRS", aml.resource_template(aml.io(port, 1))),
    )


def power_button() -> bytes:
    """The control-method power button (ACPI 6.5 §4.8.2.2.1.2); the GED tells it that it was pressed."""
    return aml.device("PWRB", aml.name("_HID", aml.eisaid("PNP0C0C")), aml.name("_UID", aml.integer(0)))


def power_button_pressed() -> tuple[int, bytes]:
    """The GED's handler for the power button."""
    return EVENT_POWER_BUTTON, aml.notify(_POWER_BUTTON_PATH, _NOTIFY_PRESSED)


def generic_event_device(port: int, gsi: int, handlers: Sequence[tuple[int, bytes]]) -> bytes:
    """The generic event device (ACPI 6.5 §5.6.9): an edge on `gsi`, and one byte of events at I/O port `port`.

    `handlers` are (event bit, statements). _EVT reads the port once, for the read clears it, and then looks at every bit:
    events that came together are all handled.
    """
    return aml.device(
        "GED",
        aml.name("_HID", aml.string("ACPI0013")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_CRS", aml.resource_template(aml.interrupt(gsi))),
        aml.op_region("GEDR", aml.SYSTEM_IO, port, 1),
        aml.field("GEDR", aml.BYTE_ACCESS, aml.WRITE_AS_ZEROS, ("GEVT", 8)),
        aml.method(
            "_EVT",
            1,
            aml.store(aml.name_string("GEVT"), aml.LOCAL0),
            *(aml.if_(aml.and_(aml.LOCAL0, aml.integer(event)), statements) for event, statements in handlers),
            serialized=True,
        ),
    )


def pci_root(
    config_port: int, buses: int, *, mmio32: tuple[int, int], mmio64: tuple[int, int] | None, io: Sequence[tuple[int, int]]
) -> bytes:
    """The PCI root: buses 0 to `buses` - 1, and the windows (minimum, maximum) in which the guest may place what is on them.

    `config_port` is 0xcf8, which the root uses itself. No _PRT: no function has an interrupt pin. No _OSC: there is no native
    feature of PCI Express to hand over, and its absence says so.
    """
    windows = [aml.word_address_space(aml.IO_RANGE, *window) for window in io]
    windows.append(aml.dword_address_space(aml.MEMORY_RANGE, *mmio32))
    if mmio64 is not None:
        windows.append(aml.qword_address_space(aml.MEMORY_RANGE, *mmio64))
    bus_numbers = aml.word_address_space(aml.BUS_RANGE, 0, buses - 1)
    return aml.device(
        "PCI0",
        aml.name("_HID", aml.eisaid("PNP0A08")),
        aml.name("_CID", aml.eisaid("PNP0A03")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_SEG", aml.integer(0)),
        aml.name("_CRS", aml.resource_template(bus_numbers, aml.io(config_port, 8), *windows)),
    )


def motherboard_memory(base: int, length: int) -> bytes:
    """Memory below 4 GiB that belongs to no device, such as the ECAM: an OS believes MCFG only where this says so as well.

    PCI Firmware 3.3 §4.1.2: not in the root's own _CRS.
    """
    return aml.device(
        "MBRD",
        aml.name("_HID", aml.eisaid("PNP0C02")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_CRS", aml.resource_template(aml.memory32_fixed(base, length))),
    )


def virtio_mmio(index: int, base: int, gsi: int) -> bytes:
    """A virtio device (virtio 1.2 §4.2) in a 4 KiB window at `base`, level-triggered on `gsi`; `index`, 0 to 255, is its own.

    The id is the one that Linux' virtio_mmio driver knows; it numbers the devices in the order of the DSDT.
    """
    return aml.device(
        f"VR{index:02X}",
        aml.name("_HID", aml.string("LNRO0005")),
        aml.name("_UID", aml.integer(index)),
        aml.name("_CRS", aml.resource_template(aml.memory32_fixed(base, _VIRTIO_MMIO_BYTES), aml.interrupt(gsi, edge=False))),
    )


def dsdt(devices: Sequence[bytes]) -> bytes:
    """The AML behind the DSDT's header: `devices` under \\_SB, and S5, the one sleep state there is (ACPI 6.5 §7.4.2)."""
    s5 = aml.package(aml.integer(SLEEP_TYPE_S5), aml.integer(0), aml.integer(0), aml.integer(0))
    return aml.scope(r"\_SB", *devices) + aml.name(r"\_S5", s5)
