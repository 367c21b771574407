"""PCI bus 0 by its two ways in: the ports 0xcf8 and 0xcfc, and the ECAM window."""

from __future__ import annotations

import pytest

from vmservice.devices.bus import Bus
from vmservice.devices.pci.bus import PciBus
from vmservice.devices.pci.function import Identity, PciFunction
from vmservice.devices.pci.host_bridge import host_bridge
from vmservice.errors import ConfigError

ENABLE = 1 << 31
ECAM = 0xE8000000


def unexpected(warning: str) -> None:
    raise AssertionError(warning)


class Machine:
    """The buses of a machine with a host bridge at 00:00.0 and a function at 00:02.0 that counts its bytes at 0x40-0xff."""

    def __init__(self) -> None:
        self.pio, self.mmio = Bus(), Bus()
        self.pci = PciBus(self.mmio, reserved=[], warn=unexpected)
        self.pio.insert(0xCF8, 8, self.pci.config_ports, self.pci.lock)
        self.mmio.insert(ECAM, 256 << 20, self.pci.ecam, self.pci.lock)
        self.pci.insert(host_bridge())
        self.pci.start()
        self.function = PciFunction(Identity(0x1AF4, 0x1044, 0x00_FF_00), config_size=4096)
        self.function.config.preset(0x40, int.from_bytes(bytes(range(0x40, 0x100)), "little"), 0xC0)
        self.function.config.allow(0x80, (1 << 128) - 1, 16)
        self.pci.insert(self.function, 2)

    def select(self, bus: int, device: int, function: int, register: int, enable: int = ENABLE) -> None:
        address = enable | bus << 16 | device << 11 | function << 8 | register
        self.pio.write(0xCF8, address.to_bytes(4, "little"))

    def config(self, bus: int, device: int, function: int, register: int, size: int) -> bytes:
        """As Linux' pci_conf1_read()."""
        self.select(bus, device, function, register & 0xFC)
        return self.pio.read(0xCFC + (register & 3), size)


def ecam(bus: int, device: int, function: int, register: int) -> int:
    return ECAM + (bus << 20 | device << 15 | function << 12 | register)


def test_linux_finds_mechanism_1() -> None:
    """pci_check_type1() and pci_sanity_check(): a byte to 0xcfb is ignored, the enable bit reads back, a bridge is there."""
    machine = Machine()
    machine.pio.write(0xCFB, b"\x01")
    assert machine.pio.read(0xCF8, 4) == bytes(4)
    machine.pio.write(0xCF8, b"\x00\x00\x00\x80")
    assert machine.pio.read(0xCF8, 4) == b"\x00\x00\x00\x80"
    assert machine.config(0, 0, 0, 0x0A, 2) == b"\x00\x06"


def test_the_address_has_no_reserved_bits() -> None:
    machine = Machine()
    machine.pio.write(0xCF8, b"\xff" * 4)
    assert machine.pio.read(0xCF8, 4) == b"\xfc\xff\xff\x80"


@pytest.mark.parametrize(("port", "size"), [(0xCF8, 1), (0xCF8, 2), (0xCF9, 1), (0xCFA, 2), (0xCFB, 1), (0xCF9, 2), (0xCFA, 4)])
def test_the_address_is_written_and_read_whole_or_not_at_all(port: int, size: int) -> None:
    machine = Machine()
    machine.select(0, 2, 0, 0x40)
    machine.pio.write(port, bytes(size))
    assert machine.pio.read(port, size) == b"\xff" * size
    assert machine.pio.read(0xCF8, 4) == (ENABLE | 2 << 11 | 0x40).to_bytes(4, "little")


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("register", range(0x40, 0x48))
def test_every_width_at_every_offset_of_the_window(register: int, size: int) -> None:
    """What reaches past port 0xcff is nobody's; within, the bytes are the register's."""
    machine = Machine()
    there = min(size, 4 - register % 4)
    expected = bytes(range(register, register + there)).ljust(size, b"\xff")
    assert machine.config(0, 2, 0, register, size) == expected
    assert machine.mmio.read(ecam(0, 2, 0, register), size) == bytes(range(register, register + size))


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("register", range(0x80, 0x84))
def test_writes_of_every_width(register: int, size: int) -> None:
    by_port, by_ecam = Machine(), Machine()
    data = b"\xde\xad\xbe\xef"[:size]
    by_port.select(0, 2, 0, register & 0xFC)
    by_port.pio.write(0xCFC + (register & 3), data)
    by_ecam.mmio.write(ecam(0, 2, 0, register), data)
    there = min(size, 4 - register % 4)
    expected = bytearray(range(0x80, 0x90))
    expected[register - 0x80 : register - 0x80 + there] = data[:there]
    assert by_port.function.read_config(0x80, 16) == expected
    expected[register - 0x80 : register - 0x80 + size] = data
    assert by_ecam.function.read_config(0x80, 16) == expected


