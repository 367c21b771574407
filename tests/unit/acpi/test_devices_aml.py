"""The DSDT's devices: what each one is called, where it says it is, and what the GED does with its events."""

from __future__ import annotations

from vmservice.acpi import aml, devices_aml, tables


def test_com_port() -> None:
    crs = aml.resource_template(aml.interrupt(4), aml.io(0x3F8, 8))
    assert devices_aml.com_port(1, 0x3F8, 4) == aml.device(
        "COM1", b"\x08_HID\x0c\x41\xd0\x05\x01", b"\x08_UID\x01", b"\x08_CRS" + crs
    )


def test_real_time_clock_has_ports_and_no_interrupt() -> None:
    crs = aml.resource_template(aml.io(0x70, 2))
    assert devices_aml.real_time_clock(0x70) == aml.device("RTC", b"\x08_HID\x0c\x41\xd0\x0b\x00", b"\x08_CRS" + crs)


def test_power_button_is_a_control_method_button() -> None:
    assert devices_aml.power_button() == aml.device("PWRB", b"\x08_HID\x0c\x41\xd0\x0c\x0c", b"\x08_UID\x00")


def test_ged_reads_its_events_once_and_looks_at_every_bit() -> None:
    """The read clears the byte, so a second read would find nothing; and events that came together must all be handled.

    Cloud Hypervisor (December 2019) compared the field for equality with one event.
    """
    handlers = [(1, aml.notify("ONE", 1)), devices_aml.power_button_pressed()]
    ged = devices_aml.generic_event_device(0xB000, 5, handlers)
    evt = ged[ged.index(b"\x14") :]
    assert evt.count(b"GEVT") == 1
    assert b"\x70GEVT\x60" in evt
    assert aml.if_(aml.and_(aml.LOCAL0, aml.integer(1)), b"\x86ONE_\x01") in evt
    assert aml.if_(aml.and_(aml.LOCAL0, aml.integer(8)), b"\x86\\\x2e_SB_PWRB\x0a\x80") in evt
    assert evt.endswith(b"\x86\\\x2e_SB_PWRB\x0a\x80")


def test_ged_interrupt_is_an_edge() -> None:
    assert b"\x89\x06\x00\x03\x01\x05\x00\x00\x00" in devices_aml.generic_event_device(0xB000, 5, [])


def test_dsdt_has_only_the_devices_it_was_given() -> None:
    """A VM with its serial port off has no COM1 in it."""
    body = devices_aml.dsdt([devices_aml.power_button()])
    assert b"COM1" not in body
    assert body.startswith(b"\x10")
    assert b"PWRB" in body


def test_dsdt_s5_names_the_sleep_type() -> None:
    assert devices_aml.dsdt([]).endswith(b"\x08\\_S5_\x12\x07\x04\x0a\x05\x00\x00\x00")
    assert tables.SLEEP_TYPE_S5 == 5
