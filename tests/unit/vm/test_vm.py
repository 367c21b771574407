"""Every verb in every state on machines that obey, and on machines that fail: a failed verb changes nothing."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import pytest
from support.machines import RecordingMachine

from vmservice.errors import Busy, HostError, InvalidArgument, InvalidStateTransition, VmmError
from vmservice.vm.events import EventKind, GuestEvent
from vmservice.vm.state import TRANSITIONS, LastExit, State
from vmservice.vm.vm import RESIZE_TIMEOUT_SEC, Vm

VERBS: dict[str, Callable[[Vm], object]] = {
    "boot": Vm.boot,
    "pause": Vm.pause,
    "resume": Vm.resume,
    "shutdown": Vm.shutdown,
    "reboot": Vm.reboot,
    "power_button": Vm.power_button,
    "resize": lambda vm: vm.resize(3),
}

# State → verb → the state after it, and what the machine that the VM then has was asked for.
OUTCOME: dict[str, dict[str, tuple[str, list[str]]]] = {
    State.CREATED: {"boot": (State.RUNNING, ["start"])},
    State.RUNNING: {
        "pause": (State.PAUSED, ["start", "pause"]),
        "shutdown": (State.SHUTDOWN, ["start", "close"]),
        "reboot": (State.RUNNING, ["start"]),
        "power_button": (State.RUNNING, ["start", "press_power_button"]),
        "resize": (State.RUNNING, ["start", "set_vcpus"]),
    },
    State.PAUSED: {
        "boot": (State.RUNNING, ["start", "pause", "resume"]),
        "resume": (State.RUNNING, ["start", "pause", "resume"]),
        "shutdown": (State.SHUTDOWN, ["start", "pause", "close"]),
        "reboot": (State.RUNNING, ["start"]),
    },
    State.SHUTDOWN: {"boot": (State.RUNNING, ["start"])},
}


class Bench:
    """A VM whose machines are recorded; `refuse` is what the next ones refuse."""

    def __init__(self, on_reset: str = "reboot", on_panic: str = "exit", on_watchdog: str = "reboot") -> None:
        self.machines: list[RecordingMachine] = []
        self.refuse: tuple[str, ...] = ()
        self.build_fails = False
        self.slow = False
        self.changes: list[dict[str, object]] = []
        self.vm = Vm(
            name="demo",
            vcpus=1,
            max_vcpus=4,
            memory_bytes=1 << 20,
            build=self._build,
            on_reset=on_reset,
            on_panic=on_panic,
            on_watchdog=on_watchdog,
        )
        self.vm.subscribe(self.changes.append)

    def _build(self, vcpus: int) -> RecordingMachine:
        if self.build_fails:
            raise HostError("cannot create a VM: Device or resource busy (errno 16)", 16)
        self.machines.append(RecordingMachine(vcpus, refuse=self.refuse, slow=self.slow))
        return self.machines[-1]

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
        self.vm.handle(GuestEvent(machine or self.machines[-1], kind, detail))


@pytest.mark.parametrize(("state", "verb"), list(itertools.product(TRANSITIONS, VERBS)))
def test_verb_in_state(state: str, verb: str) -> None:
    bench = Bench().bring_to(state)
    before = bench.vm.properties()
    built = len(bench.machines)
    if verb not in OUTCOME[state]:
        with pytest.raises(InvalidStateTransition, match=f"state {state}"):
            VERBS[verb](bench.vm)
        assert bench.vm.properties() == before
        assert bench.changes == []
        assert len(bench.machines) == built
        return
    VERBS[verb](bench.vm)
    after, calls = OUTCOME[state][verb]
    assert bench.vm.state is after
    assert bench.machines[-1].calls == calls
    assert all(machine.closed for machine in bench.machines[:-1]), "a machine that was replaced is closed"
    now = bench.vm.properties()
    merged = {name: value for changes in bench.changes for name, value in changes.items()}
    assert merged == {name: value for name, value in now.items() if value != before[name]}


@pytest.mark.parametrize(
    ("state", "verb", "refused"),
    [
        (State.RUNNING, "pause", "pause"),
        (State.PAUSED, "resume", "resume"),
        (State.PAUSED, "boot", "resume"),
        (State.RUNNING, "power_button", "press_power_button"),
        (State.RUNNING, "resize", "set_vcpus"),
    ],
)
def test_a_machine_that_refuses_leaves_all_as_it_was(state: str, verb: str, refused: str) -> None:
    bench = Bench().bring_to(state)
    bench.machines[-1].refuse.add(refused)
    before = bench.vm.properties()
    with pytest.raises(HostError, match="errno 28"):
        VERBS[verb](bench.vm)
    assert bench.vm.properties() == before
    assert bench.changes == []
    bench.machines[-1].refuse.clear()
    VERBS[verb](bench.vm)


@pytest.mark.parametrize("state", [State.CREATED, State.SHUTDOWN])
def test_a_boot_that_fails_leaves_nothing_half_made(state: str) -> None:
    bench = Bench().bring_to(state)
    before = bench.vm.properties()
    bench.build_fails = True
    with pytest.raises(HostError, match="errno 16"):
        bench.vm.boot()
    bench.build_fails, bench.refuse = False, ("start",)
    with pytest.raises(HostError, match="errno 28"):
        bench.vm.boot()
    assert bench.machines[-1].calls == ["start", "close"]
    assert bench.vm.properties() == before
    assert bench.changes == []
    bench.refuse = ()
    bench.vm.boot()
    assert bench.vm.state == State.RUNNING


@pytest.mark.parametrize("state", [State.RUNNING, State.PAUSED])
def test_a_reboot_that_fails_ends_in_state_shutdown(state: str) -> None:
    """The old machine is gone by then, so there is no way back; the VM says what it is."""
    bench = Bench().bring_to(state)
    bench.refuse = ("start",)
    with pytest.raises(HostError, match="errno 28"):
        bench.vm.reboot()
    assert (bench.vm.state, bench.vm.last_exit) == (State.SHUTDOWN, LastExit.ERROR)
    assert all(machine.closed for machine in bench.machines)
    bench.refuse = ()
    bench.vm.boot()
    assert bench.vm.state == State.RUNNING


@pytest.mark.parametrize("count", [-1, 0, 5, 255])
def test_resize_out_of_range(count: int) -> None:
    bench = Bench().bring_to(State.RUNNING)
    with pytest.raises(InvalidArgument, match="takes 1 to 4"):
        bench.vm.resize(count)
    assert "set_vcpus" not in bench.machines[-1].calls


def test_resize_to_the_present_number_asks_nothing_of_the_machine() -> None:
    bench = Bench().bring_to(State.RUNNING)
    bench.vm.resize(1)
    assert bench.machines[-1].calls == ["start"]
    assert bench.changes == []


def test_a_resize_outlives_a_reset_and_not_a_shutdown() -> None:
    bench = Bench().bring_to(State.RUNNING)
    bench.vm.resize(3)
    bench.event(EventKind.RESET)
    assert (bench.vm.vcpus, bench.machines[-1].vcpus) == (3, 3)
    bench.vm.shutdown()
    bench.vm.boot()
    assert (bench.vm.vcpus, bench.machines[-1].vcpus) == (1, 1)


def slow_resize(desired: int) -> tuple[Bench, list[VmmError | None]]:
    """A Resize whose guest has not answered yet, and how it ended."""
    bench = Bench()
    bench.slow = True
    bench.bring_to(State.RUNNING)
    resizing = bench.vm.resize(desired)
    assert resizing is not None
    ends: list[VmmError | None] = []
    resizing.on_end = ends.append
    return bench, ends


def test_a_resize_ends_when_the_guest_has_answered_in_full() -> None:
    bench, ends = slow_resize(3)
    for vcpus in (2, 3):
        assert ends == []
        bench.machines[-1].vcpus = vcpus
        bench.event(EventKind.VCPUS)
    assert ends == [None]
    assert bench.changes == [{"VCPUs": 2}, {"VCPUs": 3}]
    bench.vm.pause()


def test_a_guest_that_does_not_answer_ends_a_resize_with_the_number_that_is_true(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, ends = slow_resize(3)
    bench.machines[-1].vcpus = 2
    bench.event(EventKind.VCPUS)
    bench.vm.tick()
    assert ends == []
    late = time.monotonic() + RESIZE_TIMEOUT_SEC
    monkeypatch.setattr("time.monotonic", lambda: late + 0.1)
    bench.vm.tick()
    assert [str(end) for end in ends] == ["the guest did not answer a Resize to 3 vCPUs within 30 seconds; it has 2"]
    assert "cancel_set_vcpus" in bench.machines[-1].calls
    assert bench.vm.vcpus == 2
    bench.vm.resize(3)


@pytest.mark.parametrize("verb", ["boot", "pause", "resume", "reboot", "resize"])
def test_while_a_resize_is_under_way_others_are_refused(verb: str) -> None:
    bench, ends = slow_resize(4)
    with pytest.raises(Busy, match="because a Resize to 4 vCPUs is under way"):
        VERBS[verb](bench.vm)
    bench.vm.power_button()
    bench.vm.shutdown()
    assert [str(end) for end in ends] == ["the VM was shut down while it was being resized"]


def test_a_reset_ends_a_resize() -> None:
    bench, ends = slow_resize(4)
    bench.event(EventKind.RESET)
    assert [str(end) for end in ends] == ["the VM was reset while it was being resized"]
    assert bench.vm.vcpus == 1


@pytest.mark.parametrize("verb", ["boot", "pause", "resume", "reboot", "resize"])
@pytest.mark.parametrize("state", [State.RUNNING, State.PAUSED])
def test_while_held_only_the_way_down_is_open(state: str, verb: str) -> None:
    bench = Bench().bring_to(state)
    bench.vm.hold("the VM is being stopped")
    with pytest.raises(Busy, match="is refused because the VM is being stopped"):
        VERBS[verb](bench.vm)
    assert bench.vm.state is state
    bench.vm.shutdown()
    assert bench.vm.last_exit == LastExit.SHUTDOWN


# What the guest does


def test_power_off() -> None:
    bench = Bench().bring_to(State.RUNNING)
    bench.event(EventKind.POWEROFF)
    assert bench.changes == [{"State": "shutdown", "LastExit": "poweroff"}]
    assert bench.machines[0].closed


@pytest.mark.parametrize("kind", [EventKind.ERROR, EventKind.BUG])
def test_failure(kind: str) -> None:
    bench = Bench().bring_to(State.RUNNING)
    bench.event(kind, "cannot run vCPU 0: Bad address (errno 14)")
    assert bench.changes == [{"State": "shutdown", "LastExit": "error"}]
    assert (bench.vm.last_detail, bench.vm.last_failure) == ("cannot run vCPU 0: Bad address (errno 14)", kind)


def test_reset_in_place() -> None:
    bench = Bench().bring_to(State.RUNNING)
    bench.event(EventKind.RESET)
    assert bench.vm.state == State.RUNNING
    assert [machine.calls for machine in bench.machines] == [["start", "close"], ["start"]]
    assert bench.vm.last_exit == LastExit.RESET


@pytest.mark.parametrize("held", [False, True])
def test_reset_that_ends_the_vm(held: bool) -> None:
    bench = Bench("reboot" if held else "exit").bring_to(State.RUNNING)
    if held:
        bench.vm.hold("the VM is being stopped")
    bench.event(EventKind.RESET)
    assert bench.changes == [{"State": "shutdown", "LastExit": "reset"}]
    assert len(bench.machines) == 1


LOST = [EventKind.PANIC, EventKind.WATCHDOG]


def lost_bench(policy: str) -> Bench:
    return Bench("exit", policy, policy).bring_to(State.RUNNING)


@pytest.mark.parametrize("kind", LOST)
def test_a_guest_that_is_lost_is_reset(kind: str) -> None:
    bench = lost_bench("reboot")
    bench.event(kind)
    assert [machine.calls for machine in bench.machines] == [["start", "close"], ["start"]]
    assert bench.changes == [{"LastExit": kind}]
    bench.event(kind)
    assert bench.changes == [{"LastExit": kind}] * 2


@pytest.mark.parametrize("kind", LOST)
@pytest.mark.parametrize("held", [False, True])
def test_a_guest_that_is_lost_ends_the_vm(kind: str, held: bool) -> None:
    bench = lost_bench("pause" if held else "exit")
    if held:
        bench.vm.hold("the VM is being stopped")
    bench.event(kind)
    assert bench.changes == [{"State": "shutdown", "LastExit": kind}]
    assert bench.machines[0].closed


@pytest.mark.parametrize("kind", LOST)
def test_a_guest_that_is_lost_is_paused_and_can_go_on(kind: str) -> None:
    """What it did after that waits, a second panic too."""
    bench = lost_bench("pause")
    bench.event(kind)
    assert bench.changes == [{"State": "paused", "LastExit": kind}]
    bench.event(kind)
    bench.event(EventKind.RESET)
    assert bench.machines[0].calls == ["start", "pause"]
    bench.vm.resume()
    assert bench.vm.state == State.PAUSED
    bench.vm.resume()
    assert (bench.vm.state, bench.vm.last_exit) == (State.SHUTDOWN, LastExit.RESET)


@pytest.mark.parametrize("kind", LOST)
@pytest.mark.parametrize("policy", ["reboot", "exit"])
def test_what_a_lost_guest_does_next_is_nobodys(kind: str, policy: str) -> None:
    """A kernel with panic=-1 resets itself right behind its panic."""
    bench = lost_bench(policy)
    machine = bench.machines[0]
    bench.event(kind)
    bench.changes.clear()
    bench.event(EventKind.RESET, machine=machine)
    assert bench.changes == []


def test_a_panic_that_pauses_ends_a_resize() -> None:
    bench, ends = slow_resize(4)
    bench.vm.reconfigure(boot_vcpus=1, on_reset="reboot", on_panic="pause", on_watchdog="reboot")
    bench.event(EventKind.PANIC)
    assert [str(end) for end in ends] == ["the VM was paused by its panic while it was being resized; it has 1"]
    assert bench.vm.state == State.PAUSED


def test_policies_follow_a_reload() -> None:
    bench = lost_bench("exit")
    bench.vm.reconfigure(boot_vcpus=1, on_reset="exit", on_panic="reboot", on_watchdog="pause")
    bench.event(EventKind.PANIC)
    bench.event(EventKind.WATCHDOG)
    assert (bench.vm.state, bench.vm.last_exit) == (State.PAUSED, LastExit.WATCHDOG)


def test_an_event_of_a_machine_long_gone_is_nobodys() -> None:
    bench = Bench().bring_to(State.RUNNING)
    bench.vm.reboot()
    bench.changes.clear()
    bench.event(EventKind.POWEROFF, machine=bench.machines[0])
    assert bench.vm.state == State.RUNNING
    assert bench.changes == []


def test_an_event_while_paused_waits_for_resume() -> None:
    bench = Bench().bring_to(State.PAUSED)
    bench.event(EventKind.POWEROFF)
    assert bench.vm.state == State.PAUSED
    bench.vm.resume()
    assert bench.changes == [{"State": "running"}, {"State": "shutdown", "LastExit": "poweroff"}]


def test_an_event_while_paused_does_not_outlive_its_machine() -> None:
    bench = Bench().bring_to(State.PAUSED)
    bench.event(EventKind.POWEROFF)
    bench.vm.reboot()
    bench.vm.pause()
    bench.vm.resume()
    assert bench.vm.state == State.RUNNING


def test_console_and_drain_reach_the_machine_if_there_is_one() -> None:
    bench = Bench()
    assert bench.vm.console_input(b"x") == 0
    bench.vm.tick()
    bench.bring_to(State.RUNNING)
    assert bench.vm.console_input(b"ls\n") == 3
    bench.vm.tick()
    assert bench.machines[0].calls == ["start", "console_input", "drain"]


def test_close_from_every_state_and_twice() -> None:
    for state in TRANSITIONS:
        bench = Bench().bring_to(state)
        bench.vm.close()
        bench.vm.close()
        assert all(machine.calls.count("close") == 1 for machine in bench.machines)
