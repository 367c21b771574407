"""What a guest does to its machine, and what becomes of the VM: by policy, by force, and where nothing can be done."""

from __future__ import annotations

import pytest
from support.clock import Clock
from support.machines import RecordingMachine
from support.vm_bench import VERBS, Bench

from vmservice.errors import Busy, MachineLost
from vmservice.vm.events import EventKind, GuestEvent
from vmservice.vm.state import LastExit, State
from vmservice.vm.vm import Vm


def test_power_off() -> None:
    bench = Bench().bring_to(State.RUNNING)
    bench.event(EventKind.POWEROFF)
    assert bench.changes == [{"State": "shutdown", "LastExit": "poweroff", "GuestReady": False}]
    assert bench.machines[0].closed


@pytest.mark.parametrize("kind", [EventKind.ERROR, EventKind.BUG])
def test_failure(kind: str) -> None:
    bench = Bench().bring_to(State.RUNNING)
    bench.event(kind, "cannot run vCPU 0: Bad address (errno 14)")
    assert bench.changes == [{"State": "shutdown", "LastExit": "error", "GuestReady": False}]
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
    assert bench.changes == [{"State": "shutdown", "LastExit": "reset", "GuestReady": False}]
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
    assert bench.changes == [{"State": "shutdown", "LastExit": kind, "GuestReady": False}]
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


@pytest.mark.parametrize("kind", LOST)
def test_a_pause_by_policy_that_fails_leaves_the_guest_running(kind: str) -> None:
    bench = lost_bench("pause")
    bench.machines[0].refuse.add("pause")
    bench.event(kind)
    what = {EventKind.PANIC: "the guest panicked", EventKind.WATCHDOG: "the guest did not feed its watchdog"}[kind]
    refusal = "cannot pause: No space left on device (errno 28)"
    assert [str(error) for error in bench.trouble] == [f"{what}; it runs on, as it cannot be paused: {refusal}"]
    assert not isinstance(bench.trouble[0], MachineLost)
    assert (bench.vm.state, bench.vm.paused_by, bench.changes) == (State.RUNNING, "", [])
    bench.machines[0].refuse.clear()
    bench.event(kind)
    assert (bench.vm.state, bench.vm.paused_by) == (State.PAUSED, kind)


def test_who_paused_it_is_known_of_this_pause() -> None:
    bench = lost_bench("pause")
    bench.event(EventKind.PANIC)
    assert bench.vm.paused_by == LastExit.PANIC
    bench.vm.resume()
    assert bench.vm.paused_by == ""
    bench.vm.pause()
    assert (bench.vm.paused_by, bench.vm.last_exit) == ("", LastExit.PANIC)


@pytest.mark.parametrize("build_fails", [False, True])
def test_a_reset_that_cannot_be_carried_out_ends_the_vm_with_the_reason(build_fails: bool) -> None:
    bench = Bench().bring_to(State.RUNNING)
    bench.build_fails, bench.refuse = build_fails, () if build_fails else ("start",)
    bench.event(EventKind.RESET)
    assert (bench.vm.state, bench.vm.last_exit) == (State.SHUTDOWN, LastExit.ERROR)
    why = "cannot create a VM: Device or resource busy (errno 16)"
    if not build_fails:
        why = "cannot start: No space left on device (errno 28)"
    assert bench.vm.why_stopped == f"an error stopped the guest: it was reset, and cannot start anew: {why}"
    assert bench.trouble == []


@pytest.mark.parametrize("kind", [EventKind.RESET, EventKind.PANIC, EventKind.WATCHDOG, EventKind.POWEROFF])
def test_what_the_guest_did_before_it_was_paused_ends_it_when_held(kind: str) -> None:
    """Without the hold it would be started anew, or paused again, and then waited for."""
    bench = Bench("reboot", "pause", "reboot").bring_to(State.PAUSED)
    bench.event(kind)
    bench.vm.hold("the VM is being stopped")
    assert (bench.vm.state, bench.vm.last_exit) == (State.SHUTDOWN, kind)
    assert len(bench.machines) == 1


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
    assert bench.changes == [{"State": "running"}, {"State": "shutdown", "LastExit": "poweroff", "GuestReady": False}]


def test_an_event_while_paused_does_not_outlive_its_machine() -> None:
    bench = Bench().bring_to(State.PAUSED)
    bench.event(EventKind.POWEROFF)
    bench.vm.reboot()
    bench.vm.pause()
    bench.vm.resume()
    assert bench.vm.state == State.RUNNING


