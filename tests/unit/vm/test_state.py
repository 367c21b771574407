"""The table of states, walked over its full product."""

from __future__ import annotations

import itertools

import pytest

from vmservice.errors import InvalidStateTransition
from vmservice.vm.state import TRANSITIONS, check_transition

STATES = ("created", "running", "paused", "shutdown")
# The contract, in its own words: created→running; running→paused, shutdown; paused→running, shutdown; shutdown→running.
ALLOWED = {
    ("created", "running"),
    ("running", "paused"),
    ("running", "shutdown"),
    ("paused", "running"),
    ("paused", "shutdown"),
    ("shutdown", "running"),
}


@pytest.mark.parametrize(("current", "wanted"), list(itertools.product(STATES, STATES)))
def test_every_move(current: str, wanted: str) -> None:
    if (current, wanted) in ALLOWED:
        check_transition("web", current, wanted)
        return
    with pytest.raises(InvalidStateTransition) as refused:
        check_transition("web", current, wanted)
    text = str(refused.value)
    if current == wanted:
        assert text == f"web is already {current}"
    else:
        assert text == f"web is {current}; it can become {' or '.join(TRANSITIONS[current])}, not {wanted}"


def test_every_state_has_its_row() -> None:
    assert set(TRANSITIONS) == set(STATES)
