"""Verbs at random on the real /dev/kvm, with a guest that answers a Resize when it likes: at once, late, in part, never.

What must hold after each: one thread for each vCPU and none for another, a Pause that stops all of them, the number of vCPUs
that the guest has. A seed that failed is run again by naming it in SEEDS.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from support.kvm_guest import Guest, needs_kvm, running_guest, vcpu_threads, wait_until
from support.payload import BANNER

from vmservice.arch.x86_64.layout import CPU_HOTPLUG_BASE
from vmservice.devices import cpu_hotplug
from vmservice.errors import Busy, InvalidStateTransition, VmmError
from vmservice.vm.state import State

pytestmark = [pytest.mark.kvm, needs_kvm]

SEEDS = [1, 2, 3]
SECONDS = 4.0
TIMEOUT_SEC = 120.0
MAX_VCPUS = 6
# By weight; `resize` asks for another number, `deadline` ends one that takes too long, `events` is the loop's work.
VERBS = {"pause": 3, "resume": 6, "resize": 6, "reboot": 1, "deadline": 2, "events": 10}


class AcpiOfTheGuest:
    """A thread that does what the guest's ACPI interpreter does, in no hurry: it looks at each vCPU, and answers or not."""

    def __init__(self, guest: Guest, seed: int) -> None:
        self._guest = guest
        self._random = random.Random(seed)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, name="acpi")
        self.answers = 0

    def __enter__(self) -> AcpiOfTheGuest:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _live(self) -> None:
        while not self._over.is_set():
            pio = self._guest.machines[-1].board.pio
            pio.write(CPU_HOTPLUG_BASE + cpu_hotplug.SELECT, self._random.randrange(MAX_VCPUS).to_bytes(4, "little"))
            flags = pio.read(CPU_HOTPLUG_BASE + cpu_hotplug.FLAGS, 1)[0]
            answer = self._random.choice((0, cpu_hotplug.REMOVING, cpu_hotplug.EJECT, flags, flags))
            pio.write(CPU_HOTPLUG_BASE + cpu_hotplug.FLAGS, bytes((answer & ~cpu_hotplug.ENABLED,)))
            self.answers += 1
            time.sleep(self._random.choice((0, 0, 0, 0.0005)))


class Walk:
    """Random verbs for `guest`, each checked for what must hold after it."""

    def __init__(self, guest: Guest, seed: int) -> None:
        self.guest = guest
        self.random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.ends: list[VmmError | None] = []

    def step(self) -> None:
        vm, verb = self.guest.vm, self.random.choices(*zip(*VERBS.items(), strict=True))[0]
        try:
            if verb == "events":
                self.handle_events()
            elif verb == "deadline":
                self.guest.timers.run_due()
            elif verb == "resize":
                operation = vm.resize(self.random.randint(1, MAX_VCPUS))
                if operation is not None:
                    operation.on_end = self.ends.append
            else:
                getattr(vm, verb)()
            self.done[verb] += 1
        except (InvalidStateTransition, Busy):
            self.done["refused"] += 1
        self.check()

    def handle_events(self) -> None:
        for event in self.guest.events.drain():
            self.guest.vm.on_guest_event(event)

    def check(self) -> None:
        vm, machine = self.guest.vm, self.guest.machines[-1]
        with machine.board.lock:
            hotplug = machine.board.cpu_hotplug
            assert hotplug is not None
            there = set(hotplug.taken()) | set(hotplug.coming())
            given_back = set(machine.board._ejected)
        threads = machine.vcpu_set._threads
        assert set(threads) == there | given_back
        assert not there & given_back
        if vm.state == State.PAUSED:
            assert all(thread._holding for thread in threads.values()), "a vCPU that Pause did not stop"


def is_walk(walk: Walk, acpi: AcpiOfTheGuest) -> bool:
    """Enough of everything has been: it is not a standstill."""
    answered, failed = walk.ends.count(None), sum(end is not None for end in walk.ends)
    return all(walk.done[verb] > 5 for verb in VERBS) and acpi.answers > 500 and answered > 5 and failed > 5


@pytest.mark.parametrize("seed", SEEDS)
def test_random_verbs(payloads: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr("vmservice.vm.vm.RESIZE_TIMEOUT_SEC", 0.005)
    with running_guest(payloads("smp"), vcpus=2, max_vcpus=MAX_VCPUS) as guest:
        guest.output.wait_for(BANNER)
        walk = Walk(guest, seed)
        with AcpiOfTheGuest(guest, seed) as acpi:
            began = time.monotonic()
            while time.monotonic() - began < SECONDS or not is_walk(walk, acpi):
                assert time.monotonic() - began < TIMEOUT_SEC, f"a standstill: {walk.done} {acpi.answers} {walk.ends}"
                walk.step()
        if guest.vm.state == State.PAUSED:
            guest.vm.resume()
        walk.handle_events()
        walk.check()
        machine = guest.machines[-1]
        assert guest.vm.vcpus == machine.vcpus
        wait_until(
            lambda: vcpu_threads() == sorted(f"vcpu{index}" for index in machine.vcpu_set._threads) or None,
            "there are threads of vCPUs that are gone",
        )
        seen = len(guest.output.data)
        guest.vm.reboot()
        guest.output.wait_for(BANNER, seen)
