"""The kick protocol, against a vCPU that is a loop in Python: no request is lost, whenever it comes."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from vmservice.errors import HostError
from vmservice.kvm.vcpu import INTERRUPTED, KvmVcpu
from vmservice.vm.vcpu import KICK_SIGNAL, VcpuThread, install_kick_handler

TIMEOUT_SEC = 60.0
EXIT = 2


class FakeVcpu:
    """`run` spins in "the guest" until `immediate_exit` is set, as KVM_RUN does; no signal is needed to leave it."""

    index = 7

    def __init__(self) -> None:
        self.immediate_exit = 0
        self.runs = 0
        self.interrupted = 0
        self.exits: list[Callable[[], int]] = []

    def set_immediate_exit(self, value: int) -> None:
        self.immediate_exit = value

    def slow_exit(self) -> tuple[threading.Event, threading.Event]:
        """The next exit takes until the second event is set; the first is set when it has come."""
        come, go_on = threading.Event(), threading.Event()

        def leave() -> int:
            come.set()
            go_on.wait(TIMEOUT_SEC)
            return EXIT

        self.exits.append(leave)
        return come, go_on

    def has_run_since(self, runs: int) -> bool:
        return self.runs > runs

    def run(self) -> int:
        self.runs += 1
        if self.exits:
            return self.exits.pop(0)()
        while not self.immediate_exit:
            time.sleep(0)
        self.interrupted += 1
        return INTERRUPTED


@pytest.fixture(autouse=True)
def kick_handler() -> None:
    install_kick_handler()


def make(vcpu: FakeVcpu, keep_running: bool = True) -> tuple[VcpuThread, list[Exception]]:
    faults: list[Exception] = []
    thread = VcpuThread(cast(KvmVcpu, vcpu), lambda _vcpu, _reason: keep_running, faults.append)
    return thread, faults


def stop_and_finish(thread: VcpuThread) -> None:
    thread.request_stop()
    assert thread.wait_stopped(TIMEOUT_SEC)
    thread.finish()


def test_a_thousand_pauses_none_lost() -> None:
    vcpu = FakeVcpu()
    thread, faults = make(vcpu)
    thread.start()
    for _ in range(1000):
        thread.request_stop()
        assert thread.wait_stopped(TIMEOUT_SEC)
        runs = vcpu.runs
        assert vcpu.immediate_exit == 0
        time.sleep(0)
        assert vcpu.runs == runs, "the guest ran while it was stopped"
        thread.release()
    stop_and_finish(thread)
    assert faults == []


def test_a_request_between_two_runs_is_not_lost() -> None:
    """Cloud Hypervisor of December 2019 set a flag and sent a signal: one that came just before KVM_RUN was lost."""
    vcpu = FakeVcpu()
    thread, _ = make(vcpu)
    handling, go_on = vcpu.slow_exit()
    thread.start()
    assert handling.wait(TIMEOUT_SEC)
    thread.request_stop()  # the thread is not in the guest: the signal has nothing to interrupt
    go_on.set()
    assert thread.wait_stopped(TIMEOUT_SEC)
    thread.finish()


def test_a_request_can_be_taken_back_and_leaves_no_trace() -> None:
    vcpu = FakeVcpu()
    thread, _ = make(vcpu)
    handling, go_on = vcpu.slow_exit()
    thread.start()
    assert handling.wait(TIMEOUT_SEC)
    thread.request_stop()
    assert not thread.wait_stopped(0.01)
    thread.release()
    go_on.set()
    deadline = time.monotonic() + TIMEOUT_SEC
    while vcpu.runs < 3 and time.monotonic() < deadline:
        time.sleep(0)
    assert vcpu.runs == 3, "out of the cancelled request the thread goes back into the guest, once"
    stop_and_finish(thread)


def test_a_thread_that_holds_can_be_stopped_again_and_finished() -> None:
    """Shutdown from paused, which hung in Cloud Hypervisor of December 2019."""
    thread, _ = make(FakeVcpu())
    thread.start()
    thread.request_stop()
    assert thread.wait_stopped(TIMEOUT_SEC)
    stop_and_finish(thread)


def test_a_guest_that_left_off_runs_no_further_but_can_still_be_paused_and_finished() -> None:
    vcpu = FakeVcpu()
    thread, _ = make(vcpu, keep_running=False)
    left = threading.Event()

    def leave() -> int:
        left.set()
        return EXIT

    vcpu.exits.append(leave)
    thread.start()
    assert left.wait(TIMEOUT_SEC)
    for _ in range(3):
        thread.request_stop()
        assert thread.wait_stopped(TIMEOUT_SEC)
        thread.release()
    stop_and_finish(thread)
    assert vcpu.runs == 1


def test_an_exception_in_a_handler_is_reported_once_and_ends_only_the_guest() -> None:
    vcpu = FakeVcpu()
    thread, faults = make(vcpu)
    reported = threading.Event()

    def fail() -> int:
        raise ValueError("a bug")

    vcpu.exits.append(fail)

    def report(error: Exception) -> None:
        faults.append(error)
        reported.set()

    thread._on_fault = report
    thread.start()
    assert reported.wait(TIMEOUT_SEC)
    stop_and_finish(thread)
    assert [str(fault) for fault in faults] == ["a bug"]
    assert vcpu.runs == 1


def test_the_thread_has_the_vcpus_name() -> None:
    vcpu = FakeVcpu()
    thread, _ = make(vcpu)
    names: list[str] = []
    named = threading.Event()

    def look() -> int:
        with open("/proc/thread-self/comm", encoding="ascii") as file:
            names.append(file.read().strip())
        named.set()
        return EXIT

    vcpu.exits.append(look)
    thread.start()
    assert named.wait(TIMEOUT_SEC)
    stop_and_finish(thread)
    assert names == ["vcpu7"]


def test_the_kick_signal_is_a_real_time_signal_with_a_handler() -> None:
    assert signal.SIGRTMIN <= KICK_SIGNAL <= signal.SIGRTMAX
    caught = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("SigCgt:"))
    assert int(caught.split()[1], 16) >> (KICK_SIGNAL - 1) & 1, "it has a handler, and not one of Python's"
    assert not callable(signal.getsignal(KICK_SIGNAL))
    assert KICK_SIGNAL != signal.SIGRTMIN + 4, "SIGRTMIN+4 asks for a stop"


def test_a_sign_of_life_costs_the_guest_nothing() -> None:
    vcpu = FakeVcpu()
    thread, faults = make(vcpu)
    thread.start()
    for _ in range(100):
        thread.ask()
        wait_until(lambda: thread.answered)
    assert vcpu.interrupted >= 100
    thread.request_stop()
    assert thread.wait_stopped(TIMEOUT_SEC)
    thread.ask()
    assert thread.answered, "one that holds has nothing to answer"
    assert vcpu.immediate_exit == 0
    thread.finish()
    thread.ask()
    assert thread.answered
    assert faults == []


def test_a_thread_that_is_stuck_in_an_exit_gives_no_sign_of_life() -> None:
    vcpu = FakeVcpu()
    come, go_on = vcpu.slow_exit()
    thread, _faults = make(vcpu)
    thread.start()
    assert come.wait(TIMEOUT_SEC)
    thread.ask()
    assert not thread.answered
    thread.ask()
    assert not thread.answered
    go_on.set()
    wait_until(lambda: thread.answered)
    stop_and_finish(thread)


def test_a_running_vcpu_is_looked_at_by_its_own_thread_and_goes_on() -> None:
    vcpu = FakeVcpu()
    thread, faults = make(vcpu)
    thread.start()
    names: list[str] = []

    def look(seen: KvmVcpu) -> list[str]:
        names.append(Path("/proc/thread-self/comm").read_text().strip())
        return [f"vCPU {seen.index}"]

    for _ in range(100):
        runs = vcpu.runs
        assert thread.look(look).wait(TIMEOUT_SEC) == ["vCPU 7"]
        wait_until(partial(vcpu.has_run_since, runs))
    assert names == ["vcpu7"] * 100
    assert vcpu.immediate_exit == 0
    stop_and_finish(thread)
    assert faults == []


def test_a_vcpu_that_holds_is_looked_at_at_once_and_holds_on() -> None:
    vcpu = FakeVcpu()
    thread, _ = make(vcpu)
    thread.start()
    thread.request_stop()
    assert thread.wait_stopped(TIMEOUT_SEC)
    runs = vcpu.runs
    assert thread.look(lambda seen: [str(seen.index)]).wait(0) == ["7"]
    assert (vcpu.runs, vcpu.immediate_exit) == (runs, 0)
    thread.finish()
    assert thread.look(lambda _seen: []).wait(0) == []


def test_a_vcpu_that_is_stuck_in_an_exit_is_not_seen_until_it_comes_out() -> None:
    vcpu = FakeVcpu()
    come, go_on = vcpu.slow_exit()
    thread, _ = make(vcpu)
    thread.start()
    assert come.wait(TIMEOUT_SEC)
    sight = thread.look(lambda _seen: ["seen"])
    assert sight.wait(0.01) is None
    go_on.set()
    assert sight.wait(TIMEOUT_SEC) == ["seen"]
    stop_and_finish(thread)


def test_a_look_that_fails_says_so_and_ends_nothing() -> None:
    vcpu = FakeVcpu()
    thread, faults = make(vcpu)
    thread.start()

    def fail(_seen: KvmVcpu) -> list[str]:
        raise HostError("cannot read registers: Bad address (errno 14)", 14)

    assert thread.look(fail).wait(TIMEOUT_SEC) == ["cannot read registers: Bad address (errno 14)"]
    stop_and_finish(thread)
    assert faults == []


def test_looks_from_another_thread_while_the_main_thread_pauses_and_resumes() -> None:
    vcpu = FakeVcpu()
    thread, faults = make(vcpu)
    thread.start()
    seen: list[list[str] | None] = []
    over = threading.Event()

    def look_on() -> None:
        while not over.is_set():
            seen.append(thread.look(lambda _seen: ["seen"]).wait(TIMEOUT_SEC))

    looker = threading.Thread(target=look_on)
    looker.start()
    pauses, deadline = 0, time.monotonic() + TIMEOUT_SEC
    while pauses < 300 or len(seen) <= 100:
        assert time.monotonic() < deadline
        pauses += 1
        thread.request_stop()
        assert thread.wait_stopped(TIMEOUT_SEC)
        runs = vcpu.runs
        time.sleep(0)
        assert vcpu.runs == runs
        thread.release()
    over.set()
    looker.join()
    stop_and_finish(thread)
    assert all(lines == ["seen"] for lines in seen)
    assert faults == []


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_SEC
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0)
