"""Every verb in every state on machines that obey, and on machines that fail: a failed verb changes nothing."""

from __future__ import annotations

import itertools

import pytest
from support.vm_bench import VERBS, Bench

from vmservice.config.sections.balloon import BalloonDevice
from vmservice.errors import Busy, ConfigError, HostError, InvalidArgument, InvalidStateTransition
from vmservice.vm.events import EventKind
from vmservice.vm.state import TRANSITIONS, LastExit, State

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


@pytest.mark.parametrize(("state", "verb"), list(itertools.product(TRANSITIONS, VERBS)))
def test_verb_in_state(state: str, verb: str) -> None:
    bench = Bench().bring_to(state)
    before = bench.vm.properties()
    built = len(bench.machines)
    if verb not in OUTCOME[state]:
        with pytest.raises(InvalidStateTransition, match=f"^[a-z]+ is (already )?{state}\\b"):
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
        (State.RUNNING, "shutdown", "close"),
        (State.PAUSED, "shutdown", "close"),
        (State.RUNNING, "reboot", "close"),
        (State.PAUSED, "reboot", "close"),
    ],
)
def test_a_machine_that_refuses_leaves_all_as_it_was(state: str, verb: str, refused: str) -> None:
    bench = Bench().bring_to(state)
    bench.machines[-1].refuse.add(refused)
    before = bench.vm.properties()
    for _ in range(2):
        with pytest.raises(HostError, match="errno 28"):
            VERBS[verb](bench.vm)
        assert bench.vm.properties() == before
        assert bench.changes == []
        assert len(bench.machines) == 1
    bench.machines[-1].refuse.clear()
    VERBS[verb](bench.vm)
    assert bench.vm.state == OUTCOME[state][verb][0]


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


@pytest.mark.parametrize("state", [State.RUNNING, State.PAUSED])
def test_a_reboot_that_cannot_work_is_not_begun(state: str) -> None:
    """The kernel is gone: the guest that runs need not go too."""
    bench = Bench().bring_to(state)
    bench.check_fails = True
    with pytest.raises(ConfigError, match="errno 2"):
        bench.vm.reboot()
    assert (bench.vm.state, bench.changes) == (state, [])
    assert not bench.machines[0].closed


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


@pytest.mark.parametrize("verb", ["boot", "pause", "resume", "reboot", "resize"])
@pytest.mark.parametrize("state", [State.RUNNING, State.PAUSED])
def test_while_held_only_the_way_down_is_open(state: str, verb: str) -> None:
    """And a guest that is paused goes on, which is the only way in which it can power off."""
    bench = Bench().bring_to(state)
    bench.vm.hold("the VM is being stopped")
    with pytest.raises(Busy, match="is refused because the VM is being stopped"):
        VERBS[verb](bench.vm)
    assert bench.vm.state == State.RUNNING
    bench.vm.power_button()
    bench.vm.shutdown()
    assert bench.vm.last_exit == LastExit.SHUTDOWN


def test_what_is_let_go_may_do_everything_again() -> None:
    bench = Bench().bring_to(State.RUNNING)
    bench.vm.hold("the VM is being rebooted")
    bench.vm.let_go()
    bench.vm.pause()
    bench.vm.let_go()
    assert bench.vm.state == State.PAUSED
    bench.event(EventKind.RESET)
    bench.vm.resume()
    assert bench.vm.state == State.RUNNING, "it was reset in place"


def test_a_guest_that_cannot_go_on_is_held_all_the_same() -> None:
    bench = Bench().bring_to(State.PAUSED)
    bench.machines[0].refuse.add("resume")
    with pytest.raises(HostError, match="errno 28"):
        bench.vm.hold("the VM is being stopped")
    assert bench.vm.state == State.PAUSED
    with pytest.raises(Busy):
        bench.vm.resume()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("state", TRANSITIONS)
def test_on_the_way_out_everything_is_refused(state: str, verb: str) -> None:
    bench = Bench().bring_to(state)
    before = bench.vm.properties()
    bench.vm.refuse_all("the VM's process is about to end: the guest powered off")
    bench.vm.refuse_all("another reason")
    with pytest.raises(Busy, match="refused because the VM's process is about to end: the guest powered off"):
        VERBS[verb](bench.vm)
    assert bench.vm.properties() == before
    assert bench.changes == []


