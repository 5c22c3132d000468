"""Chances counted by formula against chances counted by trying every set of dead nodes."""

from __future__ import annotations

from itertools import combinations
from random import Random

import pytest

from orchestrator.core import placement, survival
from orchestrator.core.ids import NodeId
from orchestrator.core.placement import Placement
from orchestrator.core.spec import ReplicaLayout


def tried(needed: frozenset[frozenset[NodeId]], nodes: list[NodeId], lost: int) -> float:
    sets = list(combinations(sorted(set(nodes)), lost))
    return sum(all(each - set(dead) for each in needed) for dead in sets) / len(sets)


def named(count: int, devices: int = 1) -> list[NodeId]:
    return [NodeId(f"node-{number}") for number in range(count) for _ in range(devices)]


@pytest.mark.parametrize("seed", range(40))
def test_as_if_every_case_were_tried(seed: int) -> None:
    random = Random(seed)
    nodes = named(random.randint(3, 8), random.randint(1, 2))
    made = placement.fresh(
        nodes, random.randint(2, 12), random.randint(1, 3), layout=random.choice(list(ReplicaLayout))
    )
    needed = survival.holders(made, nodes)
    for lost, chance in zip(survival.LOSSES, survival.chances(made, nodes), strict=True):
        expected = tried(needed, nodes, lost) if lost < len(set(nodes)) else 0.0
        assert chance == pytest.approx(expected), (made, lost)


@pytest.mark.parametrize("layout, two_dead", [(ReplicaLayout.GROUPS, 6 / 7), (ReplicaLayout.RING, 5 / 7)])
def test_eight_nodes_in_two_replicas(layout: ReplicaLayout, two_dead: float) -> None:
    """Twins lose something in a seventh of cases, a ring in two sevenths."""
    made = placement.fresh(named(8), 16, 2, layout=layout)
    one, two, _ = survival.chances(made, named(8))
    assert one == 1.0 and two == pytest.approx(two_dead)


def test_a_thousand_nodes_are_counted_at_once() -> None:
    nodes = named(1024)
    one, two, three = survival.chances(placement.fresh(nodes, 1024, 2), nodes)
    assert one == 1.0 and two == pytest.approx(1 - 512 / (1024 * 1023 / 2))
    assert 0.99 < three < two
    made: Placement = placement.fresh(nodes, 1024, 1)
    assert survival.chances(made, nodes) == (0.0, 0.0, 0.0)
