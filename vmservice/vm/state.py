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
    SHUTDOWN = "shutdown"  # somebody called Shutdown
    PANIC = "panic"
    WATCHDOG = "watchdog"
    ERROR = "error"  # it could not go on; or it was forced to stop, as it did not stop when it was asked to


EXIT_TEXTS = {
    LastExit.NONE: "it has not stopped yet",
    LastExit.POWEROFF: "the guest powered off",
    LastExit.RESET: "the guest was reset",
    LastExit.SHUTDOWN: "Shutdown was called",
    LastExit.PANIC: "the guest panicked",
    LastExit.WATCHDOG: "the guest did not feed its watchdog",
    LastExit.ERROR: "an error stopped the guest",
}


TRANSITIONS: dict[str, tuple[str, ...]] = {
    State.CREATED: (State.RUNNING,),
    State.RUNNING: (State.PAUSED, State.SHUTDOWN),
    State.PAUSED: (State.RUNNING, State.SHUTDOWN),
    State.SHUTDOWN: (State.RUNNING,),
}


def check_transition(name: str, current: str, wanted: str) -> None:
    """Raise InvalidStateTransition, naming the VM and both states, unless the table allows the move."""
    if wanted == current:
        raise InvalidStateTransition(f"{name} is already {current}")
    if wanted not in TRANSITIONS[current]:
        allowed = " or ".join(TRANSITIONS[current])
        raise InvalidStateTransition(f"{name} is {current}; it can become {allowed}, not {wanted}")
