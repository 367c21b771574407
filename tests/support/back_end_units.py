"""The units of a process that serves a device of a VM, as systemd shows them."""

from __future__ import annotations

from support.unit_vm import UnitVm


class BackEndUnits:
    """vm-KIND@VM:DEVICE, `service` and `socket`."""

    def __init__(self, vm: UnitVm, kind: str, device: str) -> None:
        self.vm = vm
        self.host = vm.host
        self.service, self.socket = (f"vm-{kind}@{vm.name}:{device}.{suffix}" for suffix in ("service", "socket"))

    def state(self, unit: str) -> str:
        return self.host.run(f"systemctl show --property=ActiveState --value {unit}", check=True).stdout.strip()

    def wait(self, unit: str, state: str) -> None:
        command = f"until [ $(systemctl show --property=ActiveState --value {unit}) = {state} ]; do sleep 0.1; done"
        waited = self.host.run(f"timeout 20 sh -c '{command}'")
        assert waited.returncode == 0, self.host.run(f"systemctl status {unit}; journalctl -n 50").stdout

    def pid(self) -> int:
        return int(self.host.run(f"systemctl show --property=MainPID --value {self.service}", check=True).stdout)

    def said(self) -> str:
        return self.host.run(f"journalctl --sync; journalctl --no-pager --output=cat --unit={self.service}", check=True).stdout
