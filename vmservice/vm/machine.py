"""A machine on KVM: its vCPUs' threads, the handling of their exits, and pause, resume and stop."""

from __future__ import annotations

import struct
import time

from vmservice.arch.x86_64 import layout
from vmservice.devices.ged import CPU, POWER_BUTTON
from vmservice.errors import HostError, NotSupported, VmmError
from vmservice.kvm import abi, exits
from vmservice.vm.events import EventKind, GuestEvent
from vmservice.vm.vcpu import VcpuThread, unhandled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.kvm.vcpu import KvmVcpu
    from vmservice.kvm.vm import KvmVm
    from vmservice.memory.guest_memory import GuestMemory
    from vmservice.vm.chipset import Chipset
    from vmservice.vm.events import EventQueue
    from vmservice.vm.peripherals import Peripherals

# How long the vCPUs have to leave the guest. They take microseconds; only a host in deep trouble takes longer.
STOP_TIMEOUT_SEC = 10.0

# Looked up at each exit: globals of this module are one step nearer than those of another.
_EXIT_IO = abi.KVM_EXIT_IO
_EXIT_DATA = abi.RUN_EXIT
_unpack_pio = exits.IO.unpack_from

# What may be typed ahead of the guest; its UART holds 16 bytes.
TYPED_LIMIT_BYTES = 4096

_SYSTEM_EVENT_SHUTDOWN = 1  # <linux/kvm.h> KVM_SYSTEM_EVENT_*
_SYSTEM_EVENT_RESET = 2


