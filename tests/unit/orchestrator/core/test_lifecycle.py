"""Transition tables: what is in them happens, what is not is refused and changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core import lifecycle
from orchestrator.core.decision import Decision
from orchestrator.core.lifecycle import (
    CHECKPOINT,
    JOB,
    NODE,
    CheckpointTrigger,
    IllegalTransition,
    JobTrigger,
    NodeTrigger,
)
from orchestrator.core.policy import Policy
from orchestrator.core.state import CheckpointState, JobState, NodeState
from tests.unit.orchestrator.core.told import NODE_1, MakeWorld

ENDS = (JobState.STOPPED, JobState.FINISHED, JobState.FAILED)


@pytest.mark.parametrize("state", JobState)
@pytest.mark.parametrize("trigger", JobTrigger)
def test_job_table_answers_or_refuses(state: JobState, trigger: JobTrigger) -> None:
    """No pair is left to chance."""
    if (state, trigger) in JOB:
        assert lifecycle.job_after(state, trigger) is JOB[state, trigger]
    else:
        with pytest.raises(IllegalTransition, match=trigger.value):
            lifecycle.job_after(state, trigger)


@pytest.mark.parametrize("state", NodeState)
@pytest.mark.parametrize("trigger", NodeTrigger)
def test_node_table_answers_or_refuses(state: NodeState, trigger: NodeTrigger) -> None:
    """No pair is left to chance."""
    if (state, trigger) in NODE:
        assert lifecycle.node_after(state, trigger) is NODE[state, trigger]
    else:
        with pytest.raises(IllegalTransition, match=trigger.value):
            lifecycle.node_after(state, trigger)


@pytest.mark.parametrize("state", CheckpointState)
@pytest.mark.parametrize("trigger", CheckpointTrigger)
def test_checkpoint_table_answers_or_refuses(state: CheckpointState, trigger: CheckpointTrigger) -> None:
    """No pair is left to chance."""
    if (state, trigger) in CHECKPOINT:
        assert lifecycle.checkpoint_after(state, trigger) is CHECKPOINT[state, trigger]
    else:
        with pytest.raises(IllegalTransition, match=trigger.value):
            lifecycle.checkpoint_after(state, trigger)


def test_job_that_has_ended_only_comes_back_by_resuming() -> None:
    """An end is an end for every message that is still under way."""
    for state in ENDS:
        assert {trigger for before, trigger in JOB if before is state} == {JobTrigger.RESUME}


def test_every_state_can_be_reached() -> None:
    """A state that nothing leads to is a word without a meaning."""
    assert set(JOB.values()) == set(JobState)
    assert set(NODE.values()) == set(NodeState)
    assert {*CHECKPOINT.values(), CheckpointState.REQUESTED} == set(CheckpointState)


def test_refused_transition_changes_nothing(make_training: MakeWorld) -> None:
    """The error comes before the state is touched."""
    world = make_training()
    decision = Decision(world.state, Policy.of(world.spec), world.at)
    before = replace(world.state.nodes[NODE_1])
    with pytest.raises(IllegalTransition):
        decision.move_node(NODE_1, NodeTrigger.REGISTER, "again")
    assert world.state.nodes[NODE_1] == before
    assert decision.outcome().empty
