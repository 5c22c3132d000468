"""Redundancy comes back: who gets what from whom, and what is said when it cannot."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from orchestrator.core import actions, events, parts, placement, roster
from orchestrator.core.ids import NodeId, Step, TrainerId, node_of
from orchestrator.core.state import CheckpointState, GenerationKind
from tests.unit.orchestrator.core.told import (
    NODE_1,
    NODE_2,
    NODE_3,
    NODE_5,
    TRAINER_3,
    TRAINER_5,
    MakeWorld,
    Told,
)


def thin(world: Told) -> tuple[int, ...]:
    """Experts without full replicas."""
    nodes = roster.nodes_by_rank(world.generation)
    return placement.missing(world.generation.placement, nodes, world.spec.cluster.replicas)


def test_spare_copies_what_the_dead_node_held(make_training: MakeWorld) -> None:
    """Everything dense from the lowest rank, each expert from a living replica, the donors taking turns."""
    world = make_training(experts=16)
    world.kill_node(NODE_2)
    world.run(1.0)
    (order,) = world.performed(actions.Acquire)
    assert order.trainer == TRAINER_5
    parts = [part for donor in order.donors for part in donor.parts]
    assert parts[0] == "dense"
    assert len(parts) == len(set(parts)) == 9
    experts = Counter(
        {donor.trainer: len([p for p in donor.parts if p != "dense"]) for donor in order.donors}
    )
    assert experts == {"node-1/0": 4, "node-3/0": 4}
    assert all(donor.peer_address == f"{donor.trainer}:peer" for donor in order.donors)


def test_newcomer_is_seated_at_a_boundary_once_it_has_caught_up(make_training: MakeWorld) -> None:
    """Training goes on while it copies; its rank is the last."""
    world = make_training()
    world.kill_node(NODE_2)
    world.run(1.0)
    assert TRAINER_5 not in world.members
    world.run(2.0)
    assert world.generation.kind is GenerationKind.PLANNED
    assert world.members == ["node-1/0", "node-3/0", "node-4/0", "node-5/0"]
    assert thin(world) == ()


def test_survivors_copy_from_each_other_without_a_spare(make_training: MakeWorld) -> None:
    """Only what is missing, and as evenly as it goes."""
    world = make_training(spares=0, experts=16)
    world.kill_node(NODE_2)
    world.run(4.0)
    assert thin(world) == ()
    held = Counter(rank for ranks in world.generation.placement for rank in ranks)
    assert max(held.values()) - min(held.values()) <= 1
    assert all(
        "dense" not in donor.parts for order in world.performed(actions.Acquire) for donor in order.donors
    )


def test_seat_is_left_to_a_trainer_that_is_starting(make_training: MakeWorld) -> None:
    """A crash in place is back in seconds: the survivors need not copy for it."""
    world = make_training(spares=0)
    world.kill_trainer(TRAINER_3)
    world.run(5.0)
    assert [order.trainer for order in world.performed(actions.Acquire)] == [TRAINER_3]


def test_trainer_that_does_not_come_is_not_waited_for_for_ever(make_training: MakeWorld) -> None:
    """An expert on one replica is a risk: after a while the survivors copy."""
    world = make_training(spares=0)
    world.kill_trainer(TRAINER_3)
    world.agents.alive[NODE_3].trainers[TRAINER_3].ready_at = 1000.0
    world.run(14.0)
    assert not world.performed(actions.Acquire)
    world.run(4.0)
    assert thin(world) == ()


def test_degraded_incident_stays_open_and_says_why(make_training: MakeWorld) -> None:
    """L5: until capacity comes the job says that it has too little."""
    world = make_training(nodes=2, spares=0)
    world.kill_node(NODE_2)
    world.run(4.0)
    (incident,) = world.incidents
    assert incident.degraded and not incident.closed
    assert "cannot have 2 replicas on 1 node" in incident.reasons[-1]
    world.agents.start(NODE_2)
    world.run(6.0)
    assert world.incidents[0].closed and not world.incidents[0].degraded


def test_capacity_that_comes_back_is_used(make_training: MakeWorld) -> None:
    """Full redundancy on fewer seats closes the incident; the returning node still gets its seat and its share."""
    world = make_training(spares=0, experts=12)
    world.kill_node(NODE_2)
    world.run(4.0)
    assert world.incidents[0].closed and len(world.members) == 3
    world.agents.start(NODE_2)
    world.run(6.0)
    assert len(world.members) == 4
    held = Counter(rank for ranks in world.generation.placement for rank in ranks)
    assert set(held.values()) == {6}


def test_second_spare_is_not_seated_where_no_seat_is_empty(make_training: MakeWorld) -> None:
    """Seats are counted, not nodes."""
    world = make_training(spares=2)
    world.kill_node(NODE_2)
    world.run(6.0)
    assert len(world.members) == 4


def test_cordoned_spare_gets_no_seat(make_training: MakeWorld) -> None:
    """A human said so."""
    world = make_training()
    world.say(events.CordonRequested, node=NODE_5, by="ada")
    world.kill_node(NODE_2)
    world.run(4.0)
    assert TRAINER_5 not in world.members
    assert thin(world) == ()


def test_spare_that_dies_while_copying_is_replaced_by_the_survivors(make_training: MakeWorld) -> None:
    """Level-triggered: the next plan looks at what is there."""
    world = make_training()
    world.kill_node(NODE_2)
    world.run(1.0)
    world.kill_trainer(TRAINER_5, again=False)
    world.run(4.0)
    assert world.heard("a trainer that was copying state is gone")
    assert thin(world) == () and len(world.members) == 3


def test_trainer_that_fails_to_copy_is_left_alone_for_a_while(make_training: MakeWorld) -> None:
    """Three times; then the survivors copy, and later it has another chance."""
    world = make_training()
    world.agents.fail_acquisitions.add(TRAINER_5)
    world.kill_node(NODE_2)
    world.run(8.0)
    assert [order.trainer for order in world.performed(actions.Acquire)].count(TRAINER_5) == 3
    assert thin(world) == () and len(world.members) == 3
    world.agents.fail_acquisitions.clear()
    world.run(60.0)
    assert TRAINER_5 in world.members


def test_copy_that_never_ends_is_given_up(make_training: MakeWorld) -> None:
    """L9: after `acquire_seconds` it counts as failed."""
    world = make_training(nodes=3)
    assert world.machine is not None
    world.machine.policy = replace(world.machine.policy, acquire_seconds=5.0)
    world.kill_node(NODE_2)
    world.run(1.0)
    world.agents.alive[NodeId("node-4")].trainers[TrainerId("node-4/0")].acquired_at = 1e9
    world.run(6.0)
    assert world.heard("node-4/0 did not catch up within 5 s")


def test_stale_reports_of_copies_are_ignored(make_training: MakeWorld) -> None:
    """An acquisition that is over means nothing, from whichever process."""
    world = make_training()
    world.say(
        events.PartsAcquired,
        trainer=TRAINER_5,
        incarnation="node-5#5",
        start=1,
        acquisition="acq-1-1",
        version=Step(3),
    )
    assert world.last.empty
    world.say(
        events.AcquisitionFailed,
        trainer=TRAINER_5,
        incarnation="node-5#5",
        start=1,
        acquisition="acq-1-1",
        reason="late",
    )
    assert world.last.empty


def test_planned_generation_waits_for_a_checkpoint_to_find_its_boundary(make_training: MakeWorld) -> None:
    """Both want a boundary that all agree on; one after the other."""
    world = make_training()
    world.kill_node(NODE_2)
    world.run(1.5)
    world.say(events.CheckpointRequested, by="ada")
    world.run(0.25)
    assert not world.planned()
    world.run(4.0)
    assert {each.state for each in world.state.checkpoints.values()} == {CheckpointState.SEALED}
    assert TRAINER_5 in world.members


def test_nothing_is_repaired_while_the_job_ends(make_training: MakeWorld) -> None:
    """Nobody would reach another boundary."""
    world = make_training()
    world.training.paused = True
    world.say(events.StopRequested, by="ada")
    world.kill_trainer(TRAINER_3)
    world.run(2.0)
    assert not world.performed(actions.Acquire)


def test_donors_of_a_drain_include_the_node_that_leaves(make_training: MakeWorld) -> None:
    """It is alive, and where it holds the only replica there is no other donor."""
    world = make_training(nodes=3, spares=1, replicas=1, experts=6)
    world.say(events.DrainRequested, node=NODE_1, by="ada")
    (order,) = world.performed(actions.Acquire)
    assert order.trainer == "node-4/0"
    assert {part for donor in order.donors if donor.trainer == "node-1/0" for part in donor.parts} == {
        "dense",
        "expert-00000",
        "expert-00003",
    }
    world.run(4.0)
    assert "node-1/0" not in world.members


def test_expert_parts_are_named_for_the_wire() -> None:
    """The name is a contract with the workers."""
    assert parts.expert_part(7) == "expert-00007"


def test_who_could_not_copy_changes_places_once_forgiven(make_training: MakeWorld) -> None:
    """A stage on too few nodes is not taken for as good as it gets while that is only so for now."""
    world = make_training(nodes=3, devices=2, stages=2, replicas=3, spares=1)
    others = {TrainerId("node-1/1"), TrainerId("node-2/1")}
    world.agents.fail_acquisitions |= others
    for gone in ("node-1/0", "node-2/0"):
        world.kill_trainer(TrainerId(gone), again=False)
    world.run(30.0)

    def nodes_of_the_first_stage() -> set[str]:
        return {node_of(each.trainer) for each in world.generation.members if each.stage == 0}

    assert nodes_of_the_first_stage() == {"node-3", "node-4"}
    world.agents.fail_acquisitions.clear()
    world.run(80.0)
    assert len(nodes_of_the_first_stage()) == 3
