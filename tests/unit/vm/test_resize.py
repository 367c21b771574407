"""A Resize that waits for its guest: done, given up, ended by another verb, and answered late."""

from __future__ import annotations

import pytest
from support.vm_bench import VERBS, Bench

from vmservice.errors import Busy, GuestNotResponding, HostError, InvalidStateTransition, VmmError
from vmservice.vm.events import EventKind
from vmservice.vm.state import State
from vmservice.vm.vm import RESIZE_TIMEOUT_SEC


def slow_resize(desired: int) -> tuple[Bench, list[VmmError | None]]:
    """A Resize whose guest has not answered yet, and how it ended."""
    bench = Bench()
    bench.slow = True
    bench.bring_to(State.RUNNING)
    resizing = bench.vm.resize(desired)
    assert resizing is not None
    assert (resizing, resizing.name) == (bench.vm.operation, "Resize")
    ends: list[VmmError | None] = []
    resizing.on_end = ends.append
    return bench, ends


def test_it_ends_when_the_guest_has_answered_in_full() -> None:
    bench, ends = slow_resize(3)
    for vcpus in (2, 3):
        assert ends == []
        bench.machines[-1].vcpus = vcpus
        bench.event(EventKind.VCPUS)
    assert ends == [None]
    assert bench.changes == [{"VCPUs": 2}, {"VCPUs": 3}]
    assert (bench.vm.operation, bench.clock.pending) == (None, 0)
    bench.vm.pause()


def test_a_guest_that_does_not_answer_ends_it_with_the_number_that_is_true() -> None:
    bench, ends = slow_resize(3)
    bench.machines[-1].vcpus = 2
    bench.event(EventKind.VCPUS)
    bench.clock.advance(RESIZE_TIMEOUT_SEC - 0.1)
    assert ends == []
    bench.clock.advance(0.2)
    assert [str(end) for end in ends] == ["the guest did not answer a Resize to 3 vCPUs within 20 seconds; it has 2"]
    assert isinstance(ends[0], GuestNotResponding)
    assert "cancel_set_vcpus" in bench.machines[-1].calls
    assert bench.vm.vcpus == 2
    assert bench.vm.operation is None
    bench.vm.resize(3)


def test_clients_of_the_common_libraries_wait_longer_than_the_guest_has() -> None:
    assert RESIZE_TIMEOUT_SEC <= 20


def test_what_the_guest_does_after_the_deadline_counts() -> None:
    bench, ends = slow_resize(3)
    bench.clock.advance(RESIZE_TIMEOUT_SEC)
    bench.machines[-1].vcpus = 2
    bench.event(EventKind.VCPUS)
    assert bench.changes == [{"VCPUs": 2}]
    assert len(ends) == 1


def test_it_ends_also_where_taking_back_fails() -> None:
    bench, ends = slow_resize(3)
    bench.machines[-1].refuse.add("cancel_set_vcpus")
    bench.clock.advance(RESIZE_TIMEOUT_SEC)
    assert [str(end) for end in ends] == ["cannot cancel_set_vcpus: No space left on device (errno 28)"]
    assert bench.vm.operation is None


def test_a_vcpu_that_does_not_stop_does_not_keep_it_from_its_end() -> None:
    """The guest has given it back: what is left of it is for the next time."""
    bench, ends = slow_resize(3)
    bench.machines[-1].refuse.add("settle_vcpus")
    bench.machines[-1].vcpus = 3
    bench.event(EventKind.VCPUS)
    assert ends == [None]
    assert [str(error) for error in bench.trouble] == ["cannot settle_vcpus: No space left on device (errno 28)"]


def test_while_it_is_under_way_another_is_refused() -> None:
    bench, ends = slow_resize(4)
    with pytest.raises(Busy, match="because a Resize to 4 vCPUs is under way"):
        bench.vm.resize(2)
    for verb in ("boot", "resume"):
        with pytest.raises(InvalidStateTransition):
            VERBS[verb](bench.vm)
    bench.vm.power_button()
    assert ends == []


