"""State that is refused: the next tier is used, and what would only repeat itself ends the job."""

from __future__ import annotations

import pytest

from orchestrator.core import events
from orchestrator.core.ids import GenerationNumber, Step
from orchestrator.core.state import CheckpointState, GenerationKind, IncidentKind
from tests.unit.orchestrator.core.told import NODE_1, NODE_2, TRAINER_2, TRAINER_3, MakeWorld, Told


def refuse(world: Told, step: int, **changes: object) -> None:
    fields: dict[str, object] = {
        "trainer": TRAINER_2,
        "incarnation": "node-2#2",
        "start": 1,
        "generation": world.generation.number,
        "step": Step(step),
        "reason": "the loss is nan",
        "not_finite": True,
    }
    world.say(events.StateRefused, **(fields | changes))


@pytest.fixture
def saved(make_training: MakeWorld) -> Told:
    """A job with two sealed checkpoints, of steps 5 and 11."""
    world = make_training()
    for _ in range(2):
        world.say(events.CheckpointDue)
        world.run(3.0)
    return world


def test_damaged_checkpoint_gives_way_to_the_one_before(saved: Told) -> None:
    """L7: refused by name, said, and never chosen again."""
    saved.damage("step-00000011.g0001")
    saved.stop_node(NODE_1)
    saved.stop_node(NODE_2)
    saved.run(5.0)
    assert saved.generation.restore_name == "step-00000005.g0001"
    damaged = saved.state.checkpoints["ckpt-0002"]
    assert damaged.state is CheckpointState.DAMAGED and "hash does not match" in damaged.reason
    assert saved.incidents[-1].kind is IncidentKind.CHECKPOINT_DAMAGED
    assert saved.incidents[-1].steps_lost == 6


def test_all_checkpoints_damaged_leaves_the_seed_state(saved: Told) -> None:
    """It can always be made."""
    saved.damage("step-00000011.g0001")
    saved.damage("step-00000005.g0001")
    saved.stop_node(NODE_1)
    saved.stop_node(NODE_2)
    saved.run(6.0)
    assert saved.generation.restore_name == "" and saved.generation.restore_step == 0
    assert saved.state.committed > 0


def test_damage_seen_by_several_members_is_one_incident(saved: Told) -> None:
    """The second report is of a generation that is over."""
    saved.damage("step-00000011.g0001")
    saved.stop_node(NODE_1)
    saved.stop_node(NODE_2)
    saved.run(5.0)
    kinds = [incident.kind for incident in saved.incidents]
    assert kinds.count(IncidentKind.CHECKPOINT_DAMAGED) == 1


def test_checkpoint_of_another_job_ends_this_one(saved: Told) -> None:
    """Going further back would not make it ours."""
    saved.stop_node(NODE_1)
    saved.stop_node(NODE_2)
    saved.run(3.0)
    saved.say(
        events.RestoreFailed,
        trainer=TRAINER_3,
        incarnation="node-3#3",
        start=1,
        generation=saved.generation.number,
        name="step-00000011.g0001",
        shard="model.width",
        reason="the checkpoint has 64, the job 128",
        damaged=False,
    )
    assert saved.ended is not None
    assert "does not belong to this job: the checkpoint has 64" in saved.ended.reason


def test_refused_state_goes_back_to_the_checkpoint(saved: Told) -> None:
    """All of them, with the same members."""
    refuse(saved, 16)
    assert saved.generation.kind is GenerationKind.RESTORE
    assert len(saved.members) == 4
    assert saved.incidents[0].kind is IncidentKind.STATE_REFUSED


def test_same_refusal_at_the_same_step_ends_the_job(saved: Told) -> None:
    """It would come a third time."""
    refuse(saved, 16)
    saved.run(2.0)
    refuse(saved, 16)
    assert saved.ended is not None and "2. time at this step" in saved.ended.reason


def test_refusal_at_another_step_is_another_chance(saved: Told) -> None:
    """A cosmic ray does not strike twice at one step."""
    refuse(saved, 16)
    saved.run(2.0)
    refuse(saved, 17)
    assert saved.ended is None


@pytest.mark.parametrize("changes", [{"generation": GenerationNumber(0)}, {"start": 3}])
def test_stale_refusal_is_ignored(saved: Told, changes: dict[str, object]) -> None:
    """Of an older generation or process."""
    refuse(saved, 16, **changes)
    assert saved.last.empty
