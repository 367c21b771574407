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
        check_transition(current, wanted)
        return
    with pytest.raises(InvalidStateTransition) as refused:
        check_transition(current, wanted)
    text = str(refused.value)
    assert f"state {current} cannot go to state {wanted}" in text
    for move in TRANSITIONS[current]:
        assert move in text.split(";")[1]


def test_every_state_has_its_row() -> None:
    assert set(TRANSITIONS) == set(STATES)
