"""Verbs and events at random on a VM with simulated machines, and with machines that fail: what must hold, holds after each.

The walk on the real /dev/kvm is tests/kvm/test_random_walk.py.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from support.clock import Clock
from support.machines import RecordingMachine

from vmservice.errors import Busy, HostError, InvalidArgument, InvalidStateTransition, MachineLost, VmmError
from vmservice.vm.events import EventKind, EventQueue, GuestEvent
from vmservice.vm.operation import Operation
from vmservice.vm.sim import SimMachine
from vmservice.vm.state import TRANSITIONS, State
from vmservice.vm.vm import Vm

if TYPE_CHECKING:
    from vmservice.vm.machine_protocol import Machine

MAX_VCPUS = 6
VERBS: dict[str, Callable[[Vm], object]] = {
    "Boot": Vm.boot,
    "Pause": Vm.pause,
    "Resume": Vm.resume,
    "Shutdown": Vm.shutdown,
    "Reboot": Vm.reboot,
    "PowerButton": Vm.power_button,
}
# By weight: what a step may be beside a verb.
STEPS = {"verb": 12, "resize": 12, "events": 12, "guest": 1, "time": 1, "fail": 2}
GUEST = (EventKind.RESET, EventKind.PANIC, EventKind.WATCHDOG, EventKind.POWEROFF, EventKind.ERROR)
FAILURES = ("start", "pause", "resume", "press_power_button", "set_vcpus", "cancel_set_vcpus", "settle_vcpus", "close")


class Walk:
    """`build` makes a machine. `failing` says that machines may refuse what they are asked."""

    def __init__(self, seed: int, build: Callable[[Walk, int], Machine], *, failing: bool) -> None:
        self.random = random.Random(seed)
        self.events = EventQueue()
        self.clock = Clock()
        self.machines: list[Machine] = []
        self.failing = failing
        self.done: Counter[str] = Counter()
        self.unended: list[Operation] = []
        self.trouble: list[VmmError] = []
        self.vm = Vm(
            name="walk",
            vcpus=2,
            max_vcpus=MAX_VCPUS,
            memory_bytes=1 << 20,
            build=lambda vcpus: self._remember(build(self, vcpus)),
            call_later=self.clock.call_later,
            on_panic=self.random.choice(("reboot", "pause", "exit")),
            on_watchdog=self.random.choice(("reboot", "pause", "exit")),
        )
        self.seen = self.vm.properties()
        self.moves: list[tuple[object, object]] = []
        self.vm.subscribe(self._on_change)
        self.vm.on_trouble = self.trouble.append

    def _remember(self, machine: Machine) -> Machine:
        self.machines.append(machine)
        return machine

    def _on_change(self, changes: dict[str, object]) -> None:
        if "State" in changes:
            self.moves.append((self.seen["State"], changes["State"]))
        self.seen |= changes

    def step(self) -> None:
        """One thing at random; then what must hold."""
        step = self.random.choices(list(STEPS), list(STEPS.values()))[0]
        before = self._unmoved()
        try:
            getattr(self, f"_{step}")()
            self.done[step] += 1
        except (Busy, InvalidArgument, InvalidStateTransition):
            self.done["refused"] += 1
            assert self._unmoved() == before, "a refused verb changed something"
        except HostError:
            assert self.failing
            self.done["failed"] += 1
        self._check()

    def _unmoved(self) -> tuple[object, ...]:
        """What only the VM changes; of its vCPUs the guest decides, and each verb looks anew."""
        properties = {name: value for name, value in self.vm.properties().items() if name != "VCPUs"}
        return properties, self.vm.operation, len(self.machines)

    def _verb(self) -> None:
        VERBS[self.random.choice((*VERBS, "Boot", "Boot", "Boot", "Resume", "Resume"))](self.vm)

    def _resize(self) -> None:
        operation = self.vm.resize(self.random.randint(0, MAX_VCPUS + 1))
        if operation is not None:
            self.unended.append(operation)
            operation.on_end = lambda error: self._ended(operation, error)

    def _ended(self, operation: Operation, error: VmmError | None) -> None:
        self.unended.remove(operation)  # ValueError the second time
        self.done["answered" if error is None else "given up"] += 1

    def _events(self) -> None:
        for event in self.events.drain():
            self.vm.on_guest_event(event)

    def _guest(self) -> None:
        if self.machines:
            machine = self.random.choice(self.machines[-2:])
            self.events.post(GuestEvent(machine, self.random.choice(GUEST)))

    def _time(self) -> None:
        self.clock.advance(self.random.choice((1.0, 30.0)))

    def _fail(self) -> None:
        machine = self.machines[-1] if self.machines else None
        if self.failing and isinstance(machine, RecordingMachine):
            machine.refuse = {self.random.choice(FAILURES)} if self.random.random() < 0.3 else set()

    def _check(self) -> None:
        vm = self.vm
        assert self.seen == vm.properties(), "a listener knows something else"
        while self.moves:
            before, after = self.moves.pop()
            assert after in TRANSITIONS[str(before)], f"{before} to {after}"
        assert 1 <= vm.vcpus <= MAX_VCPUS
        assert self.unended == ([vm.operation] if vm.operation is not None else [])
        assert self.clock.pending == len(self.unended)
        assert vm.operation is None or vm.state == State.RUNNING
        assert vm.paused_by == "" or vm.state == State.PAUSED


@pytest.fixture
def walks() -> Iterator[Callable[..., Walk]]:
    made: list[Walk] = []

    def start(*arguments: object, **options: object) -> Walk:
        made.append(Walk(*arguments, **options))  # type: ignore[arg-type]
        return made[-1]

    yield start
    for walk in made:
        walk.vm.close()
        walk.events.close()


def simulated(walk: Walk, vcpus: int) -> Machine:
    return SimMachine(
        walk.events,
        lambda _data: None,
        vcpus=vcpus,
        max_vcpus=MAX_VCPUS,
        heartbeat_sec=0.001,
        poweroff_sec=0.003,
        resize_sec=walk.random.choice((0.0, 0.0001, 0.0001, 1000.0)),
    )


def recorded(walk: Walk, vcpus: int) -> Machine:
    machine = RecordingMachine(vcpus, slow=walk.random.random() < 0.8)
    if walk.random.random() < 0.05:
        machine.refuse = {"start"}
    return machine


@pytest.mark.parametrize("seed", range(4))
def test_with_a_simulated_machine(walks: Callable[..., Walk], seed: int) -> None:
    walk = walks(seed, simulated, failing=False)
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        walk.step()
        if walk.vm.state == State.PAUSED:
            machine = walk.machines[-1]
            assert walk.vm.vcpus == machine.vcpus
        if walk.random.random() < 0.05:
            time.sleep(0.001)
    assert walk.trouble == []
    assert all(walk.done[name] for name in (*STEPS, "refused", "answered", "given up")), walk.done


@pytest.mark.parametrize("seed", range(10))
def test_with_machines_that_fail(walks: Callable[..., Walk], seed: int) -> None:
    """A machine that is lost is the end of its walk."""
    done: Counter[str] = Counter()
    walk = walks(seed, recorded, failing=True)
    for _ in range(4000):
        walk.step()
        machine = walk.machines[-1] if walk.machines else None
        if isinstance(machine, RecordingMachine) and machine.slow and walk.random.random() < 0.4:
            machine.vcpus = walk.random.randint(1, MAX_VCPUS)
            walk.events.post(GuestEvent(machine, EventKind.VCPUS))
        if walk.trouble and isinstance(walk.trouble[-1], MachineLost):
            with pytest.raises(Busy):
                walk.vm.boot()
            done += walk.done
            walk = walks(seed + 1000 * len(done), recorded, failing=True)
    done += walk.done
    assert all(done[name] > 3 for name in (*STEPS, "refused", "failed", "answered", "given up")), done
