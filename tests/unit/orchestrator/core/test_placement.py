"""Experts on trainers: never two replicas on a node, as even as whole replicas allow, and few moves on repair."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core import placement
from orchestrator.core.ids import NodeId, Rank
from orchestrator.core.placement import Placement
from orchestrator.core.spec import ReplicaLayout


def nodes_of(sizes: list[int]) -> list[NodeId]:
    """Rank -> node for nodes with these many trainers each."""
    return [NodeId(f"node-{node + 1}") for node, size in enumerate(sizes) for _ in range(size)]


def held_by(where: Placement, ranks: int) -> list[int]:
    return [sum(rank in holders for holders in where) for rank in range(ranks)]


def assert_anti_affine(where: Placement, nodes: list[NodeId]) -> None:
    for holders in where:
        on = [nodes[rank] for rank in holders]
        assert len(set(on)) == len(on), (where, nodes)


equal_nodes = st.builds(lambda nodes, devices: [devices] * nodes, st.integers(1, 7), st.integers(1, 3))
any_nodes = st.lists(st.integers(1, 3), min_size=1, max_size=7)
experts = st.integers(1, 24)
replicas = st.integers(1, 4)


@given(any_nodes, experts, replicas)
def test_fresh_placement_has_all_replicas_on_distinct_nodes(
    sizes: list[int], count: int, copies: int
) -> None:
    """As many as asked for, or one per node where there are fewer nodes."""
    nodes = nodes_of(sizes)
    where = placement.fresh(nodes, count, copies)
    assert_anti_affine(where, nodes)
    assert {len(holders) for holders in where} == {min(copies, len(sizes))}


@given(equal_nodes, experts, replicas)
def test_fresh_placement_on_equal_nodes_is_even(sizes: list[int], count: int, copies: int) -> None:
    """No trainer holds two replicas more than another."""
    nodes = nodes_of(sizes)
    held = held_by(placement.fresh(nodes, count, copies), len(nodes))
    assert max(held) - min(held) <= 1


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), experts)
def test_default_placement_is_in_groups_that_each_hold_every_expert(
    per_group: int, copies: int, devices: int, count: int
) -> None:
    """Groups are runs of whole nodes; all but one leave nothing out when the others die; leads are even."""
    nodes = nodes_of([devices] * per_group * copies)
    where = placement.fresh(nodes, count, copies)
    size = per_group * devices
    for group in range(copies):
        ranks = set(range(group * size, (group + 1) * size))
        assert all(len(ranks & set(holders)) == 1 for holders in where)
    leads = [sum(holders[0] == rank for holders in where) for rank in range(len(nodes))]
    assert max(leads) - min(leads) <= 1


def test_replicas_in_groups_on_four_nodes() -> None:
    """16 experts, 2 replicas: two groups of two, led in turn."""
    where = placement.fresh(nodes_of([1, 1, 1, 1]), 16, 2)
    assert where[:5] == ((0, 2), (1, 3), (2, 0), (3, 1), (0, 2))


def test_nodes_that_make_no_groups_get_a_ring() -> None:
    """Five nodes cannot be halved, and unequal nodes make no equal groups."""
    assert placement.fresh(nodes_of([1] * 5), 5, 2) == ((0, 1), (1, 2), (2, 3), (3, 4), (4, 0))
    uneven = nodes_of([1, 2])
    assert_anti_affine(placement.fresh(uneven, 6, 2), uneven)


@given(st.integers(2, 8).filter(lambda nodes: nodes % 2 == 0))
def test_twins_lose_something_in_fewer_pairs_of_losses_than_a_ring(nodes: int) -> None:
    """One pair for each node and its twin, against one for each neighbourhood of the ring."""
    fatal = {
        layout: sum(
            bool(set(placement.lost_experts(placement.remove(where, _without(pair, nodes)))))
            for pair in combinations(range(nodes), 2)
        )
        for layout in ReplicaLayout
        for where in (placement.fresh(nodes_of([1] * nodes), 2 * nodes, 2, layout=layout),)
    }
    assert fatal[ReplicaLayout.GROUPS] == nodes // 2 and fatal[ReplicaLayout.RING] == max(
        1, nodes * (nodes > 2)
    )


def _without(gone: tuple[int, ...], ranks: int) -> dict[Rank, Rank]:
    kept = [rank for rank in range(ranks) if rank not in gone]
    return {Rank(old): Rank(new) for new, old in enumerate(kept)}


def test_the_ring_puts_the_backup_on_the_next_node() -> None:
    """Primaries in turn: 16 experts on 4 nodes."""
    where = placement.fresh(nodes_of([1, 1, 1, 1]), 16, 2, layout=ReplicaLayout.RING)
    assert where[:5] == ((0, 1), (1, 2), (2, 3), (3, 0), (0, 1))


def test_ring_of_nodes_with_two_devices_spreads_backups_over_both() -> None:
    """A backup goes to the next node, not merely to the next rank."""
    where = placement.fresh(nodes_of([2, 2, 2]), 6, 2)
    assert held_by(where, 6) == [2] * 6
    assert_anti_affine(where, nodes_of([2, 2, 2]))


@given(any_nodes, experts, replicas, st.data())
def test_packing_by_load_keeps_the_laws(
    sizes: list[int], count: int, copies: int, data: st.DataObject
) -> None:
    """Loads change who holds what, never how many or where two replicas may be."""
    loads = data.draw(st.lists(st.integers(0, 1000), min_size=count, max_size=count))
    nodes = nodes_of(sizes)
    where = placement.fresh(nodes, count, copies, loads=loads)
    assert_anti_affine(where, nodes)
    assert {len(holders) for holders in where} == {min(copies, len(sizes))}


def test_packing_by_load_is_more_even_than_the_ring() -> None:
    """Two hot experts whose primaries the ring puts on one trainer are taken apart."""
    nodes = nodes_of([1, 1, 1, 1])
    loads = [100, 1, 1, 1, 100, 1, 1, 1]
    ring = placement.load_by_rank(placement.fresh(nodes, 8, 2), 4, loads)
    packed = placement.load_by_rank(placement.fresh(nodes, 8, 2, loads=loads), 4, loads)
    assert max(packed) < 0.6 * max(ring)


@given(equal_nodes, experts, replicas, st.data())
def test_removal_moves_nothing(sizes: list[int], count: int, copies: int, data: st.DataObject) -> None:
    """After a loss every survivor holds exactly what it held, under its new number."""
    nodes = nodes_of(sizes)
    where = placement.fresh(nodes, count, copies)
    gone = data.draw(st.sets(st.integers(0, len(nodes) - 1), max_size=len(nodes)))
    kept = [rank for rank in range(len(nodes)) if rank not in gone]
    new_rank = {Rank(old): Rank(new) for new, old in enumerate(kept)}
    after = placement.remove(where, new_rank)
    for before, holders in zip(where, after, strict=True):
        assert holders == tuple(new_rank[rank] for rank in before if rank not in gone)
    assert placement.lost_experts(after) == tuple(e for e, ranks in enumerate(where) if set(ranks) <= gone)


@given(equal_nodes, experts, replicas, st.data())
def test_repair_brings_all_replicas_back(
    sizes: list[int], count: int, copies: int, data: st.DataObject
) -> None:
    """Whatever survived: full replicas on distinct nodes, and nobody gives up what it holds without newcomers."""
    nodes = nodes_of(sizes)
    gone = data.draw(st.sets(st.integers(0, len(nodes) - 1), max_size=max(0, len(nodes) - 1)))
    kept = [rank for rank in range(len(nodes)) if rank not in gone]
    new_rank = {Rank(old): Rank(new) for new, old in enumerate(kept)}
    survivors = placement.remove(placement.fresh(nodes, count, copies), new_rank)
    if placement.lost_experts(survivors):
        return
    living = [nodes[rank] for rank in kept]
    after = placement.repair(survivors, living, copies)
    assert placement.missing(after, living, copies) == ()
    assert_anti_affine(after, living)
    for before, holders in zip(survivors, after, strict=True):
        assert holders[: len(before)] == before


@given(st.integers(2, 7), experts, st.integers(2, 3))
def test_newcomer_in_place_of_a_dead_node_costs_no_move(count: int, number: int, copies: int) -> None:
    """The spare copies what the dead node held, and nothing else is copied."""
    nodes = nodes_of([1] * count)
    where = placement.fresh(nodes, number, copies)
    new_rank = {Rank(rank): Rank(rank - 1) for rank in range(1, count)}
    survivors = placement.remove(where, new_rank)
    if placement.lost_experts(survivors):
        return
    living = [*nodes[1:], NodeId("node-99")]
    after = placement.repair(survivors, living, copies, newcomers=[Rank(count - 1)])
    assert placement.copies(survivors, after) == held_by(where, count)[0]
    assert max(held_by(after, count)) - min(held_by(after, count)) <= 1


@given(st.integers(1, 6), experts, replicas)
def test_newcomer_beside_a_full_house_gets_its_share(count: int, number: int, copies: int) -> None:
    """Replicas move to the newcomer only, and only as many as make things even."""
    nodes = nodes_of([1] * count)
    where = placement.fresh(nodes, number, copies)
    after = placement.repair(where, [*nodes, NodeId("node-99")], min(copies, count), newcomers=[Rank(count)])
    held = held_by(after, count + 1)
    assert placement.copies(where, after) == held[count]
    assert held[count] <= sum(held) // (count + 1)
    assert max(held[:count]) - held[count] <= 1 or number * min(copies, count) <= count


def test_gap_that_only_full_ranks_could_fill_stays() -> None:
    """A trainer that has failed to copy too often is not asked again."""
    where: Placement = ((Rank(0),), (Rank(1),))
    nodes = nodes_of([1, 1])
    after = placement.repair(where, nodes, 2, full=[Rank(1)])
    assert after == ((0,), (1, 0))
    assert placement.missing(after, nodes, 2) == (0,)


def test_gap_goes_to_the_emptiest_then_the_least_loaded() -> None:
    """Memory first, then work."""
    nodes = nodes_of([1, 1, 1])
    where: Placement = ((Rank(0), Rank(1)), (Rank(1), Rank(2)), (Rank(0),))
    assert placement.repair(where, nodes, 2, loads=(9, 9, 9))[2] == (0, 2)
    even: Placement = ((Rank(0), Rank(1)), (Rank(0), Rank(2)), (Rank(0),))
    assert placement.repair(even, nodes, 2, loads=(1, 50, 1))[2] == (0, 1)


@given(
    st.lists(st.integers(0, 10_000), min_size=1, max_size=32),
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(0, 64),
)
def test_replica_counts_respect_floor_cap_and_room(
    loads: list[int], floor: int, extra: int, room: int
) -> None:
    """None below the floor, none above the cap, never more slots than there are."""
    slots = len(loads) * floor + room
    counts = placement.replica_counts(loads, slots, floor, floor + extra)
    assert all(floor <= count <= floor + extra for count in counts)
    assert sum(counts) <= slots


@given(st.lists(st.integers(0, 100), min_size=2, max_size=16))
def test_hotter_expert_never_gets_fewer_replicas(loads: list[int]) -> None:
    """Counts follow loads."""
    counts = placement.replica_counts(loads, 3 * len(loads), 2, 8)
    by_load = sorted(zip(loads, counts, strict=True))
    assert all(low[1] <= high[1] for low, high in pairwise(by_load) if low[0] < high[0])


def test_hot_expert_gets_the_spare_room() -> None:
    """Two slots to spare go where the tokens go."""
    assert placement.replica_counts([10, 10, 10, 70], 10, 2, 4) == (2, 2, 2, 4)
    where = placement.fresh(nodes_of([1] * 5), 4, 2, counts=(2, 2, 2, 4), loads=[10, 10, 10, 70])
    assert [len(holders) for holders in where] == [2, 2, 2, 4]


@pytest.mark.parametrize("arguments", [([1, 1], 3, 2, 2), ([1, 1], 8, 3, 2), ([1], 8, 0, 2)])
def test_impossible_counts_are_refused_with_numbers(arguments: Any) -> None:
    """Room for the floor is the caller's to provide."""
    with pytest.raises(ValueError, match=r"slots|floor"):
        placement.replica_counts(*arguments)
