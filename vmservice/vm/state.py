"""The states of a VM and the moves between them: the seed's table, in full.

States and reasons are plain strings, as the bus has them; importing `enum` takes as long as building a small machine.
"""

from __future__ import annotations

from vmservice.errors import InvalidStateTransition


class State:
    """What the bus property `State` says."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    SHUTDOWN = "shutdown"


class LastExit:
    """Why the guest last stopped: what the bus property `LastExit` says."""

    NONE = ""
    POWEROFF = "poweroff"
    RESET = "reset"
    SHUTDOWN = "shutdown"
    PANIC = "panic"
    WATCHDOG = "watchdog"
    ERROR = "error"


TRANSITIONS: dict[str, tuple[str, ...]] = {
    State.CREATED: (State.RUNNING,),
    State.RUNNING: (State.PAUSED, State.SHUTDOWN),
    State.PAUSED: (State.RUNNING, State.SHUTDOWN),
    State.SHUTDOWN: (State.RUNNING,),
}


def check_transition(current: str, wanted: str) -> None:
    """Raise InvalidStateTransition, naming both states, unless the table allows the move."""
    if wanted not in TRANSITIONS[current]:
        allowed = " or ".join(TRANSITIONS[current])
        raise InvalidStateTransition(
            f"a VM in state {current} cannot go to state {wanted}; from {current} it can go to {allowed}"
        )
