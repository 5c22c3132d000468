"""The table of states: what it allows, and that the rest is a fault of the program."""

from __future__ import annotations

import itertools

import pytest

from worker.agent.lifecycle import TRANSITIONS, State, Trigger, follow


@pytest.mark.parametrize("state, trigger", list(itertools.product(State, Trigger)))
def test_what_is_not_in_the_table_is_refused(state: State, trigger: Trigger) -> None:
    """No pair is forgotten, none is allowed by accident."""
    if (state, trigger) in TRANSITIONS:
        assert follow(state, trigger) is TRANSITIONS[state, trigger]
    else:
        with pytest.raises(AssertionError, match=state.value):
            follow(state, trigger)


def test_every_state_can_be_reached_and_every_living_one_can_end() -> None:
    """No state is a trap but the last."""
    reached = {State.JOINING} | set(TRANSITIONS.values())
    assert reached == set(State)
    assert {state for state, trigger in TRANSITIONS if trigger is Trigger.ENDED} == set(State) - {
        State.ENDING
    }
    assert not [state for state, _ in TRANSITIONS if state is State.ENDING]