class KvmMachine:
    """Built stopped by `builder.py`, which fills it part by part; `close` gives back whatever is there by then.

    What only needs to be closed with the machine, such as a firmware's mapping, goes to `owned`.
    """

    def __init__(self, events: EventQueue) -> None:
        self._events = events
        self._left = False  # the guest powered off, reset or failed: no vCPU runs on
        self._paused = False
        self._coalescing = False  # KVM gathers writes to COM1 in its ring
        self._typed: dict[str, bytearray] = {}  # at each console, and not yet taken by the guest
        self._threads: dict[int, VcpuThread] = {}  # by vCPU; those of the vCPUs that are there now
        self._ejected: list[int] = []  # given back by the guest, their threads not yet ended
        self.kvm_vm: KvmVm | None = None
        self.memory: GuestMemory | None = None
        self.chipset: Chipset
        self.peripherals: Peripherals | None = None
        self.kvm_vcpus: dict[int, KvmVcpu] = {}  # by vCPU; KVM has no way to give one back while the VM lives
        self.create_vcpu: Callable[[int], KvmVcpu]
        self.owned: list[Callable[[], None]] = []

    @property
    def vcpus(self) -> int:
        """Those that the guest has; one that it has not noticed yet does not count."""
        if self.chipset.cpu_hotplug is None:
            return len(self.kvm_vcpus)
        return len(self.chipset.cpu_hotplug.taken())

    def start(self) -> None:
        for vcpu in self.kvm_vcpus.values():
            self._start_thread(vcpu)

    def _start_thread(self, vcpu: KvmVcpu) -> None:
        thread = VcpuThread(vcpu, self._handle_exit, self._vcpu_failed)
        try:
            thread.start()
        except RuntimeError as error:
            raise HostError(f"cannot start a thread for vCPU {vcpu.index}: {error}") from error
        self._threads[vcpu.index] = thread

    def pause(self) -> None:
        self._stop_threads()
        with self.chipset.lock:
            self._drain(self.kvm_vcpus[0])
            self._paused = True

    def resume(self) -> None:
        with self.chipset.lock:
            self._paused = False
            if self.chipset.watchdog is not None:
                self.chipset.watchdog.skip()
            if self.chipset.pvpanic is not None:
                self.chipset.pvpanic.rearm()
        for thread in self._threads.values():
            thread.vcpu.tell_paused()
        for thread in self._threads.values():
            thread.release()

    def press_power_button(self) -> None:
        with self.chipset.lock:
            self.chipset.events.raise_event(POWER_BUTTON)

    def set_vcpus(self, count: int) -> None:
        hotplug = self.chipset.cpu_hotplug
        if hotplug is None:
            raise NotSupported(f"this machine cannot change from {self.vcpus} to {count} vCPUs while it runs")
        with self.chipset.lock:
            absent, present = hotplug.absent(), hotplug.taken()
        added = absent[: max(count - len(present), 0)]
        try:
            for index in added:
                self._add_vcpu(index)
        except BaseException:
            self._remove_vcpus([index for index in added if index in self._threads])
            raise
        with self.chipset.lock:
            for index in added:
                hotplug.insert(index)
            for index in reversed(present[count:]):
                hotplug.request_removal(index)
            self.chipset.events.raise_event(CPU)

    def settle_vcpus(self) -> None:
        with self.chipset.lock:
            ejected, self._ejected = self._ejected, []
        self._remove_vcpus(ejected)

    def cancel_set_vcpus(self) -> None:
        assert self.chipset.cpu_hotplug is not None
        with self.chipset.lock:
            unnoticed = self.chipset.cpu_hotplug.withdraw()
        self._remove_vcpus(unnoticed)

    def _add_vcpu(self, index: int) -> None:
        """A vCPU that waits for the guest to start it.

        One that was here before is as the guest left it: halted for good, until the guest sends INIT, which resets it
        (Intel SDM vol. 3, 9.4).
        """
        vcpu = self.kvm_vcpus.get(index)
        if vcpu is None:
            vcpu = self.kvm_vcpus[index] = self.create_vcpu(index)
        self._start_thread(vcpu)

    def _remove_vcpus(self, indexes: list[int]) -> None:
        threads = [self._threads[index] for index in indexes]
        self._stop(threads)
        for index, thread in zip(indexes, threads, strict=True):
            thread.finish()
            del self._threads[index]

    def console_input(self, data: bytes, console: str = "serial") -> int:
        """Type `data` at the guest's serial, hvc or the port of that name; how many bytes it took: none while it is paused."""
        with self.chipset.lock:
            if self._paused or self._left:
                return 0
            typed = self._typed.setdefault(console, bytearray())
            taken = data[: max(0, TYPED_LIMIT_BYTES - len(typed))]
            typed += taken
            self.feed(console)
            return len(taken)

    def feed(self, console: str = "serial") -> None:
        """Move on what was typed as far as the device has room; called whenever it has, with the devices' lock held."""
        typed = self._typed.get(console)
        if not typed:
            return
        if console != "serial":
            if self.peripherals is not None:
                del typed[: self.peripherals.receive(console, bytes(typed))]
        elif self.chipset.serial is not None:
            del typed[: self.chipset.serial.receive(bytes(typed))]

    def drain(self) -> None:
        """Pass on output that waits in KVM's ring because the guest has had no other exit since, and requests that wait."""
        with self.chipset.lock:
            if self._paused:
                return
            if self.memory is not None and self.memory.is_cut_short():
                # An access of ours to what is gone would end the process by SIGBUS, without a word: sooner is better.
                self._fault("the guest's memory has lost pages")
                return
            self._drain(self.kvm_vcpus[0])
            if self.peripherals is not None:
                self.peripherals.tick()
            if self.chipset.watchdog is not None:
                self.chipset.watchdog.tick()

    def set_balloon(self, size_bytes: int) -> None:
        with self.chipset.lock:
            if self.peripherals is not None and self.peripherals.balloon is not None:
                self.peripherals.balloon.set_target_bytes(size_bytes)

    def silent(self, patience_sec: float) -> list[str]:
        threads = list(self._threads.values())
        names = [f"vCPU {thread.vcpu.index}" for thread in threads if not thread.answered]
        for thread in threads:
            thread.ask()
        if self.chipset.lock.acquire(timeout=patience_sec):
            self.chipset.lock.release()
        else:
            names.append("the lock of the devices")
        return names

    def backlog(self) -> None:
        """A device has more to do than it did at once; the main thread goes on with it, so that others get their turn."""
        self._events.post(GuestEvent(self, EventKind.BACKLOG))

    def coalesce_console(self) -> None:
        """Let KVM gather the bytes that the guest writes to COM1, and hand them over with the next exit."""
        assert self.kvm_vm is not None
        self.kvm_vm.coalesce_pio(layout.COM1_BASE, 1)
        self._coalescing = True

    def close(self) -> None:
        if self._threads:
            self._stop(list(self._threads.values()))
            for thread in self._threads.values():
                thread.finish()
            self._threads = {}
            self._drain(self.kvm_vcpus[0])
        for vcpu in self.kvm_vcpus.values():
            vcpu.close()
        self.kvm_vcpus = {}
        if self.kvm_vm is not None:
            self.kvm_vm.close()
        if self.peripherals is not None:
            self.peripherals.close()
        if self.memory is not None:
            self.memory.close()
        while self.owned:
            self.owned.pop()()

    def _stop_threads(self) -> None:
        try:
            self._stop(list(self._threads.values()))
        except HostError:
            for thread in self._threads.values():
                thread.release()
            raise

    @staticmethod
    def _stop(threads: list[VcpuThread]) -> None:
        """Returns when every thread holds: all are asked first, so they stop side by side."""
        for thread in threads:
            thread.request_stop()
        deadline = time.monotonic() + STOP_TIMEOUT_SEC
        for thread in threads:
            if not thread.wait_stopped(max(deadline - time.monotonic(), 0)):
                raise HostError(f"vCPU {thread.vcpu.index} did not stop within {STOP_TIMEOUT_SEC:.0f} seconds")

    # In the vCPU threads

    def _handle_exit(self, vcpu: KvmVcpu, reason: int) -> bool:
        """One VM exit; False when the guest is to run no further."""
        if reason == _EXIT_IO:
            self._handle_pio(vcpu)
        elif reason == abi.KVM_EXIT_MMIO:
            self._handle_mmio(vcpu)
        elif reason == abi.KVM_EXIT_IOAPIC_EOI and self.chipset.ioapic is not None:
            self.chipset.ioapic.end_of_interrupt(vcpu.page[abi.RUN_EXIT])
        elif reason == abi.KVM_EXIT_SHUTDOWN:  # a triple fault, which resets a PC
            self.guest_reset()
        elif reason == abi.KVM_EXIT_SYSTEM_EVENT:
            self._handle_system_event(vcpu)
        elif reason != abi.KVM_EXIT_INTR:
            self._fault(unhandled(vcpu, reason))
        return not self._left

    def _handle_pio(self, vcpu: KvmVcpu) -> None:
        """The path of nearly every exit: kept short rather than split up."""
        page = vcpu.page
        direction, size, port, count, offset = _unpack_pio(page, _EXIT_DATA)
        chipset = self.chipset
        if self._coalescing:
            with chipset.lock:
                self._drain(vcpu)
        for start in range(offset, offset + size * count, size):
            if direction:  # KVM_EXIT_IO_OUT
                chipset.pio.write(port, page[start : start + size])
            else:
                page[start : start + size] = chipset.pio.read(port, size)

    def _handle_mmio(self, vcpu: KvmVcpu) -> None:
        page = vcpu.page
        address, data, size, is_write = exits.MMIO.unpack_from(page, abi.RUN_EXIT)
        mmio = self.chipset.mmio
        if self._coalescing:
            with self.chipset.lock:
                self._drain(vcpu)
        if is_write:
            mmio.write(address, data[:size])
        else:
            page[exits.MMIO_DATA : exits.MMIO_DATA + size] = mmio.read(address, size)

    def _handle_system_event(self, vcpu: KvmVcpu) -> None:
        (kind,) = struct.unpack_from("<I", vcpu.page, abi.RUN_EXIT)
        if kind == _SYSTEM_EVENT_SHUTDOWN:
            self.guest_poweroff()
        elif kind == _SYSTEM_EVENT_RESET:
            self.guest_reset()
        else:
            self._fault(f"vCPU {vcpu.index}: the guest crashed (KVM system event {kind})")

    def _drain(self, vcpu: KvmVcpu) -> None:
        """Do the writes that KVM gathered before this exit, in the order in which the guest made them: all of them to COM1."""
        gathered = vcpu.coalesced()
        if gathered and self.chipset.serial is not None:
            self.chipset.serial.write_burst(b"".join([data for _port, data in gathered]))

    # What the guest does to the whole machine

    def guest_poweroff(self) -> None:
        self._leave(EventKind.POWEROFF)

    def guest_reset(self) -> None:
        self._leave(EventKind.RESET)

    def guest_panic(self) -> None:
        """The guest runs on: whether it is to go on later is for the policy to say."""
        if not self._left:
            self._events.post(GuestEvent(self, EventKind.PANIC))

    def guest_watchdog(self) -> None:
        if not self._left:
            self._events.post(GuestEvent(self, EventKind.WATCHDOG))

    def vcpu_taken(self, _index: int) -> None:
        self._events.post(GuestEvent(self, EventKind.VCPUS))

    def vcpu_ejected(self, index: int) -> None:
        """The guest gave a vCPU back. Its thread is ended by the main thread: this one is another vCPU's."""
        self._ejected.append(index)
        self._events.post(GuestEvent(self, EventKind.VCPUS))

    def _fault(self, detail: str) -> None:
        if self.memory is not None and self.memory.is_cut_short():
            detail += "; somebody has cut short the file that [memory] file names"
        self._leave(EventKind.ERROR, detail)

    def _vcpu_failed(self, error: Exception) -> None:
        """Whatever ended a vCPU's loop ends this guest, not the process."""
        if isinstance(error, VmmError):
            self._fault(str(error))
            return
        import traceback

        self._leave(EventKind.BUG, "".join(traceback.format_exception(error)))

    def _leave(self, kind: str, detail: str = "") -> None:
        """The first word counts: what other vCPUs do until they are stopped changes nothing any more."""
        if not self._left:
            self._left = True
            self._events.post(GuestEvent(self, kind, detail))
