"""Whose agent holds a copy of whose shards. Pure functions over names; asked anew for each snapshot.

A snapshot is needed when all replicas of an expert are gone, and then each of its shards must be at one living agent at
least. A shard is held by its own node and by that node's buddy. So the buddy must not be a twin: if no node has a buddy
with which it shares an expert, then the loss of all holders of any one expert takes no shard with it, because whoever
else holds a shard of theirs is not among them. The dense part of a pipeline stage counts like an expert. Where there
are too few nodes for that, the buddy is the one with which a node shares least, and PROTOCOL.md says what is lost.
After that, failure domains count: a buddy in another zone or rack survives what takes all of one; then evenness, so
that no agent copies for many. Spares are the best buddies of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.core.domains import NOWHERE, Domains
from orchestrator.core.ids import NodeId
from orchestrator.core.placement import Placement

CANDIDATES = 32
"""How many neighbours of a node are looked at: enough to find one that is apart, few enough for ten thousand nodes."""


def choose(
    members: Sequence[NodeId],
    placement: Placement,
    standing: Sequence[NodeId],
    stages: Sequence[int] = (),
    domains: Domains = NOWHERE,
) -> dict[NodeId, NodeId]:
    """A buddy for each node of `members` (by rank, a node may stand there more than once), where there is one.

    `standing` are all nodes that can hold copies, those with members first, in order; `stages` are those of the ranks.
    """
    shared = _parts_of(members, placement, stages)
    index = {each: position for position, each in enumerate(standing)}
    used = [0] * len(standing)
    chosen: dict[NodeId, NodeId] = {}
    for node in dict.fromkeys(members):
        here = index.get(node)
        if here is None:
            continue

        def cost(other: int, here: int = here) -> tuple[int, int, int, int]:
            one, two = standing[here], standing[other]
            apart = (other - here) % len(standing)
            return _overlap(shared, one, two), domains.shared(one, two), used[other], apart

        best = min(_neighbours(here, len(standing)), key=cost, default=None)
        if best is not None:
            used[best] += 1
            chosen[node] = standing[best]
    return chosen


def _neighbours(here: int, nodes: int) -> list[int]:
    """The next ones after a node, around, and the last ones of all: there the spares are."""
    after = [(here + step) % nodes for step in range(1, min(nodes, CANDIDATES + 1))]
    last = range(max(0, nodes - CANDIDATES), nodes)
    return list(dict.fromkeys([*after, *(each for each in last if each != here)]))


def _parts_of(
    members: Sequence[NodeId], placement: Placement, stages: Sequence[int]
) -> dict[NodeId, set[int]]:
    """Experts by number; and the dense part of a stage, as -1 and below, where that is not everybody's."""
    held: dict[NodeId, set[int]] = {}
    if len(set(stages)) > 1:
        for node, stage in zip(members, stages, strict=True):
            held.setdefault(node, set()).add(-1 - stage)
    for expert, ranks in enumerate(placement):
        for rank in ranks:
            held.setdefault(members[rank], set()).add(expert)
    return held


def _overlap(shared: Mapping[NodeId, set[int]], node: NodeId, other: NodeId) -> int:
    return len(shared.get(node, set()) & shared.get(other, set()))
