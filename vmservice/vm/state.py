"""The states of a VM and the moves between them: the seed's table, in full."""

from __future__ import annotations

from enum import Enum

from vmservice.errors import InvalidStateTransition


class State(str, Enum):
    """What the bus property `State` says."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    SHUTDOWN = "shutdown"


class LastExit(str, Enum):
    """Why the guest last stopped: what the bus property `LastExit` says."""

    NONE = ""
    POWEROFF = "poweroff"
    RESET = "reset"
    SHUTDOWN = "shutdown"
    PANIC = "panic"
    ERROR = "error"


TRANSITIONS: dict[State, tuple[State, ...]] = {
    State.CREATED: (State.RUNNING,),
    State.RUNNING: (State.PAUSED, State.SHUTDOWN),
    State.PAUSED: (State.RUNNING, State.SHUTDOWN),
    State.SHUTDOWN: (State.RUNNING,),
}


def check_transition(current: State, wanted: State) -> None:
    """Raise InvalidStateTransition, naming both states, unless the table allows the move."""
    if wanted not in TRANSITIONS[current]:
        allowed = " or ".join(state.value for state in TRANSITIONS[current])
        raise InvalidStateTransition(
            f"a VM in state {current.value} cannot go to state {wanted.value}; from {current.value} it can go to {allowed}"
        )
