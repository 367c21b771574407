"""`systemctl reload` of a real unit."""

from __future__ import annotations

from support.unit_vm import UnitVm, firmware_config


def test_reload_returns_when_the_new_configuration_holds(vm: UnitVm) -> None:
    vm.configure(firmware_config("deaf"))
    vm.start()
    assert vm.show("Type") == "notify-reload"
    pid = vm.main_pid()
    vm.configure(firmware_config("deaf", service="shutdown_timeout = 1"))
    vm.host.run(f"systemctl reload {vm.unit}", check=True)
    vm.host.run("journalctl --sync")
    assert vm.journal().count("the configuration is reloaded") == 1
    assert (vm.show("ActiveState"), vm.main_pid(), vm.state) == ("active", pid, "running")
    vm.stop()
    assert "within 1 seconds" in vm.journal()


def test_a_wrong_file_changes_nothing(vm: UnitVm) -> None:
    vm.configure(firmware_config("deaf", service="shutdown_timeout = 1"))
    vm.start()
    vm.configure(firmware_config("deaf", service="shutdown_timeout = 1\non_reset = 7"))
    vm.host.run(f"systemctl reload {vm.unit}", check=True)
    assert vm.show("StatusText").startswith("not reloaded, and nothing has changed: ")
    assert vm.show("ActiveState") == "active"
    assert vm.state == "running"


def test_a_systemd_that_knows_no_notify_reload(vm: UnitVm) -> None:
    """It takes the unit without the drop-in, and runs ExecReload=; here the version is what systemctl is made to say."""
    folder = f"/run/systemd/system/{vm.unit}.d"
    fake = "/run/old-systemctl"
    vm.host.run(
        f"mkdir -p {folder} {fake} && printf '#!/bin/sh\\necho systemd 252\\n' > {fake}/systemctl && chmod -R a+rx {fake}"
        f" && printf '[Service]\\nType=notify\\nEnvironment=PATH={fake}:/usr/bin:/bin\\n' > {folder}/zz-old.conf"
        " && systemctl daemon-reload",
        check=True,
    )
    try:
        vm.start()
        assert vm.show("Type") == "notify"
        vm.host.run(f"systemctl reload {vm.unit}", check=True)
        vm.wait_for("the configuration is reloaded")
        assert vm.show("ActiveState") in ("active", "reloading")
        assert vm.state == "running"
    finally:
        vm.host.run(f"rm -r {folder} {fake}; systemctl daemon-reload", check=True)
