"""The laws of the state: each is found broken when it is broken, and says so in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from orchestrator.core import events
from orchestrator.core.ids import GenerationNumber, Rank, Step, TrainerId
from orchestrator.core.invariants import InvariantViolation, check, check_growth
from orchestrator.core.state import (
    Acquisition,
    CheckpointState,
    ClusterState,
    Generation,
    GenerationKind,
    NodeState,
)
from tests.unit.orchestrator.core.told import NODE_1, NODE_5, TRAINER_1, TRAINER_2, MakeWorld

Break = Callable[[ClusterState], None]


def change_generation(**changes: object) -> Break:
    def do(state: ClusterState) -> None:
        assert state.generation is not None
        state.generation = replace(state.generation, **changes)  # type: ignore[arg-type]

    return do


def change_node(state_of_node: NodeState) -> Break:
    def do(state: ClusterState) -> None:
        state.nodes[NODE_1] = replace(state.nodes[NODE_1], state=state_of_node)

    return do


def plan(**changes: object) -> Break:
    def do(state: ClusterState) -> None:
        assert state.generation is not None
        fields: dict[str, object] = {"kind": GenerationKind.PLANNED, "began_at": None}
        state.planned = replace(state.generation, **(fields | changes))  # type: ignore[arg-type]

    return do


def change_incident(**changes: object) -> Break:
    def do(state: ClusterState) -> None:
        for key, incident in state.incidents.items():
            state.incidents[key] = replace(incident, **changes)  # type: ignore[arg-type]

    return do


def twice(state: ClusterState) -> None:
    """The same trainer on two ranks."""
    assert state.generation is not None
    first, second, *others = state.generation.members
    members = (first, replace(second, trainer=first.trainer), *others)
    state.generation = replace(state.generation, members=members)


def copy_for_nobody(state: ClusterState) -> None:
    state.acquisitions["acq"] = Acquisition(
        id="acq", trainer=TRAINER_1, start=1, parts=(), generation=GenerationNumber(9), begun_at=0.0
    )


def two_checkpoints(state: ClusterState) -> None:
    (checkpoint,) = state.checkpoints.values()
    state.checkpoints["other"] = replace(checkpoint, request="other", state=CheckpointState.WRITING)
    state.checkpoints[checkpoint.request] = replace(checkpoint, state=CheckpointState.REQUESTED)


def nameless(state: ClusterState) -> None:
    for key, checkpoint in state.checkpoints.items():
        state.checkpoints[key] = replace(checkpoint, name="")


def ahead(state: ClusterState) -> None:
    state.reported_through = Step(state.committed + 1)


def stranger(state: ClusterState) -> None:
    state.joined.add(TrainerId("node-9/0"))


def shift_ranks(state: ClusterState) -> None:
    assert state.generation is not None
    members = tuple(replace(each, rank=Rank(each.rank + 1)) for each in state.generation.members)
    state.generation = replace(state.generation, members=members)


@pytest.mark.parametrize(
    "break_it, words",
    [
        (change_generation(deal=((0, 1), (1, 2), (3,), (4, 5))), "deals microbatches"),
        (change_generation(placement=((Rank(0), Rank(1)),) * 3), "places 3 of 4 experts"),
        (change_generation(placement=((Rank(0), Rank(0)),) * 4), "two replicas of expert 0 on one node"),
        (change_generation(placement=((Rank(9),),) * 4), "on ranks"),
        (change_generation(placement=((),) * 4), "has nobody for expert 0"),
        (change_generation(began_at=None), "has not begun"),
        (shift_ranks, "has ranks"),
        (twice, "seats a trainer twice"),
        (stranger, "joined generation 2 without a seat"),
        (plan(), "is not above"),
        (plan(number=GenerationNumber(9), began_at=1.0), "or begun"),
        (change_node(NodeState.DEAD), "is dead and has a seat"),
        (change_node(NodeState.SPARE), "is spare and has a seat"),
        (copy_for_nobody, "copies are under way for no repair"),
        (two_checkpoints, "are taken at the same time"),
        (nameless, "is sealed without name"),
        (change_incident(decided_at=0.0), "phases out of order"),
        (change_incident(restored_at=0.0), "ended before it was detected"),
        (change_incident(reasons=()), "does not explain itself"),
        (ahead, "the ledger ends at step"),
    ],
)
def test_broken_law_is_found_and_named(make_training: MakeWorld, break_it: Break, words: str) -> None:
    """A check that finds nothing would make every test pass."""
    world = make_training(spares=0)
    world.say(events.CheckpointDue)
    world.run(2.0)
    world.kill_trainer(TRAINER_2)
    world.run(1.0)
    check(world.state)
    break_it(world.state)
    with pytest.raises(InvariantViolation, match=words):
        check(world.state)
    world.machine = None


def test_generation_numbers_never_go_back(make_training: MakeWorld) -> None:
    """The fencing token of everything."""
    world = make_training()
    newest = check_growth(GenerationNumber(0), world.state)
    assert newest == 1
    with pytest.raises(InvariantViolation, match="generation 1 came after generation 2"):
        check_growth(GenerationNumber(2), world.state)


def test_empty_state_is_sound() -> None:
    """Before the first submission."""
    check(ClusterState())


def test_waiting_for_nodes_is_sound(make_training: MakeWorld) -> None:
    """A generation without members owes nobody an expert."""
    world = make_training(nodes=1, spares=0, replicas=1)
    world.kill_node(NODE_1)
    world.run(3.25)
    generation: Generation = world.generation
    assert generation.members == ()
    check(world.state)


def test_dead_spare_is_sound(make_training: MakeWorld) -> None:
    """It has no seat."""
    world = make_training()
    world.kill_node(NODE_5)
    world.run(4.0)
    check(world.state)