def test_without_the_enable_bit_there_is_nothing() -> None:
    machine = Machine()
    machine.select(0, 2, 0, 0x80, enable=0)
    assert machine.pio.read(0xCFC, 4) == b"\xff" * 4
    machine.pio.write(0xCFC, bytes(4))
    assert machine.function.read_config(0x80, 4) == bytes(range(0x80, 0x84))


def test_only_function_0_of_plugged_slots_on_bus_0_is_there() -> None:
    machine = Machine()
    found_by_port = [
        (bus, device, function)
        for bus in (0, 1, 2, 255)
        for device in range(32)
        for function in range(8)
        if machine.config(bus, device, function, 0, 4) != b"\xff" * 4
    ]
    found_by_ecam = [
        (bus, device, function)
        for bus in (0, 1, 2, 255)
        for device in range(32)
        for function in range(8)
        if machine.mmio.read(ecam(bus, device, function, 0), 2) != b"\xff\xff"
    ]
    assert found_by_port == found_by_ecam == [(0, 0, 0), (0, 2, 0)]


def test_ecam_reaches_4096_bytes_of_an_express_function_and_256_of_another() -> None:
    machine = Machine()
    assert machine.mmio.read(ecam(0, 2, 0, 0x100), 4) == bytes(4)
    assert machine.mmio.read(ecam(0, 2, 0, 0xFFC), 4) == bytes(4)
    machine.function.config.allow(0x104, 0xFFFFFFFF, 4)
    machine.mmio.write(ecam(0, 2, 0, 0x104), b"abcd")
    assert machine.function.read_config(0x104, 4) == machine.mmio.read(ecam(0, 2, 0, 0x104), 4) == b"abcd"
    assert machine.function.read_config(0x04, 4) == bytes(4)
    assert machine.mmio.read(ecam(0, 0, 0, 0x100), 4) == b"\xff" * 4
    assert machine.mmio.read(ecam(0, 0, 0, 0xFC), 8) == bytes(4) + b"\xff" * 4


def test_an_access_over_the_end_of_a_function_ends_there() -> None:
    machine = Machine()
    machine.pci.insert(PciFunction(Identity(1, 2, 3)), 1)
    assert machine.mmio.read(ecam(0, 2, 0, 0xFFC), 8) == bytes(4) + b"\xff" * 4
    machine.mmio.write(ecam(0, 1, 7, 0xFFC), b"\xff" * 8)
    machine.mmio.write(ecam(0, 1, 0, 0xFFE), b"\xff" * 8)
    assert machine.function.read_config(0x04, 2) == bytes(2)


def test_slots_are_given_from_0_and_named_when_full() -> None:
    bus = PciBus(Bus(), reserved=[], warn=unexpected)
    bus.insert(PciFunction(Identity(1, 1, 1)), 1)
    assert [bus.insert(PciFunction(Identity(1, 1, 1))) for _ in range(31)] == [0, *range(2, 32)]
    with pytest.raises(ConfigError, match="too many PCI devices: the bus has 32 slots"):
        bus.insert(PciFunction(Identity(1, 1, 1)))


@pytest.mark.parametrize("slot", [0, -1, 32])
def test_a_slot_that_is_not_free_is_refused(slot: int) -> None:
    machine = Machine()
    with pytest.raises(ValueError, match=f"PCI slot {slot} is not free"):
        machine.pci.insert(PciFunction(Identity(1, 1, 1)), slot)


def test_the_address_port_is_its_whole_state() -> None:
    machine = Machine()
    machine.select(0, 2, 0, 0x44)
    assert repr(machine.pci.config_ports.state) == f"ConfigPortsState(address={ENABLE | 2 << 11 | 0x44})"
