"""`systemctl reload` of a real unit."""

from __future__ import annotations

from support.releases import every_release
from support.unit_vm import UnitVm, firmware_config


@every_release
def test_reload_brings_the_new_configuration(vm: UnitVm, release: str) -> None:
    vm.configure(firmware_config("deaf"))
    vm.start()
    assert vm.show("Type") == ("notify" if release == "bookworm" else "notify-reload")
    pid = vm.main_pid()
    vm.configure(firmware_config("deaf", service="shutdown_timeout = 1"))
    vm.host.run(f"systemctl reload {vm.unit}", check=True)
    if release == "bookworm":  # where it returns as soon as the VM has been asked
        vm.wait_for("the configuration is reloaded")
    vm.host.run("journalctl --sync")
    assert vm.journal().count("the configuration is reloaded") == 1
    assert (vm.show("ActiveState"), vm.main_pid(), vm.state) == ("active", pid, "running")
    vm.stop()
    assert "within 1 second" in vm.journal()


@every_release
def test_a_wrong_file_changes_nothing(vm: UnitVm) -> None:
    vm.configure(firmware_config("deaf", service="shutdown_timeout = 1"))
    vm.start()
    vm.configure(firmware_config("deaf", service="shutdown_timeout = 1\non_reset = 7"))
    assert vm.host.run(f"systemctl reload {vm.unit}").returncode == 1
    assert "not reloaded, and nothing has changed: " in vm.wait_for("service.on_reset is 7")
    assert vm.show("StatusText").startswith("not reloaded, and nothing has changed: ")
    assert vm.show("ActiveState") == "active"
    assert vm.state == "running"
