"""Members found their replicas different: who leaves, what is kept, when all go back, and when a node is cordoned."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.core import events
from orchestrator.core.actions import RestartTrainer
from orchestrator.core.ids import NodeId, Rank, Step, TrainerId
from orchestrator.core.state import GenerationKind, IncidentKind
from tests.unit.orchestrator.core.told import NODE_2, TRAINER_2, TRAINER_3, MakeWorld, Told


def differ(world: Told, *said: tuple[str, int, str], by: TrainerId = TRAINER_2, **changes: object) -> None:
    """A member reports: part, rank and value; `!` for what has changed within the step."""
    findings = tuple(
        events.ReplicaFinding(
            part=part, rank=Rank(rank), checksum=value.rstrip("!"), changed=value.endswith("!")
        )
        for part, rank, value in said
    )
    fields: dict[str, object] = {
        "trainer": by,
        "incarnation": f"{by.partition('/')[0]}#{by[5]}",
        "start": 1,
        "generation": world.generation.number,
        "step": Step(world.state.committed),
        "findings": findings,
    }
    world.say(events.ReplicasDiffered, **(fields | changes))


OUTVOTED = (("dense", 0, "a"), ("dense", 1, "b"), ("dense", 2, "a"), ("dense", 3, "a"))
TIED = (("expert-00001", 1, "a"), ("expert-00001", 2, "b"))


def redone(world: Told, step: int, rank: int | None, by: TrainerId = TRAINER_2) -> None:
    world.say(
        events.StepRedone,
        trainer=by,
        incarnation=f"{by.partition('/')[0]}#{by[5]}",
        start=1,
        generation=world.generation.number,
        step=Step(step),
        rank=None if rank is None else Rank(rank),
        seconds=0.25,
    )


def test_who_is_outvoted_leaves_and_nothing_is_rolled_back(make_training: MakeWorld) -> None:
    world = make_training()
    committed = world.state.committed
    differ(world, *OUTVOTED)
    assert world.members == ["node-1/0", "node-3/0", "node-4/0"]
    assert world.generation.kind is GenerationKind.IMMEDIATE
    assert world.state.committed == committed
    (incident,) = world.incidents
    assert (incident.kind, incident.node, incident.steps_lost) == (IncidentKind.CORRUPTION, NODE_2, 0)
    assert "its dense differs from that of 3 of 4 replicas (ranks 0, 2 and 3)" in incident.cause
    assert [action.trainer for action in world.performed(RestartTrainer)] == [TRAINER_2]
    world.run(6.0)
    assert world.incidents[0].closed
    assert len(world.members) == 4


def test_the_same_findings_from_another_member_are_no_second_incident(make_training: MakeWorld) -> None:
    world = make_training()
    number = world.generation.number
    differ(world, *OUTVOTED)
    differ(world, *OUTVOTED, by=TRAINER_3, generation=number)
    assert len(world.incidents) == 1


@pytest.mark.parametrize("changes", [{"generation": 0}, {"start": 3}])
def test_what_a_stale_process_says_is_ignored(make_training: MakeWorld, changes: dict[str, Any]) -> None:
    world = make_training()
    differ(world, *OUTVOTED, **changes)
    assert not world.incidents


def test_without_a_majority_all_go_back_to_what_was_compared(make_training: MakeWorld) -> None:
    """With the same members: nobody is blamed."""
    world = make_training()
    world.say(events.CheckpointDue)
    world.run(5.0)
    lost = world.state.committed - 5
    differ(world, *TIED)
    assert world.generation.kind is GenerationKind.RESTORE
    assert world.generation.restore_name == "step-00000005.g0001"
    assert len(world.members) == 4
    (incident,) = world.incidents
    assert incident.steps_lost == lost > 0
    assert "no majority says which is right: expert-00001: rank 1 says a and rank 2 says b" in incident.cause
    assert not world.performed(RestartTrainer)


def test_findings_that_name_nobody_take_all_back(make_training: MakeWorld) -> None:
    """A member that says only that something is wrong is believed, since it will not go on."""
    world = make_training()
    differ(world)
    assert world.generation.kind is GenerationKind.RESTORE


def test_it_is_said_which_steps_may_have_been_computed_with_the_wrong_replica(
    make_training: MakeWorld,
) -> None:
    world = make_training()
    differ(world, *OUTVOTED)
    assert world.heard("may have been wrong for up to 20 steps, since the last comparison")
    world = make_training()
    differ(world, ("dense", 1, "b!"), *(("dense", rank, "a") for rank in (0, 2, 3)))
    assert world.heard("no committed step was computed with it")
    assert not world.heard("may have been wrong")


def test_a_node_that_is_wrong_again_is_cordoned(make_training: MakeWorld) -> None:
    """Once is a particle, twice is a machine. Each time it is named, whatever kind of error it was."""
    world = make_training()
    redone(world, world.state.committed + 1, rank=1)
    assert not world.state.nodes[NODE_2].cordoned
    differ(world, *OUTVOTED)
    assert world.state.nodes[NODE_2].cordoned
    assert world.heard("node-2 was found wrong 2 times (inc-0001 and inc-0002): it is cordoned")
    world.run(6.0)
    assert not any(member.startswith("node-2/") for member in world.members)


def test_undecided_differences_blame_no_node(make_training: MakeWorld) -> None:
    """However often: one of the two is innocent."""
    world = make_training()
    for _ in range(3):
        differ(world, *TIED)
        world.run(3.0)
    assert not any(node.cordoned for node in world.state.nodes.values())


def test_a_step_that_was_computed_again_is_told_once(make_training: MakeWorld) -> None:
    """By all members; nothing is restored."""
    world = make_training()
    step = world.state.committed + 1
    redone(world, step, rank=2)
    redone(world, step, rank=2, by=TRAINER_3)
    (incident,) = world.incidents
    assert (incident.kind, incident.node) == (IncidentKind.NOT_FINITE, NodeId("node-3"))
    assert incident.closed
    assert (incident.steps_redone, incident.steps_lost) == (1, 0)
    assert incident.first_commit_at is not None
    assert incident.first_commit_at - incident.first_sign_at == pytest.approx(0.25)
    assert "the numbers of node-3/0 were not finite in step" in incident.cause
    assert world.generation.number == 1


def test_a_step_that_was_computed_again_is_not_told_again_to_the_next_controller(
    make_training: MakeWorld,
) -> None:
    """Agents repeat what they reported lately. Seen in a chaos run: a sound node was cordoned for it."""
    world = make_training()
    step = world.state.committed
    redone(world, step, 1)
    world.stop_controller()
    world.start_controller()
    world.run(0.5)
    redone(world, step, 1)
    assert [incident.kind for incident in world.incidents] == [IncidentKind.NOT_FINITE]
    assert not world.state.nodes[NODE_2].cordoned


def test_where_more_than_one_was_not_finite_nobody_is_named(make_training: MakeWorld) -> None:
    world = make_training()
    for _ in range(3):
        redone(world, world.state.committed + 1, rank=None)
        world.run(1.0)
    assert all("more than one member" in incident.cause for incident in world.incidents)
    assert not any(node.cordoned for node in world.state.nodes.values())
