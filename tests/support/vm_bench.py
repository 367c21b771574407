"""A VM whose machines are recorded, and whose clock a test moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from support.clock import Clock
from support.machines import RecordingMachine

from vmservice.errors import ConfigError, HostError, VmmError
from vmservice.vm.events import GuestEvent
from vmservice.vm.state import State
from vmservice.vm.vm import Vm

if TYPE_CHECKING:
    from vmservice.plug.backend import DeviceDetails

VERBS: dict[str, Callable[[Vm], object]] = {
    "boot": Vm.boot,
    "pause": Vm.pause,
    "resume": Vm.resume,
    "shutdown": Vm.shutdown,
    "reboot": Vm.reboot,
    "power_button": Vm.power_button,
    "resize": lambda vm: vm.resize(3),
}


class Bench:
    """A VM whose machines are recorded; `refuse` is what the next ones refuse."""

    def __init__(
        self,
        on_reset: str = "reboot",
        on_panic: str = "exit",
        on_watchdog: str = "reboot",
        *,
        ready_by_guest: bool = False,
    ) -> None:
        self.machines: list[RecordingMachine] = []
        self.refuse: tuple[str, ...] = ()
        self.build_fails = False
        self.slow = False
        self.check_fails = False
        self.changes: list[dict[str, object]] = []
        self.trouble: list[VmmError] = []
        self.clock = Clock()
        self.devices: list[DeviceDetails] = [("console", "serial", {"mode": "null"})]
        self.vm = Vm(
            name="demo",
            vcpus=1,
            max_vcpus=4,
            memory_bytes=1 << 20,
            build=self._build,
            call_later=self.clock.call_later,
            check=self._check,
            devices=lambda: list(self.devices),
            on_reset=on_reset,
            on_panic=on_panic,
            on_watchdog=on_watchdog,
            ready_by_guest=ready_by_guest,
        )
        self.vm.subscribe(self.changes.append)
        self.vm.on_trouble = self.trouble.append

    def _build(self, vcpus: int) -> RecordingMachine:
        if self.build_fails:
            raise HostError("cannot create a VM: Device or resource busy (errno 16)", 16)
        self.machines.append(RecordingMachine(vcpus, refuse=self.refuse, slow=self.slow))
        return self.machines[-1]

    def _check(self) -> None:
        if self.check_fails:
            raise ConfigError("kernel.path: cannot open /boot/vmlinuz: No such file or directory (errno 2)")

    def bring_to(self, state: str) -> Bench:
        if state != State.CREATED:
            self.vm.boot()
        if state == State.PAUSED:
            self.vm.pause()
        if state == State.SHUTDOWN:
            self.vm.shutdown()
        self.changes.clear()
        return self

    def event(self, kind: str, detail: str = "", machine: RecordingMachine | None = None) -> None:
        self.vm.on_guest_event(GuestEvent(machine or self.machines[-1], kind, detail))
