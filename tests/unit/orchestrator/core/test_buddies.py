"""Buddies: apart from twins, apart from failure domains, evenly; and the property that a restore depends on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core import placement
from orchestrator.core.buddies import choose
from orchestrator.core.domains import known
from orchestrator.core.ids import NodeId, Rank
from orchestrator.core.placement import Placement
from orchestrator.core.spec import ReplicaLayout


def names(count: int) -> list[NodeId]:
    return [NodeId(f"node-{number}") for number in range(1, count + 1)]


def holders(members: list[NodeId], where: Placement, expert: int) -> set[NodeId]:
    return {members[rank] for rank in where[expert]}


def test_nobody_is_its_own_buddy_and_a_lonely_node_has_none() -> None:
    one = placement.fresh(names(1), 4, 1)
    assert choose(names(1), one, names(1)) == {}
    two = placement.fresh(names(2), 4, 2)
    assert choose(names(2), two, names(2)) == {"node-1": "node-2", "node-2": "node-1"}


def test_a_twin_is_no_buddy_where_there_is_another() -> None:
    """In groups node 1 and node 3 hold the same experts."""
    members = names(4)
    where = placement.fresh(members, 16, 2)
    chosen = choose(members, where, members)
    for expert in range(16):
        twins = holders(members, where, expert)
        assert all(chosen[node] not in twins for node in twins)
    assert sorted(chosen.values()) == sorted(members), "each copies for one"


def test_a_spare_is_the_best_buddy() -> None:
    """It holds no replica at all: with three nodes in a ring, everybody else shares an expert."""
    members = names(3)
    where = placement.fresh(members, 6, 2, layout=ReplicaLayout.RING)
    chosen = choose(members, where, [*members, NodeId("node-4")])
    assert set(chosen.values()) == {NodeId("node-4")}


def test_another_rack_is_better_than_the_same() -> None:
    """Labels decide among those that share no expert."""
    members = names(8)
    where = placement.fresh(members, 16, 2)
    racks: dict[NodeId, dict[str, str]] = {
        name: {"rack": "a" if number < 4 else "b"} for number, name in enumerate(members)
    }
    chosen = choose(members, where, members, domains=known(racks, ("rack",)))
    for node, buddy in chosen.items():
        assert racks[node]["rack"] != racks[buddy]["rack"]


def test_a_buddy_is_in_another_stage_where_there_are_stages() -> None:
    """All members of a stage hold its dense part, so the loss of a stage must leave the copies of it."""
    members = names(4)
    where = tuple((Rank(rank),) for rank in range(4))
    chosen = choose(members, where, members, stages=[0, 0, 1, 1])
    assert {chosen[node] for node in members[:2]} == set(members[2:])
    assert {chosen[node] for node in members[2:]} == set(members[:2])


@given(
    nodes=st.integers(2, 14),
    devices=st.integers(1, 2),
    spares=st.integers(0, 3),
    experts=st.integers(1, 24),
    replicas=st.integers(1, 3),
    layout=st.sampled_from(ReplicaLayout),
)
def test_losing_all_holders_of_an_expert_takes_no_shard_if_no_buddy_is_a_twin(
    nodes: int, devices: int, spares: int, experts: int, replicas: int, layout: ReplicaLayout
) -> None:
    """The argument of PROTOCOL.md: a shard lies at its node and at that node's buddy; both gone means both hold it.

    And where everybody can have a buddy that shares nothing with it, everybody has one.
    """
    hosts = names(nodes)
    members = [host for host in hosts for _ in range(devices)]
    where = placement.fresh(members, experts, min(replicas, nodes), layout=layout)
    everybody = [*hosts, *(NodeId(f"spare-{number}") for number in range(spares))]
    chosen = choose(members, where, everybody)
    assert set(chosen) == set(hosts)
    held = {host: {e for e in range(experts) if host in holders(members, where, e)} for host in everybody}
    for expert in range(experts):
        lost = holders(members, where, expert)
        for node in lost:
            gone = {node, chosen[node]} <= lost
            assert not gone or held[node] & held[chosen[node]]
    for node, buddy in chosen.items():
        assert node != buddy
        if any(other != node and not held[node] & held[other] for other in everybody):
            assert not held[node] & held[buddy], f"{buddy} shares an expert with {node}, and others do not"
