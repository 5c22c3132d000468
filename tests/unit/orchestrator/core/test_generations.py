"""Generations: stored before they are sent, told to everybody, in force once entered."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from orchestrator.core import actions, events, generations
from orchestrator.core.decision import Decision
from orchestrator.core.generations import ranked
from orchestrator.core.ids import CauseId, GenerationNumber, Rank, Step, TrainerId, node_of
from orchestrator.core.measurements import StepRecord
from orchestrator.core.state import Generation, GenerationKind, Member
from tests.unit.orchestrator.core.told import (
    NODE_2,
    NODE_5,
    TRAINER_1,
    TRAINER_5,
    MakeWorld,
    Told,
)


def pending(make_training: MakeWorld) -> Told:
    """A planned generation that has been sent and not been entered."""
    world = make_training()
    world.kill_node(NODE_2)
    world.run(1.5)
    world.training.paused = True
    world.run(0.25)
    assert world.planned()
    return world


def test_generation_is_stored_in_the_outcome_that_sends_it(make_training: MakeWorld) -> None:
    """Nobody can know one that a restarted controller does not."""
    world = make_training()
    world.kill_node(NODE_2)
    world.run(4.0)
    for outcome in world.outcomes:
        stored = {change.number for change in outcome.changes if isinstance(change, Generation)}
        sent = {action.assignment.number for action in outcome.actions if isinstance(action, actions.Assign)}
        assert sent <= stored | {1} or any(isinstance(a, actions.Welcome) for a in outcome.actions)


def test_assignment_goes_to_every_connected_node(make_training: MakeWorld) -> None:
    """Spares must know the number too: it is their fence."""
    world = make_training()
    world.actions.clear()
    world.kill_trainer(TRAINER_1)
    told = {action.node for action in world.performed(actions.Assign)}
    assert told == {"node-1", "node-2", "node-3", "node-4", "node-5"}


def test_deal_covers_the_step_whoever_is_left(make_training: MakeWorld) -> None:
    """Six microbatches over four, then over three."""
    world = make_training()
    before = world.generation
    assert before.deal == ((0, 4), (1, 5), (2,), (3,))
    world.kill_trainer(TRAINER_1)
    assert world.generation.deal == ((0, 3), (1, 4), (2, 5))


def test_planned_generation_is_in_force_when_a_member_joins_it(make_training: MakeWorld) -> None:
    """Until then the old one is, and counts."""
    world = pending(make_training)
    assert world.generation.number == 2
    assert world.disk.generations[GenerationNumber(3)].began_at is None
    world.training.paused = False
    world.run(0.5)
    assert world.generation.number == 3 and not world.planned()
    assert world.disk.generations[GenerationNumber(3)].began_at == world.generation.began_at is not None


def test_any_report_from_a_planned_generation_says_that_it_was_entered(make_training: MakeWorld) -> None:
    """The report of the join may be the one that was lost."""
    world = pending(make_training)
    world.say(
        events.StepCommitted,
        trainer=TRAINER_1,
        incarnation="node-1#1",
        start=1,
        record=StepRecord(
            step=Step(7),
            generation=GenerationNumber(3),
            loss=1.0,
            tokens=1,
            time=world.at,
            step_seconds=0.5,
            sample_ids=(),
            expert_load=(1, 1, 1, 1),
        ),
    )
    assert world.generation.number == 3
    assert len(world.state.joined) == 4


def test_spare_that_reports_a_planned_number_does_not_bring_it_into_force(make_training: MakeWorld) -> None:
    """Only who has a seat in it has entered it."""
    world = pending(make_training)
    world.say(
        events.CommunicationFailed,
        trainer=TrainerId("node-9/0"),
        incarnation="x",
        start=1,
        generation=GenerationNumber(3),
        step=Step(0),
        detail="",
    )
    assert world.generation.number == 2


def test_join_of_a_process_without_the_seat_is_ignored(make_training: MakeWorld) -> None:
    """An older process of the same trainer, or an older generation."""
    world = make_training()
    joined = {
        "trainer": TRAINER_1,
        "incarnation": "node-1#1",
        "committed": Step(99),
        "completed_held": False,
        "redoes": False,
        "copied_parts": 0,
    }
    world.say(events.GenerationJoined, start=2, generation=GenerationNumber(1), **joined)
    world.say(events.GenerationJoined, start=1, generation=GenerationNumber(0), **joined)
    assert world.state.committed == 4


def test_number_is_above_everything_ever_heard_of(make_training: MakeWorld) -> None:
    """An agent that knows a higher number than we do (a database from a backup) still gets a new one."""
    world = make_training()
    agent = world.agents.alive[NODE_5]
    agent.generation = GenerationNumber(40)
    world.cut(NODE_5)
    world.heal(NODE_5)
    world.run(0.5)
    world.kill_trainer(TRAINER_1)
    assert world.generation.number == 41


def test_planned_generation_that_nobody_enters_takes_over_at_once(make_training: MakeWorld) -> None:
    """L9: a boundary that does not come is not waited for for ever."""
    world = make_training()
    assert world.machine is not None
    world.machine.policy = replace(world.machine.policy, planned_seconds=5.0)
    world.kill_node(NODE_2)
    world.run(1.5)
    world.training.paused = True
    world.run(6.0)
    assert world.generation.kind is GenerationKind.IMMEDIATE
    assert world.generation.number == 4
    assert TRAINER_5 in world.members
    assert world.heard("its members are seated at once")


def test_ranks_are_dense_in_the_order_given(make_training: MakeWorld) -> None:
    """Whoever is left closes up."""
    members = make_training().generation.members
    assert [member.rank for member in ranked((members[3], members[1]))] == [0, 1]


def test_a_member_with_another_rank_is_the_same_in_everything_else(make_training: MakeWorld) -> None:
    """It is written out field by field, since thousands are ranked anew in one decision: a new field must be in it."""
    (first, *_) = make_training().generation.members
    values: dict[str, Any] = {
        each.name: f"{each.name}'s" for each in fields(Member)
    }  # Any: of each field's type
    odd = replace(first, **values)
    assert ranked((odd,)) == (replace(odd, rank=Rank(0)),)


def test_only_the_join_that_completes_a_generation_is_looked_into(make_training: MakeWorld) -> None:
    """With thousands of members, reports of joins still come when a committed step has told that all have joined."""
    world = make_training()
    world.training.paused = True
    world.kill_trainer(TRAINER_1)
    assert world.machine is not None
    *others, last = (each for each in world.generation.members if each.trainer not in world.state.joined)
    stirred = []
    for member in (*others, last, last):
        event = events.GenerationJoined(
            at=world.at,
            cause_id=CauseId("c"),
            trainer=member.trainer,
            incarnation=world.state.nodes[node_of(member.trainer)].incarnation,
            start=member.start,
            generation=world.generation.number,
            committed=Step(0),
            completed_held=False,
            redoes=False,
            copied_parts=0,
        )
        decision = Decision(world.state, world.machine.policy, world.at)
        generations.joined(decision, event)
        stirred.append(decision.stirred)
    assert stirred == [False] * len(others) + [True, False]