def test_what_is_typed_reaches_the_machine_if_there_is_one() -> None:
    bench = Bench()
    assert bench.vm.console_input(b"x") == 0
    bench.bring_to(State.RUNNING)
    assert bench.vm.console_input(b"ls\n") == 3
    assert bench.machines[0].calls == ["start", "console_input"]


def test_close_from_every_state_and_twice() -> None:
    for state in TRANSITIONS:
        bench = Bench().bring_to(state)
        bench.vm.close()
        bench.vm.close()
        assert all(machine.calls.count("close") == 1 for machine in bench.machines)


@pytest.mark.parametrize("way", ["pause and resume", "reboot", "reset", "shutdown and boot"])
def test_a_console_that_refused_bytes_says_once_that_the_guest_goes_on(way: str) -> None:
    bench = Bench().bring_to(State.RUNNING)
    bench.machines[0].input_room = 2
    told: list[str] = []
    bench.vm.on_input_room = told.append
    assert bench.vm.console_input(b"ls\n", "hvc") == 2
    assert bench.vm.console_input(b"x", "serial") == 1
    if way == "pause and resume":
        bench.vm.pause()
        bench.vm.resume()
    elif way == "reboot":
        bench.vm.reboot()
    elif way == "reset":
        bench.event(EventKind.RESET)
    else:
        bench.vm.shutdown()
        assert bench.vm.console_input(b"more", "com") == 0
        assert told == []
        bench.vm.boot()
        assert sorted(told) == ["com", "hvc"]
        return
    assert told == ["hvc"]
    bench.vm.pause()
    bench.vm.resume()
    assert told == ["hvc"]


def test_who_hears_that_there_is_room_may_be_refused_again() -> None:
    bench = Bench().bring_to(State.RUNNING)
    bench.machines[0].input_room = 0
    told: list[str] = []

    def try_again(console: str) -> None:
        told.append(console)
        bench.vm.console_input(b"x", console)

    bench.vm.on_input_room = try_again
    bench.vm.console_input(b"x", "hvc")
    for times in (1, 2):
        bench.vm.pause()
        bench.vm.resume()
        assert told == ["hvc"] * times


def test_what_was_taken_at_the_second_try_is_not_offered() -> None:
    bench = Bench().bring_to(State.RUNNING)
    told: list[str] = []
    bench.vm.on_input_room = told.append
    bench.machines[0].input_room = 0
    bench.vm.console_input(b"x", "hvc")
    bench.machines[0].input_room = 1
    bench.vm.console_input(b"x", "hvc")
    bench.vm.pause()
    bench.vm.resume()
    assert told == []


def test_input_of_somebody_who_is_gone_is_forgotten() -> None:
    bench = Bench().bring_to(State.RUNNING)
    bench.machines[0].input_room = 0
    told: list[str] = []
    bench.vm.on_input_room = told.append
    bench.vm.console_input(b"rm", "hvc")
    bench.vm.forget_input("hvc")
    assert bench.machines[0].calls[-1] == "forget_input hvc"
    bench.vm.pause()
    bench.vm.resume()
    assert told == []
    bench.vm.shutdown()
    bench.vm.forget_input("hvc")


def test_devices_that_are_others_now_are_told_with_what_changed_them() -> None:
    bench = Bench().bring_to(State.RUNNING)
    before = list(bench.devices)
    assert bench.vm.properties()["Devices"] == before
    bench.devices.append(("disk", "root", {"path": "/root.raw", "size": 512}))
    assert bench.vm.properties()["Devices"] == before, "what has been told holds until something else is"
    bench.vm.reconfigure_device(BalloonDevice(0))
    assert bench.changes == [{"Devices": bench.devices}]
    bench.vm.pause()
    assert bench.changes[1:] == [{"State": State.PAUSED}]


def test_counters_are_those_of_the_guest_that_runs() -> None:
    bench = Bench()
    assert bench.vm.stats() == {}
    bench.vm.boot()
    bench.machines[0].counters = {"vcpu.exits": 7.0}
    assert bench.vm.stats() == {"vcpu.exits": 7.0}
    assert "Stats" not in bench.vm.properties(), "a change of it is no news"
    bench.vm.reboot()
    assert bench.vm.stats() == {}
