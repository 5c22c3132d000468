"""Racks and zones: replicas apart where it is possible, nothing changed where nothing is known, seats kept even."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.core import placement
from orchestrator.core.domains import NOWHERE, Domains, known
from orchestrator.core.ids import NodeId, Rank
from orchestrator.core.placement import Placement
from orchestrator.core.spec import ReplicaLayout


def named(count: int) -> list[NodeId]:
    return [NodeId(f"node-{number}") for number in range(1, count + 1)]


def in_racks(racks: list[int]) -> tuple[list[NodeId], Domains]:
    """Node number i stands in rack `racks[i]`."""
    nodes = named(len(racks))
    return nodes, known(
        {node: {"rack": f"r{rack}"} for node, rack in zip(nodes, racks, strict=True)}, ("rack",)
    )


def held_by(where: Placement, ranks: int) -> list[int]:
    return [sum(rank in holders for holders in where) for rank in range(ranks)]


@st.composite
def halves(draw: st.DrawFn) -> list[int]:
    """Nodes in racks none of which has more than half of them, in any order."""
    nodes = draw(st.integers(2, 12))
    racks: list[int] = []
    for rack in range(nodes):
        racks += [rack] * draw(st.integers(1, max(1, nodes // 2)))
    return draw(st.permutations(_trimmed(racks[: 2 * (nodes // 2)])))


def _trimmed(racks: list[int]) -> list[int]:
    """Cutting a list can leave one rack with too many: then each node stands alone."""
    most = Counter(racks).most_common(1)[0][1]
    return racks if most <= len(racks) // 2 else list(range(len(racks)))


anywhere = st.lists(st.integers(0, 3), min_size=1, max_size=10)


# ---- what labels say ----


def test_a_label_that_parts_no_two_nodes_says_nothing() -> None:
    """All on one host, or each on its own, or on one that is not named."""
    nodes = named(3)
    assert known({node: {"host": "a"} for node in nodes}, ("host",)) == NOWHERE
    assert known({node: {"host": node} for node in nodes}, ("host",)) == NOWHERE
    assert known({node: {"host": ""} for node in nodes}, ("host",)) == NOWHERE
    assert known({node: {"rack": "a"} for node in nodes}, ("host",)) == NOWHERE


def test_a_rack_is_one_of_its_zone() -> None:
    labels = [("a", "1"), ("a", "1"), ("b", "1"), ("b", "2"), ("b", "2")]
    nodes = named(5)
    where = known(
        {node: {"zone": zone, "rack": rack} for node, (zone, rack) in zip(nodes, labels, strict=True)},
        ("zone", "rack"),
    )
    assert where.shared(nodes[0], nodes[1]) == 2
    assert where.shared(nodes[0], nodes[2]) == 0, "rack 1 of another zone"
    assert where.shared(nodes[2], nodes[3]) == 1
    assert where.shared(nodes[3], nodes[4]) == 2


# ---- placement ----


@example([0, 0, 0, 0, 1, 2, 2, 2], 2, ReplicaLayout.RING)
@given(halves(), st.integers(1, 24), st.sampled_from(ReplicaLayout))
def test_two_replicas_are_never_in_one_rack_if_no_rack_has_more_than_half(
    racks: list[int], experts: int, layout: ReplicaLayout
) -> None:
    """And the placement is as even as without racks."""
    nodes, where = in_racks(racks)
    made = placement.fresh(nodes, experts, 2, layout=layout, domains=where)
    assert placement.crowded(made, nodes, where) == ()
    regular = held_by(placement.fresh(nodes, experts, 2, layout=layout), len(nodes))
    held = held_by(made, len(nodes))
    assert max(held) - min(held) <= max(1, max(regular) - min(regular))


@given(anywhere, st.integers(1, 24), st.integers(1, 4), st.sampled_from(ReplicaLayout))
def test_racks_never_cost_a_law(racks: list[int], experts: int, replicas: int, layout: ReplicaLayout) -> None:
    """As many replicas, on different nodes, as even; and together in racks at most as often as without."""
    nodes, where = in_racks(racks)
    regular = placement.fresh(nodes, experts, replicas, layout=layout)
    made = placement.fresh(nodes, experts, replicas, layout=layout, domains=where)
    assert [len(set(ranks)) for ranks in made] == [len(ranks) for ranks in regular]
    held = held_by(made, len(nodes))
    assert max(held) - min(held) <= 1
    assert len(placement.crowded(made, nodes, where)) <= len(placement.crowded(regular, nodes, where))
    if not where:
        assert made == regular


@given(halves(), st.integers(1, 16), st.data())
def test_losing_any_rack_loses_no_expert(racks: list[int], experts: int, data: st.DataObject) -> None:
    nodes, where = in_racks(racks)
    made = placement.fresh(nodes, experts, 2, domains=where)
    lost = data.draw(st.sampled_from(sorted(set(racks))))
    assert all(any(racks[rank] != lost for rank in ranks) for ranks in made)


@given(anywhere, st.integers(1, 16), st.integers(1, 3), st.data())
def test_a_repair_with_racks_keeps_the_laws(
    racks: list[int], experts: int, replicas: int, data: st.DataObject
) -> None:
    """Every gap filled, nothing of the survivors given up without a newcomer, nobody above an even share for a rack."""
    nodes, where = in_racks(racks)
    made = placement.fresh(nodes, experts, replicas, domains=where)
    gone = data.draw(st.integers(0, len(nodes) - 1))
    if len(nodes) == 1 or any(ranks == (gone,) for ranks in made):
        return
    living = [node for index, node in enumerate(nodes) if index != gone]
    new_rank = {Rank(old): Rank(index) for index, old in enumerate(r for r in range(len(nodes)) if r != gone)}
    left = placement.remove(made, new_rank)
    after = placement.repair(left, living, replicas, domains=where)
    assert placement.missing(after, living, replicas) == ()
    assert all(ranks[: len(was)] == was for ranks, was in zip(after, left, strict=True))
    assert all(len({living[rank] for rank in ranks}) == len(ranks) for ranks in after)


def test_a_gap_goes_to_another_rack_while_there_is_room_and_no_further() -> None:
    nodes, where = in_racks([0, 0, 1, 1])
    holders: Placement = ((Rank(0),), (Rank(0),), (Rank(2),), (Rank(2),))
    after = placement.repair(holders, nodes, 2, domains=where)
    assert placement.crowded(after, nodes, where) == ()
    lonely, alone = in_racks([0, 0, 0, 0, 1, 1])
    many: Placement = tuple((Rank(rank % 4),) for rank in range(12))
    after = placement.repair(many, lonely, 2, domains=alone)
    assert max(held_by(after, 6)) <= 4, "an even share of 24 replicas on six"


def test_a_newcomer_takes_replicas_that_stand_together_and_none_that_would() -> None:
    nodes, where = in_racks([0, 0, 1, 1])
    together: Placement = ((Rank(0), Rank(1)), (Rank(1), Rank(0)), (Rank(0), Rank(1)), (Rank(2), Rank(1)))
    after = placement.repair(together, nodes, 2, newcomers=[Rank(3)], domains=where)
    assert len(placement.crowded(after, nodes, where)) == 1, "its even share is two"
    assert 3 not in after[3]


# ---- seats ----


@given(anywhere, st.data())
def test_any_number_of_the_first_ones_keeps_racks_even(racks: list[int], data: st.DataObject) -> None:
    """No rack gets a second member before each rack that has somebody to give has its first, and so on."""
    nodes, where = in_racks(racks)
    beside = data.draw(st.lists(st.sampled_from(nodes), unique=True))
    candidates = [node for node in nodes if node not in beside]
    order = where.spread(candidates, beside)
    assert sorted(order) == sorted(candidates)
    rack_of = {node: where.of(node) for node in nodes}
    for taken in range(len(order)):
        have = Counter(rack_of[node] for node in [*beside, *order[:taken]])
        chosen = order[taken]
        if rack_of[chosen]:
            assert all(
                have[rack_of[chosen]] <= have[rack_of[other]] for other in order[taken:] if rack_of[other]
            )
    if not where:
        assert order == candidates


@pytest.mark.parametrize("racks", [[0, 1, 2, 0, 1, 2], [0, 0, 1, 1, 2, 2]])
def test_three_replicas_in_three_racks(racks: list[int]) -> None:
    nodes, where = in_racks(racks)
    for layout in ReplicaLayout:
        made = placement.fresh(nodes, 6, 3, layout=layout, domains=where)
        assert all(len({racks[rank] for rank in ranks}) == 3 for ranks in made)
        assert all(racks[a] != racks[b] for ranks in made for a, b in combinations(ranks, 2))