ENDS_IT = {
    "pause": (State.PAUSED, "the VM was paused before the guest had answered a Resize to 4 vCPUs; it has 1"),
    "reboot": (State.RUNNING, "the VM was reset before the guest had answered a Resize to 4 vCPUs"),
    "shutdown": (State.SHUTDOWN, "the VM was shut down before the guest had answered a Resize to 4 vCPUs"),
}


@pytest.mark.parametrize("verb", ENDS_IT)
def test_a_verb_ends_it(verb: str) -> None:
    bench, ends = slow_resize(4)
    VERBS[verb](bench.vm)
    state, sentence = ENDS_IT[verb]
    assert [(type(end), str(end)) for end in ends] == [(GuestNotResponding, sentence)]
    assert (bench.vm.state, bench.vm.vcpus) == (state, 1)
    assert (bench.vm.operation, bench.clock.pending) == (None, 0)
    assert ("cancel_set_vcpus" in bench.machines[0].calls) == (verb == "pause"), "a machine that is closed is asked nothing"


@pytest.mark.parametrize("verb", ENDS_IT)
def test_when_it_is_done_but_for_its_event_it_has_succeeded(verb: str) -> None:
    bench, ends = slow_resize(4)
    bench.machines[-1].vcpus = 4
    VERBS[verb](bench.vm)
    assert ends == [None]
    assert bench.vm.vcpus == 4
    if verb == "reboot":
        assert bench.machines[-1].vcpus == 4


@pytest.mark.parametrize(("verb", "refused"), [("pause", "pause"), ("reboot", "close"), ("shutdown", "close")])
def test_a_verb_that_fails_does_not_end_it(verb: str, refused: str) -> None:
    bench, ends = slow_resize(3)
    bench.machines[-1].refuse.add(refused)
    with pytest.raises(HostError):
        VERBS[verb](bench.vm)
    assert ends == []
    bench.machines[-1].vcpus = 3
    bench.event(EventKind.VCPUS)
    assert ends == [None]


@pytest.mark.parametrize(("kind", "verb"), [(EventKind.RESET, "reboot"), (EventKind.PANIC, "pause")])
def test_the_guest_ends_it(kind: str, verb: str) -> None:
    bench, ends = slow_resize(4)
    bench.vm.reconfigure(boot_vcpus=1, on_reset="reboot", on_panic="pause", on_watchdog="reboot")
    bench.event(kind)
    assert [str(end) for end in ends] == [ENDS_IT[verb][1]]
    assert (bench.vm.state, bench.vm.vcpus) == (ENDS_IT[verb][0], 1)


@pytest.mark.parametrize("verb", ENDS_IT)
def test_who_waits_for_it_finds_the_vm_in_its_new_state(verb: str) -> None:
    """So whatever they do then is refused, or works."""
    bench, _ends = slow_resize(4)
    found: list[str] = []

    def look(_error: VmmError | None) -> None:
        found.append(bench.vm.state)
        if bench.vm.state == State.RUNNING:
            bench.vm.resize(2)
        else:
            with pytest.raises(InvalidStateTransition):
                bench.vm.resize(2)

    assert bench.vm.operation is not None
    bench.vm.operation.on_end = look
    VERBS[verb](bench.vm)
    assert found == [ENDS_IT[verb][0]]


def test_its_end_may_begin_the_next() -> None:
    bench, _ends = slow_resize(4)
    assert bench.vm.operation is not None

    def try_again(_error: VmmError | None) -> None:
        bench.vm.resize(3)

    bench.vm.operation.on_end = try_again
    bench.clock.advance(RESIZE_TIMEOUT_SEC)
    assert bench.vm.operation is not None
    assert bench.vm.operation.asked == "a Resize to 3 vCPUs"
