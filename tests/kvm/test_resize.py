"""vCPUs that come and go on the real /dev/kvm; the test plays the guest's part at the hotplug registers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.kvm_guest import Guest, needs_kvm, running_guest, vcpu_threads, wait_until
from support.payload import BANNER

from vmservice.arch.x86_64.layout import CPU_HOTPLUG_BASE
from vmservice.devices import cpu_hotplug
from vmservice.errors import VmmError
from vmservice.vm.events import EventKind

pytestmark = [pytest.mark.kvm, needs_kvm]

Payloads = Callable[[str], Path]


class Acpi:
    """What the guest's ACPI interpreter does on a CPU event."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.board = guest.machines[-1].board

    def flags(self, vcpu: int) -> int:
        self.board.pio.write(CPU_HOTPLUG_BASE + cpu_hotplug.SELECT, vcpu.to_bytes(4, "little"))
        return self.board.pio.read(CPU_HOTPLUG_BASE + cpu_hotplug.FLAGS, 1)[0]

    def answer(self, vcpu: int, flag: int) -> None:
        """Write one flag; then the service's loop would handle the event that comes of it."""
        self.board.pio.write(CPU_HOTPLUG_BASE + cpu_hotplug.SELECT, vcpu.to_bytes(4, "little"))
        self.board.pio.write(CPU_HOTPLUG_BASE + cpu_hotplug.FLAGS, bytes((flag,)))
        event = self.guest.next_event()
        assert event.kind == EventKind.VCPUS
        self.guest.vm.on_guest_event(event)


def begin(guest: Guest, desired: int) -> list[VmmError | None]:
    resizing = guest.vm.resize(desired)
    assert resizing is not None
    ends: list[VmmError | None] = []
    resizing.on_end = ends.append
    return ends


def test_up_and_down_and_up_again(payloads: Payloads) -> None:
    with running_guest(payloads("idle"), max_vcpus=4) as guest:
        guest.output.wait_for(BANNER)
        acpi = Acpi(guest)
        for _ in range(3):
            ends = begin(guest, 3)
            assert acpi.flags(1) & cpu_hotplug.INSERTING
            assert guest.vm.vcpus == 1
            acpi.answer(1, cpu_hotplug.INSERTING)
            assert (guest.vm.vcpus, ends) == (2, [])
            acpi.answer(2, cpu_hotplug.INSERTING)
            assert (guest.vm.vcpus, ends) == (3, [None])
            wait_until(lambda: vcpu_threads() == ["vcpu0", "vcpu1", "vcpu2"] or None, "three vCPUs without three threads")
            guest.vm.pause()
            guest.vm.resume()

            ends = begin(guest, 1)
            assert acpi.flags(2) & cpu_hotplug.REMOVING
            acpi.answer(2, cpu_hotplug.EJECT)
            acpi.answer(1, cpu_hotplug.EJECT)
            assert (guest.vm.vcpus, ends) == (1, [None])
            wait_until(lambda: vcpu_threads() == ["vcpu0"] or None, "threads of vCPUs that are gone")


def test_a_guest_that_does_not_answer_keeps_what_it_has(payloads: Payloads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmservice.vm.vm.RESIZE_TIMEOUT_SEC", 0.0)
    with running_guest(payloads("idle"), max_vcpus=4) as guest:
        guest.output.wait_for(BANNER)
        ends = begin(guest, 4)
        guest.timers.run_due()
        assert "it has 1" in str(ends[0])
        assert guest.vm.vcpus == 1
        wait_until(lambda: vcpu_threads() == ["vcpu0"] or None, "threads of vCPUs that never came")
        assert [Acpi(guest).flags(vcpu) for vcpu in range(4)] == [cpu_hotplug.ENABLED, 0, 0, 0]


def test_what_the_guest_does_late_counts(payloads: Payloads, monkeypatch: pytest.MonkeyPatch) -> None:
    """It had begun before the Resize was given up: a vCPU comes, another is given back, and both sides count the same."""
    monkeypatch.setattr("vmservice.vm.vm.RESIZE_TIMEOUT_SEC", 0.0)
    with running_guest(payloads("idle"), max_vcpus=4) as guest:
        guest.output.wait_for(BANNER)
        acpi = Acpi(guest)
        ends = begin(guest, 3)
        assert acpi.flags(1) & cpu_hotplug.INSERTING
        guest.timers.run_due()
        assert len(ends) == 1
        wait_until(lambda: vcpu_threads() == ["vcpu0", "vcpu1"] or None, "the thread of the vCPU that was noticed is gone")
        acpi.answer(1, cpu_hotplug.INSERTING)
        assert guest.vm.vcpus == 2

        ends = begin(guest, 1)
        guest.timers.run_due()
        assert "it has 2" in str(ends[0])
        acpi.answer(1, cpu_hotplug.EJECT)
        assert guest.vm.vcpus == 1
        wait_until(lambda: vcpu_threads() == ["vcpu0"] or None, "the thread of a vCPU that was given back")

        ends = begin(guest, 3)
        for vcpu in (1, 2):
            acpi.answer(vcpu, cpu_hotplug.INSERTING)
        assert (guest.vm.vcpus, ends) == (3, [None])


def test_a_resize_outlives_a_reset(payloads: Payloads) -> None:
    with running_guest(payloads("smp"), max_vcpus=2) as guest:
        seen = guest.output.wait_for(BANNER)
        begin(guest, 2)
        Acpi(guest).answer(1, cpu_hotplug.INSERTING)
        guest.vm.reboot()
        guest.output.wait_for(b"aps 1\n", seen)
        assert guest.vm.vcpus == 2


def test_shutdown_in_the_middle_of_a_resize(payloads: Payloads) -> None:
    with running_guest(payloads("idle"), max_vcpus=4) as guest:
        ends = begin(guest, 4)
        guest.vm.shutdown()
        assert str(ends[0]) == "the VM was shut down before the guest had answered a Resize to 4 vCPUs"
        wait_until(lambda: vcpu_threads() == [] or None, "threads of a VM that is gone")
