"""After a restore the same steps must give nearly the same losses; a state that does not is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core import events
from orchestrator.core.aftermath import tolerance
from orchestrator.core.ids import Step
from orchestrator.core.measurements import StepRecord
from orchestrator.core.policy import Policy
from orchestrator.core.spec import TimeoutSpec
from orchestrator.core.state import CheckpointState, GenerationKind, IncidentKind, Memory
from tests.unit.orchestrator.core.told import NODE_1, NODE_2, TRAINER_3, MakeWorld, Told

POLICY = Policy.from_timeouts(TimeoutSpec())


@pytest.fixture
def restored(make_training: MakeWorld) -> Told:
    """Both replicas of an expert died after step 16; generation 2 goes back to step 11, there is one of step 5 too."""
    world = make_training()
    for _ in range(2):
        world.say(events.CheckpointDue)
        world.run(3.0)
    world.kill_node(NODE_1)
    world.kill_node(NODE_2)
    while world.generation.kind is not GenerationKind.RESTORE:
        world.run(0.25)
    assert world.generation.restore_step == 11
    return world


def commit(world: Told, step: int, loss: float) -> None:
    """A report of a member, besides those of the world, whose losses are all 1."""
    record = StepRecord(
        step=Step(step),
        generation=world.generation.number,
        loss=loss,
        tokens=100,
        time=world.at,
        step_seconds=0.5,
        sample_ids=(),
        expert_load=(1, 1, 1, 1),
    )
    world.say(events.StepCommitted, trainer=TRAINER_3, incarnation="node-3#3", start=1, record=record)


def test_a_loss_far_above_the_one_before_refuses_the_checkpoint(restored: Told) -> None:
    """The one before it is used, and the words say with which numbers."""
    commit(restored, 12, 1.5)
    assert restored.generation.restore_step == 5
    assert restored.generation.kind is GenerationKind.RESTORE
    incident = restored.incidents[-1]
    assert incident.kind is IncidentKind.STATE_REFUSED
    assert "refused the state 1 step after step-00000011.g0001 was restored" in incident.cause
    assert "step 12 gave a loss of 1.5, 1 before with the same samples" in incident.cause
    refused = restored.state.checkpoints["ckpt-0002"]
    assert refused.state is CheckpointState.DAMAGED and refused.reason.startswith("refused: step 12")


def test_it_ends_with_the_seed_state(restored: Told) -> None:
    """Each refusal leaves one checkpoint less; the seed state is not refused."""
    commit(restored, 12, 1.5)
    commit(restored, 6, 1.5)
    assert restored.generation.restore_name == ""
    commit(restored, 1, 1.5)
    assert restored.generation.restore_name == ""
    assert restored.ended is None
    assert len(restored.incidents) == 4


@pytest.mark.parametrize("step, loss", [(12, 1.04), (12, 0.2), (16, 1.0), (17, 9.0)])
def test_a_loss_that_is_as_before_or_below_or_new_refuses_nothing(
    restored: Told, step: int, loss: float
) -> None:
    """Step 17 has no loss to compare with."""
    commit(restored, step, loss)
    assert restored.generation.restore_step == 11
    assert all(each.state is not CheckpointState.DAMAGED for each in restored.state.checkpoints.values())


def test_later_steps_are_not_the_restored_states_fault(make_training: MakeWorld) -> None:
    """A loss may rise for other reasons, and nothing was restored here."""
    world = make_training()
    commit(world, world.state.committed, 50.0)
    assert world.generation.number == 1


def test_not_finite_right_after_a_restore_refuses_the_checkpoint(restored: Told) -> None:
    restored.say(
        events.StateRefused,
        trainer=TRAINER_3,
        incarnation="node-3#3",
        start=1,
        generation=restored.generation.number,
        step=Step(13),
        reason="loss or gradients of step 14 are not finite",
        not_finite=True,
    )
    assert restored.generation.restore_step == 5
    assert restored.state.checkpoints["ckpt-0002"].state is CheckpointState.DAMAGED


@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=40))
def test_the_tolerance_follows_how_much_losses_change(losses: list[float]) -> None:
    """Never below a share of the loss; one outlier among many does not raise it."""
    memory = Memory(losses={Step(i + 1): loss for i, loss in enumerate(losses)})
    allowed = tolerance(memory, Step(len(losses)), POLICY)
    assert allowed >= POLICY.loss_tolerance * losses[-1]
    quiet = Memory(losses={Step(i + 1): 1.0 for i in range(30)} | {Step(15): 90.0})
    assert tolerance(quiet, Step(30), POLICY) == POLICY.loss_tolerance


def test_what_is_remembered_is_bounded(make_training: MakeWorld) -> None:
    world = make_training()
    assert world.state.job is not None
    world.state.job = replace(world.state.job, spec=replace(world.state.job.spec, steps=100_000))
    for step in range(1, POLICY.remembered_losses + 200):
        commit(world, step, 1.0)
    assert len(world.state.memory.losses) == POLICY.remembered_losses
    assert min(world.state.memory.losses) == 200
