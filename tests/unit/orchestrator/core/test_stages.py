"""Stages: everybody has one, they are as even as they can be, and each has its own experts and all microbatches."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core import placement, stages
from orchestrator.core.deal import deal
from orchestrator.core.ids import Rank, TrainerId, node_of
from orchestrator.core.spec import ClusterSpec, ReplicaLayout
from orchestrator.core.state import Member


def crowd(nodes: int, devices: int = 1, *, first: int = 1) -> tuple[Member, ...]:
    """Trainers of some nodes, by rank."""
    names = [TrainerId(f"node-{first + node}/{device}") for node in range(nodes) for device in range(devices)]
    return tuple(
        Member(trainer=name, start=1, rank=Rank(rank), store_address="h:1", peer_address=f"h:{rank}")
        for rank, name in enumerate(names)
    )


@st.composite
def seatings(draw: st.DrawFn) -> tuple[tuple[Member, ...], int]:
    depth = draw(st.integers(1, 5))
    nodes, devices = draw(st.integers(1, 8)), draw(st.integers(1, 3))
    members = crowd(max(nodes, depth), devices)
    return stages.seated(members, depth), depth


@given(seatings())
def test_all_stages_are_filled_evenly(case: tuple[tuple[Member, ...], int]) -> None:
    members, depth = case
    widths = stages.widths(members, depth)
    assert max(widths) - min(widths) <= 1 and min(widths) >= 1


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_a_node_costs_each_stage_as_little_as_possible(depth: int, nodes: int, devices: int) -> None:
    """Trainers of a node go to different stages, as far as there are stages."""
    members = stages.seated(crowd(nodes * depth, devices), depth)
    for node in {node_of(each.trainer) for each in members}:
        here = Counter(each.stage for each in members if node_of(each.trainer) == node)
        assert max(here.values()) - min(here.get(stage, 0) for stage in range(depth)) <= 1


@given(seatings(), st.integers(1, 6), st.integers(1, 3), st.sampled_from(ReplicaLayout))
def test_experts_lie_in_their_stage(
    case: tuple[tuple[Member, ...], int], experts: int, replicas: int, layout: ReplicaLayout
) -> None:
    """Each with its replicas on distinct nodes, as many as asked for while its stage has that many nodes."""
    members, depth = case
    where = stages.fresh(members, depth, experts, ClusterSpec(replicas=replicas, replica_layout=layout))
    assert len(where) == depth * experts
    for expert, ranks in enumerate(where):
        stage = expert // experts
        assert all(members[rank].stage == stage for rank in ranks)
        there = {node_of(each.trainer) for each in members if each.stage == stage}
        on = {node_of(members[rank].trainer) for rank in ranks}
        assert len(on) == len(ranks) == min(replicas, len(there))
    assert stages.missing(where, members, depth, replicas) == ()


@given(seatings(), st.integers(1, 16))
def test_every_stage_is_dealt_all_microbatches(
    case: tuple[tuple[Member, ...], int], microbatches: int
) -> None:
    members, depth = case
    shares = stages.dealt(microbatches, members, depth)
    for stage in range(depth):
        mine = [share for member, share in zip(members, shares, strict=True) if member.stage == stage]
        assert sorted(index for share in mine for index in share) == list(range(microbatches))
        assert max(map(len, mine)) - min(map(len, mine)) <= 1


@given(seatings(), st.data())
def test_after_losses_newcomers_fill_the_thinnest_stages(
    case: tuple[tuple[Member, ...], int], data: st.DataObject
) -> None:
    members, depth = case
    stay = tuple(each for each in members if data.draw(st.booleans(), label=each.trainer))
    gap = len(members) - len(stay)
    newcomers = crowd(gap, first=100)
    after = stages.joined(stay, newcomers, depth)
    assert after[: len(stay)] == stay
    assert stages.evened(after, depth) == after or max(stages.widths(stay, depth)) > -(-len(after) // depth)


@given(seatings(), st.integers(2, 6), st.integers(1, 3), st.data())
def test_what_is_left_is_evened_out_and_repaired(
    case: tuple[tuple[Member, ...], int], experts: int, replicas: int, data: st.DataObject
) -> None:
    """Whoever changes its stage gives up what it held, and gets a share of its new stage."""
    members, depth = case
    where = stages.fresh(members, depth, experts, ClusterSpec(replicas=replicas))
    stay = tuple(each for each in members if data.draw(st.booleans(), label=each.trainer))
    after = stages.evened(stay, depth)
    widths = stages.widths(after, depth)
    assert max(widths) - min(widths) <= 1
    assert sum(a.stage != b.stage for a, b in zip(after, stay, strict=True)) <= len(stay)
    if not min(widths):
        return
    new_rank = {each.rank: Rank(rank) for rank, each in enumerate(stay)}
    left = placement.remove(where, new_rank)
    moved = [Rank(rank) for rank, each in enumerate(after) if each.stage != stay[rank].stage]
    repaired = stages.repaired(left, after, depth, replicas, moved)
    for expert, ranks in enumerate(repaired):
        assert ranks and all(after[rank].stage == expert // experts for rank in ranks)
        assert len({node_of(after[rank].trainer) for rank in ranks}) == len(ranks)


def test_who_is_even_stays_where_it_is() -> None:
    members = stages.seated(crowd(7), 3)
    assert stages.evened(members, 3) == members


def test_the_last_of_the_widest_stage_goes_over() -> None:
    members = tuple(each for each in stages.seated(crowd(8), 2) if each.rank not in (1, 3))
    after = stages.evened(members, 2)
    assert [each.trainer for each, was in zip(after, members, strict=True) if each.stage != was.stage] == [
        "node-7/0"
    ]


def lacking(members: tuple[Member, ...], depth: int, replicas: int) -> int:
    """Nodes that stages have too few for the replicas of their experts, altogether."""
    short = 0
    for stage, width in enumerate(stages.widths(members, depth)):
        on = {node_of(each.trainer) for each in members if each.stage == stage}
        short += max(0, min(replicas, width) - len(on))
    return short


@st.composite
def shuffled(draw: st.DrawFn) -> tuple[tuple[Member, ...], int]:
    """Even stages whose members have come and gone, so that their nodes lie in them anyhow; few enough to try all."""
    depth = draw(st.integers(2, 3))
    devices = draw(st.lists(st.integers(1, 3), min_size=2, max_size=7))
    trainers = [
        TrainerId(f"node-{node}/{device}") for node, has in enumerate(devices) for device in range(has)
    ]
    trainers = trainers[:8]
    seats = draw(st.permutations([index % depth for index in range(len(trainers))]))
    return tuple(
        Member(trainer=name, start=1, rank=Rank(rank), store_address="h:1", peer_address="h:2", stage=stage)
        for rank, (name, stage) in enumerate(zip(trainers, seats, strict=True))
    ), depth


@given(shuffled(), st.integers(1, 3))
def test_exchanges_find_a_node_for_every_replica_wherever_there_is_a_way(
    case: tuple[tuple[Member, ...], int], replicas: int
) -> None:
    """As good as the best of all seatings with stages of the same widths."""
    members, depth = case
    after = stages.exchanged(members, depth, replicas)
    assert stages.widths(after, depth) == stages.widths(members, depth)
    assert [each.trainer for each in after] == [each.trainer for each in members]
    if not lacking(members, depth, replicas):
        assert after == members
    best = min(
        lacking(
            tuple(replace(each, stage=stage) for each, stage in zip(members, way, strict=True)),
            depth,
            replicas,
        )
        for way in set(permutations([each.stage for each in members]))
    )
    assert lacking(after, depth, replicas) == best


@given(shuffled(), st.integers(1, 3), st.data())
def test_who_is_fixed_changes_no_places(
    case: tuple[tuple[Member, ...], int], replicas: int, data: st.DataObject
) -> None:
    members, depth = case
    fixed = {each.trainer for each in members if data.draw(st.booleans(), label=each.trainer)}
    after = stages.exchanged(members, depth, replicas, fixed)
    assert all(a == b for a, b in zip(after, members, strict=True) if b.trainer in fixed)
    assert lacking(after, depth, replicas) <= lacking(members, depth, replicas)


@given(st.integers(1, 8), st.integers(1, 3), st.integers(1, 8), st.integers(1, 3), st.integers(1, 12))
def test_one_stage_is_no_pipeline(
    nodes: int, devices: int, experts: int, replicas: int, microbatches: int
) -> None:
    """Bit for bit what a job without stages always had."""
    members = crowd(nodes, devices)
    assert stages.seated(members, 1) == members
    where = placement.fresh([node_of(each.trainer) for each in members], experts, replicas)
    assert stages.fresh(members, 1, experts, ClusterSpec(replicas=replicas)) == where
    assert stages.dealt(microbatches, members, 1) == deal(microbatches, len(members))
