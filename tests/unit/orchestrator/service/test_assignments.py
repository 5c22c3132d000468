"""Assignments told as differences: whatever the agent holds, it ends up with the generation that was decided."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.deal import deal
from orchestrator.core.ids import GenerationNumber, Rank, Step, TrainerId
from orchestrator.core.state import Generation, GenerationKind, Member
from orchestrator.service import wire
from orchestrator.service.assignments import PACKED_FROM_BYTES, RECENT_LIMIT, Assignments, difference
from protos import worker_pb2 as pb
from worker.agent.assignments import Assignments as Held
from worker.agent.assignments import UnknownBase

MICROBATCHES = 12


def member(number: int, start: int = 1) -> Member:
    return Member(
        trainer=TrainerId(f"node-{number}/0"),
        start=start,
        rank=Rank(0),
        store_address=f"10.0.0.{number}:29500",
        peer_address=f"10.0.0.{number}:29501",
    )


def generation(number: int, members: list[Member], placement: tuple[tuple[Rank, ...], ...]) -> Generation:
    return Generation(
        number=GenerationNumber(number),
        kind=GenerationKind.IMMEDIATE,
        members=tuple(replace(each, rank=Rank(rank)) for rank, each in enumerate(members)),
        placement=placement,
        deal=deal(MICROBATCHES, len(members)) if members else (),
        restore_name="",
        restore_step=Step(0),
        incident=None,
        reason=f"reason {number}",
        created_at=float(number),
    )


def whole(count: int, number: int = 1) -> Generation:
    placement = tuple((Rank(rank), Rank((rank + 1) % count)) for rank in range(count))
    return generation(number, [member(each) for each in range(count)], placement)


def told(assignments: Assignments, new: Generation, holds: tuple[int, ...] = ()) -> pb.Assign:
    """What travels."""
    numbers = tuple(GenerationNumber(each) for each in holds)
    return pb.ControllerMessage.FromString(assignments.message(new, Step(7), numbers)).assign


@st.composite
def changes(draw: st.DrawFn) -> tuple[Generation, Generation]:
    """A generation and any other one after it: members leave, return as new processes, come, change their order."""
    count = draw(st.integers(1, 9))
    base = whole(count)
    pool = [member(each) for each in range(count)] + [member(each, start=2) for each in range(12)]
    members = draw(st.lists(st.sampled_from(pool), unique_by=lambda each: each.trainer, max_size=10))
    ranks = st.lists(st.integers(0, max(0, len(members) - 1)), unique=True, max_size=3)
    experts = draw(st.sampled_from([count, count, count + 1]))
    placement = tuple(tuple(Rank(rank) for rank in draw(ranks)) if members else () for _ in range(experts))
    new = generation(2, members, placement)
    if draw(st.booleans()) and members:
        new = replace(new, deal=tuple((rank,) for rank in range(len(members))))
    return base, new


@given(changes())
def test_an_agent_that_holds_one_generation_ends_up_with_the_other(
    both: tuple[Generation, Generation],
) -> None:
    base, new = both
    assignments, held = Assignments(), Held()
    held.whole(told(assignments, base))
    message = told(assignments, new, holds=held.held)
    assert held.whole(message) == wire.generation(new)
    assert (message.number, message.reported_through) == (2, 7)


def test_the_loss_of_one_node_of_a_thousand_is_told_in_a_few_words() -> None:
    base = whole(1000)
    left = [each for each in base.members if each.rank != 500]
    remaining = {each.rank: Rank(rank) for rank, each in enumerate(left)}
    placement = tuple(
        tuple(remaining[rank] for rank in ranks if rank in remaining) for ranks in base.placement
    )
    new = generation(2, left, placement)
    assignments, held = Assignments(), Held()
    held.whole(told(assignments, base))
    message = told(assignments, new, holds=held.held)
    assert message.ByteSize() < 200 and message.difference.removed == [500]
    assert held.whole(message) == wire.generation(new)


def test_a_long_generation_is_packed_for_who_holds_nothing() -> None:
    message = told(Assignments(), whole(1000))
    size = wire.generation(whole(1000)).ByteSize()
    assert size > PACKED_FROM_BYTES and message.ByteSize() < size / 3
    assert Held().whole(message) == wire.generation(whole(1000))


def test_all_who_hold_the_same_are_told_the_same_bytes() -> None:
    assignments = Assignments()
    assignments.message(whole(4), Step(7), ())
    first = assignments.message(whole(4, number=2), Step(7), (GenerationNumber(1),))
    assert assignments.message(whole(4, number=2), Step(7), (GenerationNumber(1),)) is first


def test_who_holds_what_is_long_forgotten_is_told_the_whole() -> None:
    assignments = Assignments()
    for number in range(1, RECENT_LIMIT + 2):
        told(assignments, whole(4, number))
    newest = whole(4, RECENT_LIMIT + 1)
    assert told(assignments, newest, holds=(1,)).WhichOneof("tell") == "generation"
    assert told(assignments, newest, holds=(1, 3)).difference.base == 3


def test_a_number_that_comes_to_mean_another_membership_is_told_anew() -> None:
    """No controller of ours does that; were it ever to, nobody must be told the old one."""
    assignments = Assignments()
    told(assignments, whole(4, number=2))
    other = whole(5, number=2)
    assert Held().whole(told(assignments, other)) == wire.generation(other)


def test_a_difference_from_what_is_not_held_is_refused_and_all_is_asked_anew() -> None:
    held = Held()
    held.whole(pb.Assign(generation=wire.generation(whole(3))))
    less = difference(whole(3, number=5), whole(3, number=6))
    assert less is not None
    with pytest.raises(UnknownBase, match="generation 5"):
        held.whole(pb.Assign(difference=less))
    assert held.held == ()


def test_what_cannot_be_put_together_is_refused() -> None:
    held = Held()
    held.whole(pb.Assign(generation=wire.generation(whole(3))))
    with pytest.raises(ValueError, match="cannot be unpacked"):
        held.whole(pb.Assign(packed=b"not zlib"))
    with pytest.raises(ValueError, match="nothing of the placement"):
        held.whole(pb.Assign(difference=pb.GenerationDifference(base=1)))
    strange = pb.PlacementDifference(experts={77: pb.Ranks(ranks=[0])})
    with pytest.raises(ValueError, match="expert 77 of 3"):
        held.whole(pb.Assign(difference=pb.GenerationDifference(base=1, placement=strange)))
