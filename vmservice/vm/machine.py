"""A machine on KVM as `Vm` drives it: its vCPUs, its board and its devices, started, paused and stopped together."""

from __future__ import annotations

import time

from vmservice.devices.ged import CPU, POWER_BUTTON
from vmservice.errors import HostError, NotSupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable, Mapping, Sequence

    from vmservice.board.board import Board
    from vmservice.board.mmio_slots import MmioSlots
    from vmservice.board.pci_slots import PciSlots
    from vmservice.board.slot import Plugged
    from vmservice.config.load import Device
    from vmservice.kvm.vm import KvmVm
    from vmservice.memory.guest_memory import GuestMemory
    from vmservice.vm.exit_handler import ExitHandler
    from vmservice.vm.guest_requests import GuestRequests
    from vmservice.vm.vcpus import Vcpus

# How long all vCPUs have to leave their exits, so that they can be looked at.
_DESCRIBE_TIMEOUT_SEC = 2.0


class KvmMachine:
    """Complete, and stopped, from its constructor on: `builder.py` has made all of it.

    It owns what it is given; `rom` is a firmware's image, None for a kernel. `kinds` are those of the `devices`, by label.
    `give_back` closes everything but the vCPUs, and
    is called when those have ended.
    """

    def __init__(
        self,
        *,
        vm: KvmVm,
        memory: GuestMemory,
        rom: mmap.mmap | None,
        board: Board,
        vcpus: Vcpus,
        exit_handler: ExitHandler,
        guest: GuestRequests,
        slots: PciSlots | MmioSlots | None,
        devices: Sequence[Plugged],
        kinds: Mapping[str, str],
        give_back: Callable[[], None],
    ) -> None:
        self.kvm_vm = vm
        self.memory = memory
        self.rom = rom
        self.board = board
        self.vcpu_set = vcpus
        self.exit_handler = exit_handler
        self._guest = guest
        self.slots = slots
        self.devices = devices
        self._kinds = kinds
        self._give_back = give_back
        self._is_paused = False
        self._inputs = dict(board.inputs)
        for device in devices:
            self._inputs.update(device.inputs)
        guest.source = self

    @property
    def vcpus(self) -> int:
        """Those that the guest has; one that it has not noticed yet does not count."""
        hotplug = self.board.cpu_hotplug
        return len(self.vcpu_set) if hotplug is None else len(hotplug.taken())

    def start(self) -> None:
        if self.slots is not None:
            self.slots.start()
        for device in self.devices:
            device.start()
        with self.board.lock:
            self.board.start()
        self.vcpu_set.start(self.exit_handler.handle, self._guest.failed)

    def pause(self) -> None:
        self.vcpu_set.stop()
        with self.board.lock:
            self.board.pause()
            self._is_paused = True
        self._pause_devices()

    def _pause_devices(self) -> None:
        paused: list[Plugged] = []
        try:
            for device in self.devices:
                device.pause()
                paused.append(device)
        except HostError:
            for device in paused:
                device.resume()
            with self.board.lock:
                self._is_paused = False
                self.board.resume()
            self.vcpu_set.release()
            raise

    def resume(self) -> None:
        for device in self.devices:
            device.resume()
        with self.board.lock:
            self._is_paused = False
            self.board.resume()
        self.vcpu_set.release()

    def press_power_button(self) -> None:
        with self.board.lock:
            self.board.events.raise_event(POWER_BUTTON)

    # The number of vCPUs

    def set_vcpus(self, count: int) -> None:
        hotplug = self.board.cpu_hotplug
        if hotplug is None:
            raise NotSupported(f"this machine cannot change from {self.vcpus} to {count} vCPUs while it runs")
        with self.board.lock:
            ejected = self.board.take_ejected()
            absent, there = hotplug.absent(), len(hotplug.taken()) + len(hotplug.coming())
        self._retire(ejected)
        added = absent[: max(count - there, 0)]
        try:
            for index in added:
                self.vcpu_set.add(index)
        except BaseException:
            self.vcpu_set.remove([index for index in added if self.vcpu_set.has(index)])
            raise
        with self.board.lock:
            for index in added:
                hotplug.insert(index)
            for index in reversed(hotplug.taken()[count:]):
                hotplug.request_removal(index)
            self.board.events.raise_event(CPU)

    def settle_vcpus(self) -> None:
        with self.board.lock:
            ejected = self.board.take_ejected()
        self._retire(ejected)

    def cancel_set_vcpus(self) -> None:
        hotplug = self.board.cpu_hotplug
        assert hotplug is not None, "only a machine with CPU hotplug has a Resize to cancel"
        with self.board.lock:
            unnoticed = hotplug.withdraw()
        self._retire(unnoticed)

    def _retire(self, indexes: list[int]) -> None:
        """End the threads of vCPUs that the guest does not have. Where one does not stop, that is for the next time."""
        try:
            self.vcpu_set.remove(indexes)
        except HostError:
            with self.board.lock:
                self.board.put_ejected(indexes)
            raise

    # What the host has for the guest

    def console_input(self, data: bytes, console: str = "serial") -> int:
        """Type `data` at the guest's serial, hvc or the port of that name; how many bytes it took: none while it is paused."""
        if self._is_paused or self._guest.has_left or console not in self._inputs:
            return 0
        return self._inputs[console].offer(data)

    def forget_input(self, console: str) -> None:
        """Whoever typed at `console` is gone: what the guest has not taken goes too."""
        if console in self._inputs:
            self._inputs[console].forget()

    def reconfigure(self, section: Device) -> None:
        for device in self.devices:
            if device.label == section.name:
                device.reconfigure(section)

    def stats(self) -> dict[str, float]:
        counters: dict[str, float] = {f"vcpu.{name}": value for name, value in self.vcpu_set.stats().items()}
        for device in self.devices:
            kind = self._kinds[device.label]
            prefix = kind if kind == device.label else f"{kind}.{device.label}"
            counters |= {f"{prefix}.{name}": value for name, value in device.stats().items()}
        return counters

    def silent(self, patience_sec: float) -> list[str]:
        names = self.vcpu_set.silent()
        deadline = time.monotonic() + patience_sec
        locks = [("the devices", self.board.lock), *((f"device {device.label}", device.lock) for device in self.devices)]
        for name, lock in locks:
            if lock.acquire(timeout=max(deadline - time.monotonic(), 0.0)):
                lock.release()
            else:
                names.append(f"the lock of {name}")
        return names

    def describe(self) -> list[str]:
        from vmservice.kvm.describe import describe

        lines: list[str] = []
        sights = self.vcpu_set.look(lambda vcpu: describe(vcpu, self.memory.read), _DESCRIBE_TIMEOUT_SEC)
        for index, said in sights.items():
            lines += said or [f"vCPU {index}: does not leave its exit; {self.vcpu_set.whereabouts(index)}"]
        return lines

    def close(self) -> None:
        """Stop at once and give everything back to the host. HostError, with the guest going on, when it cannot be stopped."""
        if self.vcpu_set.is_closed:
            return
        for device in self.devices:
            device.abandon()
        if not self._is_paused:
            self.pause()
        self.board.close()
        self.vcpu_set.close()
        self._give_back()