def test_work_for_the_main_thread_is_done_in_order_and_not_while_paused() -> None:
    bench = Bench().bring_to(State.RUNNING)
    done: list[str] = []
    machine = bench.machines[0]

    def event(name: str) -> GuestEvent:
        return GuestEvent(machine, EventKind.CALL, call=lambda: done.append(name))

    bench.vm.on_guest_event(event("first"))
    bench.vm.pause()
    bench.vm.on_guest_event(event("second"))
    bench.vm.on_guest_event(event("third"))
    assert done == ["first"]
    bench.vm.resume()
    assert done == ["first", "second", "third"]
    bench.vm.reboot()
    bench.vm.on_guest_event(event("of a machine long gone"))
    assert len(done) == 3


# Stopped by force


def test_a_forced_stop_is_no_shutdown_that_somebody_asked_for() -> None:
    bench = Bench().bring_to(State.RUNNING)
    bench.vm.force_stop("the guest did not power off within 120 seconds")
    assert bench.changes == [{"State": "shutdown", "LastExit": "error", "GuestReady": False}]
    assert bench.vm.was_forced
    assert bench.vm.why_stopped == "it was forced to stop: the guest did not power off within 120 seconds"
    bench.vm.boot()
    bench.vm.shutdown()
    assert not bench.vm.was_forced
    assert (bench.vm.last_exit, bench.vm.why_stopped) == (LastExit.SHUTDOWN, "Shutdown was called")


def test_a_guest_that_is_paused_by_its_panic_is_forced_and_remembered_for_that() -> None:
    bench = lost_bench("pause")
    bench.event(EventKind.PANIC)
    bench.vm.force_stop("the guest has panicked")
    assert (bench.vm.state, bench.vm.last_exit, bench.vm.was_forced) == (State.SHUTDOWN, LastExit.PANIC, True)


@pytest.mark.parametrize("state", [State.CREATED, State.SHUTDOWN])
def test_what_is_down_is_not_forced(state: str) -> None:
    bench = Bench().bring_to(state)
    bench.vm.force_stop("shutdown_timeout is 0")
    assert bench.changes == []
    assert not bench.vm.was_forced


# A machine that cannot be stopped


GONE = [EventKind.POWEROFF, EventKind.ERROR, EventKind.RESET, EventKind.PANIC, EventKind.WATCHDOG]


@pytest.mark.parametrize("kind", GONE)
def test_a_guest_that_must_end_and_cannot_be_stopped_is_lost(kind: str) -> None:
    bench = Bench().bring_to(State.RUNNING)
    bench.machines[0].refuse.add("close")
    bench.event(kind)
    (trouble,) = bench.trouble
    assert isinstance(trouble, MachineLost)
    assert str(trouble) == (
        "the machine cannot be stopped, so the process ends: cannot close: No space left on device (errno 28)"
    )
    assert trouble.exit_status == 71
    assert bench.changes == []
    assert_lost(bench)


def test_a_forced_stop_of_a_machine_that_cannot_be_stopped() -> None:
    bench = Bench().bring_to(State.RUNNING)
    bench.machines[0].refuse.add("close")
    bench.vm.force_stop("shutdown_timeout is 0")
    assert [type(trouble) for trouble in bench.trouble] == [MachineLost]
    assert bench.changes == []
    assert_lost(bench)


def assert_lost(bench: Bench) -> None:
    """Nothing happens to it any more, and nobody waits for it a second time."""
    assert len(bench.machines) == 1
    for verb in VERBS.values():
        with pytest.raises(Busy, match="its machine cannot be stopped, and the process ends"):
            verb(bench.vm)
    for kind in GONE:
        bench.event(kind)
    assert len(bench.trouble) == 1
    bench.vm.force_stop("it was asked for a second time")
    bench.vm.close()
    assert bench.machines[0].calls.count("close") == 1
    assert bench.vm.state == State.RUNNING


def test_trouble_that_nobody_listens_to_is_raised() -> None:
    machine = RecordingMachine(refuse=("close",))
    call_later = Clock().call_later
    vm = Vm(name="demo", vcpus=1, max_vcpus=1, memory_bytes=1 << 20, build=lambda _vcpus: machine, call_later=call_later)
    vm.boot()
    with pytest.raises(MachineLost):
        vm.on_guest_event(GuestEvent(machine, EventKind.POWEROFF))


def test_a_machine_that_cannot_be_stopped_at_the_end_of_the_process() -> None:
    bench = Bench().bring_to(State.RUNNING)
    bench.machines[0].refuse.add("close")
    with pytest.raises(MachineLost, match="the machine cannot be stopped, so the process ends: cannot close"):
        bench.vm.close()
    bench.vm.close()
