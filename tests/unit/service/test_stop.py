"""A stop of a VM with a past: paused by whom, reset before the pause, panicked once; and one that cannot be stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest
from support.vm_bench import Bench

from vmservice.errors import MachineLost
from vmservice.service.journal import Log
from vmservice.service.sd_notify import Notifier
from vmservice.service.stop import GracefulStop
from vmservice.vm.events import EventKind
from vmservice.vm.state import LastExit, State

TIMEOUT_SEC = 60.0


class Told:
    """Log and notifier at once, which keep what they are told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, text: str) -> None:
        self.lines.append(text)

    warning = status = info

    def stopping(self) -> None:
        self.lines.append("stopping")

    def extend_timeout(self, _seconds: int) -> None: ...


class Stopped:
    """A GracefulStop of the VM of `bench`, in a loop; it is over when the VM is."""

    def __init__(self, bench: Bench, timeout_sec: int) -> None:
        self.told = Told()
        self.finished = 0
        self._over = asyncio.Event()
        self.stop = GracefulStop(bench.vm, cast(Log, self.told), cast(Notifier, self.told), timeout_sec, self._finish)

        def on_change(changes: dict[str, object]) -> None:
            if changes.get("State") == State.SHUTDOWN:
                self.stop.cancel()
                self._over.set()

        bench.vm.subscribe(on_change)

    def _finish(self) -> None:
        self.finished += 1
        self._over.set()

    async def wait(self) -> None:
        async with asyncio.timeout(TIMEOUT_SEC):
            await self._over.wait()


def stop(bench: Bench, *, timeout_sec: int = 120, answer: str = EventKind.POWEROFF) -> Stopped:
    """Stop the VM, whose guest does `answer` when its button is pressed; it may be nothing."""

    async def run() -> Stopped:
        stopped = Stopped(bench, timeout_sec)
        stopped.stop.start()
        if bench.vm.state == State.RUNNING:
            await until(lambda: "press_power_button" in bench.machines[-1].calls)
            if answer:
                bench.event(answer)
        await stopped.wait()
        return stopped

    return asyncio.run(run())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_SEC):
        while not condition():
            await asyncio.sleep(0)


@pytest.mark.parametrize("before", [EventKind.PANIC, EventKind.WATCHDOG, EventKind.RESET])
@pytest.mark.parametrize("how", ["operator", "policy and resumed"])
def test_a_healthy_guest_is_asked_whatever_one_before_it_did(before: str, how: str) -> None:
    """A panic of an earlier guest is the last exit for good; what counts is why this VM is paused."""
    policy = "reboot" if how == "operator" else "pause"
    bench = Bench("reboot", policy, policy).bring_to(State.RUNNING)
    bench.event(before)
    if bench.vm.state == State.PAUSED:
        bench.vm.resume()
    bench.vm.pause()
    assert bench.vm.last_exit == before
    stopped = stop(bench)
    assert "press_power_button" in bench.machines[-1].calls
    assert (bench.vm.state, bench.vm.last_exit, bench.vm.was_forced) == (State.SHUTDOWN, LastExit.POWEROFF, False)
    assert stopped.told.lines[:2] == ["stopping", "asked the guest to power off; it has 120 seconds"]


def test_a_guest_that_is_paused_by_its_panic_is_not_asked() -> None:
    bench = Bench(on_panic="pause").bring_to(State.RUNNING)
    bench.event(EventKind.PANIC)
    stopped = stop(bench)
    assert bench.machines[-1].calls == ["start", "pause", "close"]
    assert (bench.vm.last_exit, bench.vm.was_forced) == (LastExit.PANIC, True)
    assert stopped.told.lines == ["stopping", "forced to stop: the guest has panicked"]
    assert stopped.finished == 1


@pytest.mark.parametrize("kind", [EventKind.RESET, EventKind.WATCHDOG, EventKind.PANIC])
def test_what_a_guest_did_before_it_was_paused_is_its_end(kind: str) -> None:
    """Not started anew, to be waited for then."""
    bench = Bench("reboot", "reboot", "reboot").bring_to(State.PAUSED)
    bench.event(kind)
    stopped = stop(bench)
    assert [machine.calls for machine in bench.machines] == [["start", "pause", "resume", "close"]]
    assert (bench.vm.state, bench.vm.last_exit) == (State.SHUTDOWN, kind)
    assert stopped.told.lines == ["stopping"]
    assert stopped.finished == 1


def test_a_guest_that_resets_when_it_is_asked_is_not_started_anew() -> None:
    bench = Bench("reboot").bring_to(State.RUNNING)
    stop(bench, answer=EventKind.RESET)
    assert len(bench.machines) == 1
    assert (bench.vm.state, bench.vm.last_exit) == (State.SHUTDOWN, LastExit.RESET)


def test_a_paused_guest_that_cannot_go_on_is_forced() -> None:
    bench = Bench().bring_to(State.PAUSED)
    bench.machines[0].refuse.add("resume")
    stopped = stop(bench)
    assert (bench.vm.last_exit, bench.vm.was_forced) == (LastExit.ERROR, True)
    why = "forced to stop: it cannot go on to power off: cannot resume: No space left on device (errno 28)"
    assert stopped.told.lines == ["stopping", why]


def test_a_guest_that_does_not_answer_is_forced() -> None:
    bench = Bench().bring_to(State.RUNNING)
    stopped = stop(bench, timeout_sec=1, answer="")
    assert (bench.vm.last_exit, bench.vm.was_forced) == (LastExit.ERROR, True)
    assert stopped.told.lines[-1] == "forced to stop: the guest did not power off within 1 second"


def test_a_button_that_cannot_be_pressed_does_not_keep_the_stop_from_its_end() -> None:
    bench = Bench().bring_to(State.RUNNING)
    bench.machines[0].refuse.add("press_power_button")
    stopped = stop(bench, timeout_sec=1, answer="")
    assert bench.vm.was_forced
    warning = "the power button cannot be pressed: cannot press_power_button: No space left on device (errno 28)"
    assert warning in stopped.told.lines


def test_a_machine_that_cannot_be_stopped_is_told_of() -> None:
    bench = Bench().bring_to(State.RUNNING)
    bench.machines[0].refuse.add("close")
    stopped = stop(bench, timeout_sec=1, answer="")
    assert [type(trouble) for trouble in bench.trouble] == [MachineLost]
    assert (bench.vm.state, stopped.finished) == (State.RUNNING, 1)
