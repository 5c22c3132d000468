"""Stages of a pipeline: who sits in which, and placement and deal stage by stage. Pure functions over members.

A seat is (stage, data index): the data index is a member's place among the members of its stage, by rank. Every stage
has its own experts, one of each number in a layer, so that experts [s * E, (s + 1) * E) of a placement belong to stage
s, and only ranks of that stage hold them. Each stage is dealt all microbatches. With one stage all of this is what
`placement.py` and `deal.py` say of all members. Next: `restore.py` and `repair.py`, which decide with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from orchestrator.core import placement, words
from orchestrator.core.deal import deal
from orchestrator.core.domains import NOWHERE, Domains
from orchestrator.core.ids import NodeId, Rank, TrainerId, node_of
from orchestrator.core.placement import Placement
from orchestrator.core.spec import ClusterSpec, ReplicaLayout
from orchestrator.core.state import Member


def seated(members: Sequence[Member], stages: int, domains: Domains = NOWHERE) -> tuple[Member, ...]:
    """The members with stages, in turn: a node with several trainers has them in several stages, and its loss costs
    each stage as little as possible. So has a rack, where racks are known: its nodes come one after the other."""
    if domains and stages > 1:
        place = {
            node: index
            for index, node in enumerate(
                domains.blocks(list(dict.fromkeys(node_of(m.trainer) for m in members)))
            )
        }
        members = sorted(members, key=lambda member: place[node_of(member.trainer)])
        members = [replace(member, rank=Rank(rank)) for rank, member in enumerate(members)]
    return tuple(
        member if member.stage == rank % stages else replace(member, stage=rank % stages)
        for rank, member in enumerate(members)
    )


def widths(members: Sequence[Member], stages: int) -> list[int]:
    """How many members each stage has."""
    if stages == 1:
        return [len(members)]
    count = Counter(member.stage for member in members)
    return [count[stage] for stage in range(stages)]


def joined(
    kept: Sequence[Member], newcomers: Sequence[Member], stages: int, domains: Domains = NOWHERE
) -> tuple[Member, ...]:
    """Those who stay, then the newcomers, each in the stage that has the fewest members by then.

    Of two such stages the one that has less on the newcomer's node, then in its failure domains, then the first.
    """
    members, have = list(kept), widths(kept, stages)
    there = Counter((node_of(each.trainer), each.stage) for each in kept if stages > 1)
    for newcomer in newcomers:
        node = node_of(newcomer.trainer)
        here = [there[node, stage] for stage in range(stages)]
        near: Counter[int] = Counter()
        for each in members if domains and stages > 1 else ():
            near[each.stage] += domains.shared(node, node_of(each.trainer))
        stage = min(range(stages), key=lambda stage: (have[stage], here[stage], near[stage], stage))
        members.append(replace(newcomer, stage=stage))
        have[stage] += 1
        there[node, stage] += 1
    return tuple(members)


def evened(members: Sequence[Member], stages: int) -> tuple[Member, ...]:
    """The same members with as few in other stages as make the stages even.

    Who changes is the last of the widest stage whose node the thinnest one has not, if there is such a member.
    """
    even = list(members)
    while True:
        have = widths(even, stages)
        thin, wide = have.index(min(have)), have.index(max(have))
        if have[wide] - have[thin] < 2:
            return tuple(even)
        there = {node_of(each.trainer) for each in even if each.stage == thin}
        able = [index for index, each in enumerate(even) if each.stage == wide]
        fresh = [index for index in able if node_of(even[index].trainer) not in there]
        moved = (fresh or able)[-1]
        even[moved] = replace(even[moved], stage=thin)


def exchanged(
    members: Sequence[Member], stages: int, replicas: int, fixed: Collection[TrainerId] = ()
) -> tuple[Member, ...]:
    """The same members with as few in other stages as give each stage as many nodes as its experts have replicas.

    Two change places at a time, so that the stages stay as wide as they are: one that shares its node with another
    member of a stage on too few nodes, and one from a node that this stage has not, of a stage that can spare it.
    Those in `fixed` stay. What no exchange mends stays as it is.
    """
    changed = list(members)
    while stages > 1:
        nodes = [Counter(node_of(each.trainer) for each in changed if each.stage == s) for s in range(stages)]
        thin = [s for s in range(stages) if len(nodes[s]) < min(replicas, nodes[s].total())]
        pair = next(
            (pair for s in thin if (pair := _exchange(changed, nodes, s, replicas, fixed)) is not None), None
        )
        if pair is None:
            break
        one, other = pair
        here, there = changed[one].stage, changed[other].stage
        changed[one], changed[other] = replace(changed[one], stage=there), replace(changed[other], stage=here)
    return tuple(changed)


def _exchange(
    members: Sequence[Member],
    nodes: Sequence[Counter[NodeId]],
    thin: int,
    replicas: int,
    fixed: Collection[TrainerId],
) -> tuple[int, int] | None:
    """Places of two members that give stage `thin` a node more, and leave the other stage no worse off."""
    able = [index for index, each in enumerate(members) if each.trainer not in fixed]
    doubled = [
        index
        for index in able
        if members[index].stage == thin and nodes[thin][node_of(members[index].trainer)] > 1
    ]
    leaving = {node_of(members[index].trainer): index for index in doubled}
    found: dict[tuple[int, int], int] = {}
    for index in able:
        stage, node = members[index].stage, node_of(members[index].trainer)
        if stage == thin or node in nodes[thin]:
            continue
        for leaver, place in leaving.items():
            after = len(nodes[stage]) - (nodes[stage][node] == 1) + (leaver not in nodes[stage])
            if after >= min(replicas, len(nodes[stage])):
                found[place, index] = after
    return max(found, key=lambda pair: (found[pair], pair), default=None)


def dealt(microbatches: int, members: Sequence[Member], stages: int) -> tuple[tuple[int, ...], ...]:
    """Rank -> indices of its microbatches: all of them over the members of each stage."""
    shares = [iter(deal(microbatches, width)) for width in widths(members, stages)]
    return tuple(next(shares[member.stage]) for member in members)


def fresh(
    members: Sequence[Member],
    stages: int,
    experts: int,
    cluster: ClusterSpec,
    loads: Sequence[int] = (),
    domains: Domains = NOWHERE,
) -> Placement:
    """A placement from nothing, of `experts` in each stage: see `placement.fresh`."""
    result: list[tuple[Rank, ...]] = []
    for stage, ranks, nodes in _stages(members, stages):
        own = tuple(loads[stage * experts : (stage + 1) * experts])
        layout = ReplicaLayout.GROUPS if own else cluster.replica_layout
        local = placement.fresh(nodes, experts, cluster.replicas, loads=own, layout=layout, domains=domains)
        result += _global(local, ranks)
    return tuple(result)


def missing(where: Placement, members: Sequence[Member], stages: int, replicas: int) -> tuple[int, ...]:
    """Experts with fewer replicas than `replicas`, or than their stage has nodes: see `placement.missing`."""
    if stages == 1:
        return placement.missing(where, _nodes(members), replicas)
    experts = len(where) // stages
    found: list[int] = []
    for stage, ranks, nodes in _stages(members, stages):
        local = _local(where, stage, experts, ranks)
        found += [stage * experts + expert for expert in placement.missing(local, nodes, replicas)]
    return tuple(found)


def thin(where: Placement, nodes: Sequence[NodeId], wanted: int) -> tuple[int, ...]:
    """Experts on fewer than `wanted` nodes, whatever their stage has; rank r stands on `nodes[r]`."""
    return tuple(
        expert for expert, ranks in enumerate(where) if len({nodes[rank] for rank in ranks}) < wanted
    )


def apart(where: Placement, members: Sequence[Member], domains: Domains) -> str:
    """Whether replicas stand apart in the failure domains that are known, in words; empty where none is."""
    if not domains:
        return ""
    together = placement.crowded(where, _nodes(members), domains)
    kinds = " or ".join(domains.keys)
    if not together:
        return f"no two in one {kinds}"
    return f"though {words.experts(together)} {'have' if len(together) > 1 else 'has'} two in one {kinds}"


def repaired(
    where: Placement,
    members: Sequence[Member],
    stages: int,
    replicas: int,
    newcomers: Sequence[Rank] = (),
    loads: Sequence[int] = (),
    full: Sequence[Rank] = (),
    domains: Domains = NOWHERE,
) -> Placement:
    """Gaps filled and newcomers given their share, in each stage: see `placement.repair`.

    What a rank holds of a stage that it is not in any more, it gives up.
    """
    experts = len(where) // stages
    result: list[tuple[Rank, ...]] = []
    if stages == 1:
        known = loads if len(loads) == len(where) else ()
        return placement.repair(where, _nodes(members), replicas, newcomers, known, full, domains)
    for stage, ranks, nodes in _stages(members, stages):
        index = {rank: Rank(place) for place, rank in enumerate(ranks)}
        local = placement.repair(
            _local(where, stage, experts, ranks),
            nodes,
            replicas,
            [index[rank] for rank in newcomers if rank in index],
            loads[stage * experts : (stage + 1) * experts] if len(loads) == len(where) else (),
            [index[rank] for rank in full if rank in index],
            domains,
        )
        result += _global(local, ranks)
    return tuple(result)


def _nodes(members: Sequence[Member]) -> list[NodeId]:
    """The node of every rank."""
    return [node_of(member.trainer) for member in members]


def _stages(
    members: Sequence[Member], stages: int
) -> Iterator[tuple[int, tuple[Rank, ...], tuple[NodeId, ...]]]:
    """Each stage with its ranks and their nodes."""
    for stage in range(stages):
        ranks = tuple(Rank(rank) for rank, member in enumerate(members) if member.stage == stage)
        yield stage, ranks, tuple(node_of(members[rank].trainer) for rank in ranks)


def _local(where: Placement, stage: int, experts: int, ranks: Sequence[Rank]) -> Placement:
    """A stage's experts on its data indices."""
    index = {rank: Rank(place) for place, rank in enumerate(ranks)}
    own = where[stage * experts : (stage + 1) * experts]
    return tuple(tuple(index[rank] for rank in holders if rank in index) for holders in own)


def _global(local: Placement, ranks: Sequence[Rank]) -> list[tuple[Rank, ...]]:
    return [tuple(ranks[place] for place in holders) for holders in local]
