"""Whole machines on the real /dev/kvm, with the heartbeat payload as their guest."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.kvm_guest import TIMEOUT_SEC, hanging_serial, needs_kvm, running_guest, vcpu_threads, wait_until
from support.payload import BANNER

from vmservice.errors import ConfigError, HostError
from vmservice.kvm import abi
from vmservice.vm.events import EventKind
from vmservice.vm.state import LastExit, State
from vmservice.vm.vm import Vm

pytestmark = [pytest.mark.kvm, needs_kvm]

Payloads = Callable[[str], Path]

# What the builder may meet on other hosts, by what such a host's KVM lacks.
FALLBACKS = {
    "split irqchip": (),
    "in-kernel irqchip": (abi.KVM_CAP_SPLIT_IRQCHIP,),
    "no MSI from user space": (abi.KVM_CAP_SIGNAL_MSI,),
    "PIT": (abi.KVM_CAP_TSC_DEADLINE_TIMER,),
    "no read-only memory": (abi.KVM_CAP_READONLY_MEM,),
}


@pytest.mark.parametrize("masked", FALLBACKS.values(), ids=FALLBACKS.keys())
def test_timer_console_and_power_button_work(payloads: Payloads, masked: tuple[int, ...]) -> None:
    with running_guest(payloads("beat"), masked=masked) as guest:
        guest.output.wait_for(b"beat 3\n")
        assert guest.output.data.startswith(BANNER)
        guest.tell(b"x")
        guest.output.wait_for(b"x")
        guest.vm.power_button()
        event = guest.next_event()
        guest.output.wait_for(b"power button\n")
        assert event.kind == EventKind.POWEROFF
        guest.vm.on_guest_event(event)
        assert (guest.vm.state, guest.vm.last_exit) == (State.SHUTDOWN, LastExit.POWEROFF)


@pytest.mark.parametrize("how", [b"r", b"a", b"t"], ids=["keyboard controller", "reset register", "triple fault"])
def test_a_reset_starts_the_guest_anew(payloads: Payloads, how: bytes) -> None:
    with running_guest(payloads("beat")) as guest:
        seen = guest.output.wait_for(b"beat 2\n")
        guest.tell(how)
        event = guest.next_event()
        assert event.kind == EventKind.RESET
        guest.vm.on_guest_event(event)
        assert (guest.vm.state, guest.vm.last_exit) == (State.RUNNING, LastExit.RESET)
        seen = guest.output.wait_for(BANNER, seen)
        guest.output.wait_for(b"beat 1\n", seen)


def test_memory_is_clean_after_a_reset(payloads: Payloads) -> None:
    with running_guest(payloads("echo")) as guest:
        guest.output.wait_for(BANNER)
        guest.memory.write(8 << 20, b"a secret of the first guest")
        guest.vm.reboot()
        guest.output.wait_for(BANNER, len(BANNER))
        assert guest.memory.read(8 << 20, 4096) == bytes(4096)


def test_a_paused_guest_stands_still(payloads: Payloads) -> None:
    with running_guest(payloads("busy")) as guest:
        guest.output.wait_for(b"beat 1\n")
        guest.vm.pause()
        before = guest.output.data
        assert guest.vm.console_input(b"x") == 0
        guest.take_gathered()
        assert guest.output.data == before
        guest.vm.resume()
        guest.output.wait_for(b"beat ", len(before))


def test_two_hundred_pauses_of_two_busy_vcpus(payloads: Payloads) -> None:
    with running_guest(payloads("smp"), vcpus=2) as guest:
        guest.output.wait_for(b"aps 1\n")
        fds = len(os.listdir("/proc/self/fd"))
        threads = len(os.listdir("/proc/self/task"))
        for _ in range(200):
            guest.vm.pause()
            guest.vm.resume()
        assert len(os.listdir("/proc/self/fd")) == fds
        assert len(os.listdir("/proc/self/task")) == threads
        seen = len(guest.output.data)
        guest.output.wait_for(b"beat ", seen)


@pytest.mark.parametrize("pause_first", [False, True], ids=["running", "paused"])
def test_shutdown_and_boot_again(payloads: Payloads, pause_first: bool) -> None:
    """Cloud Hypervisor of December 2019 hung in shutdown from paused, and after it could not boot."""
    with running_guest(payloads("smp"), vcpus=2) as guest:
        seen = guest.output.wait_for(b"aps 1\n")
        if pause_first:
            guest.vm.pause()
        guest.vm.shutdown()
        assert (guest.vm.state, guest.vm.last_exit) == (State.SHUTDOWN, LastExit.SHUTDOWN)
        guest.vm.boot()
        guest.output.wait_for(b"aps 1\n", seen)


def resident_kib() -> int:
    gc.collect()
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


def test_a_hundred_resets_in_a_row_leave_nothing(payloads: Payloads) -> None:
    """Each by the guest itself, in place: the process, the console and the ceiling stay, and so does what the process has."""
    with running_guest(payloads("smp"), vcpus=2, max_vcpus=4) as guest:

        def reset() -> None:
            seen = guest.output.wait_for(b"aps 1\n", guest.output.data.rindex(BANNER))
            guest.memory.write(8 << 20, b"a secret")
            guest.tell(b"a")
            event = guest.next_event()
            assert event.kind == EventKind.RESET
            guest.vm.on_guest_event(event)
            guest.output.wait_for(BANNER, seen)
            assert guest.memory.read(8 << 20, 8) == bytes(8)

        guest.output.wait_for(BANNER)
        for _ in range(5):  # what is imported and cached once
            reset()
        guest.output.data = guest.output.data[-100:]
        descriptors, memory = len(os.listdir("/proc/self/fd")), resident_kib()
        for _ in range(100):
            reset()
        assert len(os.listdir("/proc/self/fd")) == descriptors
        wait_until(lambda: vcpu_threads() == ["vcpu0", "vcpu1"] or None, "vCPU threads are left")
        assert resident_kib() - memory < 2048
        assert (guest.vm.state, guest.vm.last_exit, guest.vm.max_vcpus) == (State.RUNNING, LastExit.RESET, 4)
        guest.machines.clear()


def test_fifty_boots_and_shutdowns_leave_nothing(payloads: Payloads) -> None:
    with running_guest(payloads("smp"), vcpus=2) as guest:
        for _ in range(5):  # what is imported and cached once
            guest.vm.shutdown()
            guest.vm.boot()
        guest.vm.shutdown()
        wait_until(lambda: not vcpu_threads() or None, "vCPU threads are left")
        fds, threads, memory = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), resident_kib()
        for _ in range(50):
            seen = len(guest.output.data)
            guest.vm.boot()
            guest.output.wait_for(b"aps 1\n", seen)
            guest.vm.shutdown()
        assert len(os.listdir("/proc/self/fd")) == fds
        # A thread that is done needs a moment to be gone from the kernel's list.
        wait_until(lambda: len(os.listdir("/proc/self/task")) == threads or None, "there are more threads than before")
        assert resident_kib() - memory < 2048


def test_an_event_from_before_the_pause_waits_for_resume(payloads: Payloads) -> None:
    with running_guest(payloads("echo")) as guest:
        guest.output.wait_for(BANNER)
        guest.tell(b"o")
        event = guest.next_event()
        guest.vm.pause()
        guest.vm.on_guest_event(event)
        assert guest.vm.state == State.PAUSED
        guest.vm.resume()
        assert (guest.vm.state, guest.vm.last_exit) == (State.SHUTDOWN, LastExit.POWEROFF)


def test_an_event_of_a_machine_long_gone_is_ignored(payloads: Payloads) -> None:
    with running_guest(payloads("echo")) as guest:
        guest.output.wait_for(BANNER)
        guest.tell(b"o")
        event = guest.next_event()
        guest.vm.reboot()
        guest.vm.on_guest_event(event)
        assert guest.vm.state == State.RUNNING


def test_a_build_that_fails_leaves_the_vm_as_it_was(payloads: Payloads, tmp_path: Path) -> None:
    image = tmp_path / "firmware.bin"
    image.write_bytes(payloads("echo").read_bytes())
    with running_guest(image) as guest:
        guest.vm.shutdown()
        fds = sorted(os.listdir("/proc/self/fd"))
        image.unlink()
        with pytest.raises(ConfigError, match=r"firmware"):
            guest.vm.boot()
        assert guest.vm.state == State.SHUTDOWN
        assert sorted(os.listdir("/proc/self/fd")) == fds


def test_a_reboot_that_cannot_work_leaves_the_guest_running(payloads: Payloads, tmp_path: Path) -> None:
    image = tmp_path / "firmware.bin"
    image.write_bytes(payloads("beat").read_bytes())
    with running_guest(image) as guest:
        guest.output.wait_for(b"beat 1\n")
        image.unlink()
        with pytest.raises(ConfigError, match=r"firmware"):
            guest.vm.reboot()
        assert (guest.vm.state, guest.vm.last_exit) == (State.RUNNING, LastExit.NONE)
        guest.output.wait_for(b"beat ", len(guest.output.data))


def test_a_machine_of_254_vcpus_starts_and_stops(payloads: Payloads) -> None:
    with running_guest(payloads("smp"), vcpus=254) as guest:
        guest.output.wait_for(BANNER)
        guest.vm.pause()
        guest.vm.shutdown()
        assert guest.vm.state == State.SHUTDOWN


@pytest.mark.parametrize("variant", ["idle", "busy", "beat", "smp"])
def test_every_vcpu_answers_whatever_its_guest_does(payloads: Payloads, variant: str) -> None:
    """Halted, spinning, printing, and waiting to be started; while it runs, while it is paused, and after a reset."""
    with running_guest(payloads(variant), vcpus=3) as guest:
        guest.output.wait_for(BANNER)
        changes: list[Callable[[], None]] = [lambda: None, guest.vm.pause, guest.vm.resume, guest.vm.reboot]
        for change in changes:
            change()
            guest.vm.silent(TIMEOUT_SEC)
            wait_until(lambda: guest.vm.silent(TIMEOUT_SEC) == [] or None, "a vCPU did not answer")


def test_a_device_that_hangs_is_named_with_its_vcpu(payloads: Payloads) -> None:
    with running_guest(payloads("beat"), vcpus=2) as guest:
        guest.output.wait_for(BANNER)
        with hanging_serial(guest):
            assert guest.vm.silent(0.01) == ["the lock of the devices"]
            # The other vCPU answers as soon as its thread has a processor.
            named = ["vCPU 0", "the lock of the devices"]
            wait_until(lambda: guest.vm.silent(0.01) == named or None, "vCPU 0 alone does not answer")
        wait_until(lambda: guest.vm.silent(TIMEOUT_SEC) == [] or None, "it did not go on")


@pytest.mark.parametrize("verb", [Vm.shutdown, Vm.reboot, Vm.pause], ids=["Shutdown", "Reboot", "Pause"])
def test_a_verb_that_a_vcpu_does_not_follow_changes_nothing(
    payloads: Payloads, monkeypatch: pytest.MonkeyPatch, verb: Callable[[Vm], None]
) -> None:
    """A device hangs, so its vCPU does not stop in time. All of them go on afterwards, and the verb works the next time."""
    monkeypatch.setattr("vmservice.vm.vcpus.STOP_TIMEOUT_SEC", 1.0)
    with running_guest(payloads("beat"), vcpus=2) as guest:
        guest.output.wait_for(BANNER)
        with hanging_serial(guest):
            before = guest.vm.properties()
            with pytest.raises(HostError, match="vCPU 0 did not stop within"):
                verb(guest.vm)
            assert guest.vm.properties() == before
        monkeypatch.undo()
        guest.output.wait_for(b"beat ", len(guest.output.data))
        guest.vm.silent(TIMEOUT_SEC)
        wait_until(lambda: guest.vm.silent(TIMEOUT_SEC) == [] or None, "a vCPU did not go on")
        verb(guest.vm)
        assert len(guest.machines) == (2 if verb is Vm.reboot else 1)
