"""One destination per (source, expert): near replicas first, then even load."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.parallel.routing import RoutingError, exchange_groups, held_experts, plan_route, route


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[list[int]], list[int], int]:
    world = draw(st.integers(1, 6))
    nodes = draw(st.lists(st.integers(0, 3), min_size=world, max_size=world))
    experts = draw(st.integers(1, 8))
    ranks = st.lists(st.integers(0, world - 1), min_size=1, max_size=world, unique=True)
    return draw(st.lists(ranks, min_size=experts, max_size=experts)), nodes, world


@given(worlds())
def test_every_source_gets_a_replica_and_the_nearest_kind(
    case: tuple[list[list[int]], list[int], int],
) -> None:
    placement, nodes, world = case
    table = route(placement, nodes, world)
    for source in range(world):
        for expert, ranks in enumerate(placement):
            chosen = table[source][expert]
            assert chosen in ranks
            if source in ranks:
                assert chosen == source
            elif any(nodes[rank] == nodes[source] for rank in ranks):
                assert nodes[chosen] == nodes[source]


@given(worlds())
def test_far_sources_level_the_replicas(case: tuple[list[list[int]], list[int], int]) -> None:
    """A replica that serves two sources more than another serves no source that was free to choose."""
    placement, _, world = case
    table = route(placement, list(range(world)), world)
    for expert, ranks in enumerate(placement):
        served = {rank: [s for s in range(world) if table[s][expert] == rank] for rank in ranks}
        least = min(len(sources) for sources in served.values())
        for rank, sources in served.items():
            assert len(sources) <= least + 1 or sources == [rank]


def test_a_hot_expert_is_spread_over_all_its_replicas() -> None:
    table = route([[0, 1, 2]], ["a", "b", "c", "d", "e", "f"], 6)
    destinations = [row[0] for row in table]
    assert destinations[:3] == [0, 1, 2]
    assert sorted(destinations[3:]) == [0, 1, 2]


def test_ranks_share_what_experts_with_one_replica_left_uneven() -> None:
    # Experts 0 and 1 stand on rank 0 alone; expert 2 may go to 0 or 1, so ranks 2 and 3 should not burden 0 further
    # than its own replica count forces: one source each.
    table = route([[0], [0], [0, 1]], [0, 1, 2, 3], 4)
    assert sorted(row[2] for row in table[2:]) == [0, 1]


def test_a_node_keeps_its_traffic() -> None:
    placement = [[0, 2], [1, 3]]
    assert route(placement, ["a", "a", "b", "b"], 4) == ((0, 1), (0, 1), (2, 3), (2, 3))


def grouped(size: int, groups: int, experts: int) -> list[list[int]]:
    """Each group of `size` ranks holds every expert once; the lead goes around."""
    return [
        [(expert // size + group) % groups * size + expert % size for group in range(groups)]
        for expert in range(experts)
    ]


@pytest.mark.parametrize("size, groups", [(2, 2), (4, 2), (2, 3), (3, 4), (1, 3), (4, 1)])
def test_replicas_in_groups_keep_tokens_in_the_group(size: int, groups: int) -> None:
    world = size * groups
    table = route(grouped(size, groups, 12), list(range(world)), world)
    expected = [tuple(range(group * size, (group + 1) * size)) for group in range(groups)]
    assert list(exchange_groups(table)) == expected


def test_after_a_loss_only_its_group_reaches_into_another() -> None:
    """Three groups of two; rank 1 is gone (2..5 are 1..4 now): rank 0 is served by one twin of the lost rank."""
    placement = [[rank - (rank > 1) for rank in ranks if rank != 1] for ranks in grouped(2, 3, 12)]
    table = route(placement, list(range(5)), 5)
    assert sorted(map(len, exchange_groups(table))) == [2, 3]


@given(worlds())
def test_an_exchange_group_is_closed_and_every_member_agrees_on_it(
    case: tuple[list[list[int]], list[int], int],
) -> None:
    placement, nodes, world = case
    table = route(placement, nodes, world)
    routes = [plan_route(placement, nodes, rank) for rank in range(world)]
    assert sorted(rank for group in exchange_groups(table) for rank in group) == list(range(world))
    for rank, mine in enumerate(routes):
        assert rank in mine.group and mine.held == held_experts(placement, rank)
        assert tuple(mine.group[target] for target in mine.target_E) == table[rank]
        assert all(routes[member].group == mine.group for member in mine.group)


def test_held_experts_are_ascending() -> None:
    assert held_experts([[1], [0, 1], [1, 0], [0]], 1) == (0, 1, 2)
    assert held_experts([[1], [0, 1], [1, 0], [0]], 2) == ()


@pytest.mark.parametrize(
    "placement, nodes, message",
    [
        ([[0], []], [0, 1], "expert 1 has no living replica"),
        ([[0, 0]], [0, 1], "distinct ranks"),
        ([[2]], [0, 1], "distinct ranks below 2"),
        ([[0]], [0], "name the node of every rank"),
    ],
)
def test_impossible_placements_are_refused(
    placement: list[list[int]], nodes: list[int], message: str
) -> None:
    with pytest.raises(RoutingError, match=message):
        route(placement, nodes, 2)
