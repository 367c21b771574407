"""The host is powered off while guests run: each goes down by its power button, and in time."""

from __future__ import annotations

from support.container import Container
from support.releases import every_release
from support.unit_vm import UnitVm, firmware_config


@every_release
def test_guests_go_down_before_what_they_need(own_container: Container) -> None:
    host = own_container
    vms = [UnitVm(host, "first"), UnitVm(host, "second")]
    for vm in vms:
        vm.configure(firmware_config("beat"))
        vm.start()
    journal = host.power_off()
    bus_gone = journal.index("Stopping dbus.service")
    for vm in vms:
        assert f"{vm.unit}: Deactivated successfully." in journal
        assert journal.index(f"Stopped {vm.unit}") < bus_gone
    assert journal.count("power button") == len(vms)
    assert journal.count("VM shut down (poweroff)") == len(vms)
