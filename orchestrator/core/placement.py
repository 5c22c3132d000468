"""Which ranks hold which expert. Pure functions over plain values; rank r stands on `nodes[r]`.

A placement maps expert -> ranks, the first being the primary. Three laws hold for every result, and the property
tests look for a counterexample: no two replicas of an expert on one node; as many replicas as asked for, while there
are that many nodes; loads as even as whole replicas allow.

`fresh` makes a placement from nothing. By default in groups: each group of nodes holds every expert once, so tokens
need not leave it, and two random losses hit both replicas of something least often (with 8 nodes in 14 % of cases,
against 29 % in a ring). A ring divides the work of a lost node between its two neighbours instead of leaving it to
its one twin until a spare is seated: docs/decisions/0005. `remove` follows a loss and moves nothing. `repair` fills
gaps and gives newcomers their share with the fewest copies. `replica_counts` is the allocation rule of Lazarus
(arXiv 2407.04656): hot experts get more of the spare room, none gets less than the floor.

Where `domains` are known (racks, zones), replicas of an expert are kept apart in them as far as even shares allow: no
rank gets more than its share for it. That is always possible for two replicas while no domain has more than half of
the nodes. Without domains every result is what it was. Next: `repair.py` and `generations.py`, which use this.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import combinations

from orchestrator.core.domains import NOWHERE, Domains, Path
from orchestrator.core.ids import NodeId, Rank
from orchestrator.core.spec import ReplicaLayout

Placement = tuple[tuple[Rank, ...], ...]

LOOKED_AT = 1_000_000
"""Experts times ranks up to which places are looked for one by one, where no regular layout keeps domains apart."""


def fresh(
    nodes: Sequence[NodeId],
    experts: int,
    replicas: int,
    counts: Sequence[int] = (),
    loads: Sequence[int] = (),
    layout: ReplicaLayout = ReplicaLayout.GROUPS,
    domains: Domains = NOWHERE,
) -> Placement:
    """A placement from nothing: laid out as `layout` says, or packed by `loads` (tokens per expert) if given.

    Groups need equal nodes whose number `replicas` divides; elsewhere the replicas lie in a ring. `counts` asks for
    more than `replicas` copies of some experts (see `replica_counts`); each is capped at the number of nodes.
    """
    distinct = len(set(nodes))
    wanted = [min(max(replicas, counts[expert] if counts else 0), distinct) for expert in range(experts)]
    by_node = _ranks_by_node(nodes)
    if loads:
        return _packed(nodes, wanted, loads, domains)
    if layout is ReplicaLayout.GROUPS and _groupable(nodes, wanted):
        regular = _groups(by_node, experts, wanted[0])
        if not crowded(regular, nodes, domains):
            return regular
        # Neighbours of a block are as far apart as a group is wide, so a block no wider never meets itself.
        apart = _groups({node: by_node[node] for node in domains.blocks(list(by_node))}, experts, wanted[0])
    else:
        regular = _ring(by_node, nodes, wanted)
        if not crowded(regular, nodes, domains):
            return regular
        apart = _ring(_alternating(by_node, domains, max(wanted)), nodes, wanted)
    choices = [regular, apart]
    if crowded(apart, nodes, domains) and experts * len(nodes) <= LOOKED_AT:
        choices.append(_dealt_apart(nodes, wanted, domains))
    even = max(1, _unevenness(regular, len(nodes)))
    return min(
        (each for each in choices if _unevenness(each, len(nodes)) <= even),
        key=lambda each: (len(crowded(each, nodes, domains)), _crowding(each, nodes, domains)),
    )


def remove(placement: Placement, new_rank: dict[Rank, Rank]) -> Placement:
    """The placement without the ranks that have no new number. Order is kept, so the next backup leads."""
    return tuple(tuple(new_rank[rank] for rank in ranks if rank in new_rank) for ranks in placement)


def lost_experts(placement: Placement) -> tuple[int, ...]:
    """Experts that nobody holds."""
    return tuple(expert for expert, ranks in enumerate(placement) if not ranks)


def missing(placement: Placement, nodes: Sequence[NodeId], replicas: int) -> tuple[int, ...]:
    """Experts on fewer distinct nodes than `replicas`, or than there are."""
    wanted = min(replicas, len(set(nodes)))
    return tuple(
        expert for expert, ranks in enumerate(placement) if len({nodes[rank] for rank in ranks}) < wanted
    )


def repair(
    placement: Placement,
    nodes: Sequence[NodeId],
    replicas: int,
    newcomers: Sequence[Rank] = (),
    loads: Sequence[int] = (),
    full: Sequence[Rank] = (),
    domains: Domains = NOWHERE,
) -> Placement:
    """Fill gaps up to `replicas`, then give newcomers their share; nothing else moves.

    Ranks in `full` get nothing more; a gap that only they could fill stays.

    A gap goes to the rank with the fewest replicas (then the least load, then the lowest number) on a node that has
    none of that expert. A newcomer then takes over replicas from whoever has the most, until taking one more would
    not make things more even. With `domains`, a gap goes to a rank away from the other replicas while one has room for
    its share, and newcomers first take replicas that stand together with another one, and none that would.
    """
    shelf = _Shelf(placement, nodes, loads, domains=domains)
    wanted = min(replicas, len(set(nodes)))
    shelf.room = -(-sum(max(wanted, len(ranks)) for ranks in placement) // max(1, len(nodes)))
    shelf.fill_gaps(wanted, full)
    for newcomer in newcomers:
        while domains and shelf.part(newcomer):
            pass
        while shelf.take_over(newcomer):
            pass
    return shelf.placement()


def crowded(placement: Placement, nodes: Sequence[NodeId], domains: Domains) -> tuple[int, ...]:
    """Experts with two replicas in one domain, of whatever kind."""
    if not domains:
        return ()
    return tuple(
        expert
        for expert, ranks in enumerate(placement)
        if any(domains.shared(nodes[one], nodes[two]) for one, two in combinations(ranks, 2))
    )


def replica_counts(loads: Sequence[int], slots: int, floor: int, cap: int) -> tuple[int, ...]:
    """How many replicas each expert gets of `slots`: in proportion to load, at least `floor`, at most `cap`.

    After Lazarus: experts from the least to the most loaded, each gets its share of the room that is left, while
    the floor of those to come is set aside. Raises ValueError when there is no room for the floor.
    """
    if not 1 <= floor <= cap:
        raise ValueError(f"a floor of {floor} replicas does not fit under a cap of {cap}: use at most {cap}")
    if slots < len(loads) * floor:
        raise ValueError(f"{slots} slots are too few for {len(loads)} experts with {floor} replicas each")
    counts = [0] * len(loads)
    left = slots
    order = sorted(range(len(loads)), key=lambda expert: (loads[expert], expert))
    for place, expert in enumerate(order):
        to_come = order[place:]
        total = sum(loads[other] for other in to_come)
        share = left * loads[expert] // total if total else left // len(to_come)
        available = left - floor * (len(to_come) - 1)
        counts[expert] = min(max(share, floor), cap, available)
        left -= counts[expert]
    return tuple(counts)


def load_by_rank(placement: Placement, ranks: int, loads: Sequence[int]) -> tuple[float, ...]:
    """Expected load of each rank when an expert's tokens are divided evenly over its replicas."""
    total = [0.0] * ranks
    for holders, load in zip(placement, loads, strict=True):
        for rank in holders:
            total[rank] += load / len(holders)
    return tuple(total)


def copies(before: Placement, after: Placement) -> int:
    """Replicas of `after` that have to be copied from somewhere."""
    return sum(len(set(new) - set(old)) for old, new in zip(before, after, strict=True))


def _groupable(nodes: Sequence[NodeId], wanted: Sequence[int]) -> bool:
    by_node = _ranks_by_node(nodes)
    equal_nodes = len({len(ranks) for ranks in by_node.values()}) == 1
    return equal_nodes and len(set(wanted)) == 1 and len(by_node) % wanted[0] == 0


def _crowding(placement: Placement, nodes: Sequence[NodeId], domains: Domains) -> int:
    """Domains that replicas of one expert have in common, over all pairs."""
    return sum(
        domains.shared(nodes[one], nodes[two]) for ranks in placement for one, two in combinations(ranks, 2)
    )


def _unevenness(placement: Placement, ranks: int) -> int:
    """How many replicas the fullest rank has more than the emptiest."""
    held = Counter(rank for holders in placement for rank in holders)
    return max(held.values(), default=0) - min(held[Rank(rank)] for rank in range(ranks))


def _alternating(
    by_node: dict[NodeId, list[Rank]], domains: Domains, replicas: int
) -> dict[NodeId, list[Rank]]:
    """The nodes in a ring where those of one block are `replicas` places apart: every so many a place is filled."""
    blocks = domains.blocks(list(by_node))
    places = [place for first in range(replicas) for place in range(first, len(blocks), replicas)]
    ring = sorted(zip(places, blocks, strict=True))
    return {node: by_node[node] for _, node in ring}


def _dealt_apart(nodes: Sequence[NodeId], wanted: Sequence[int], domains: Domains) -> Placement:
    """Each rank has room for an even share, and each replica goes where most room is left, away from the others.

    For two replicas that is the way to pair things of many kinds so that no pair is of one kind: always from the two
    kinds of which most are left. What does not divide evenly is room where a domain has least of it.
    """
    total, ranks = sum(wanted), [Rank(rank) for rank in range(len(nodes))]

    def domain(rank: Rank) -> Path:
        return domains.of(nodes[rank]) or (nodes[rank],)

    share, extra = divmod(total, len(ranks))
    room = dict.fromkeys(ranks, share)
    waiting: dict[Path, deque[Rank]] = {}
    for rank in ranks:
        waiting.setdefault(domain(rank)[:1], deque()).append(rank)
    least_first = [(share * len(here), here[0], here) for here in waiting.values()]
    heapify(least_first)
    for _ in range(extra):
        has, rank, here = heappop(least_first)
        room[rank] += 1
        here.popleft()
        if here:
            heappush(least_first, (has + 1, here[0], here))
    left = Counter[Path]()
    for rank in ranks:
        left[domain(rank)] += room[rank]
    placement = []
    for count in wanted:
        chosen: list[Rank] = []
        for _ in range(count):
            taken = {nodes[rank] for rank in chosen}

            def cost(rank: Rank, taken: set[NodeId] = taken) -> tuple[bool, int, int, int, Rank]:
                near = domains.nearest(nodes[rank], taken)
                return room[rank] <= 0, near, -left[domain(rank)], -room[rank], rank

            best = min((rank for rank in ranks if nodes[rank] not in taken), key=cost)
            room[best] -= 1
            left[domain(best)] -= 1
            chosen.append(best)
        placement.append(tuple(chosen))
    return tuple(placement)


def _groups(by_node: dict[NodeId, list[Rank]], experts: int, replicas: int) -> Placement:
    """Neighbouring nodes form `replicas` groups; expert e stands at the same place of each, led by each in turn."""
    ranks = [rank for on_node in by_node.values() for rank in on_node]
    size = len(ranks) // replicas
    placement: list[tuple[Rank, ...]] = []
    for expert in range(experts):
        turn, place = divmod(expert, size)
        groups = [(turn + offset) % replicas for offset in range(replicas)]
        placement.append(tuple(ranks[group * size + place] for group in groups))
    return tuple(placement)


def _ring(by_node: dict[NodeId, list[Rank]], nodes: Sequence[NodeId], wanted: Sequence[int]) -> Placement:
    """Primaries in turn, node by node; the next replica on the next node of the ring, on its emptiest rank."""
    ring = list(by_node)
    held = [0] * len(nodes)
    placement: list[tuple[Rank, ...]] = []
    for expert, count in enumerate(wanted):
        start = expert % len(ring)
        chosen: list[Rank] = []
        for offset in range(count):
            node = ring[(start + offset) % len(ring)]
            rank = min(by_node[node], key=lambda rank: (held[rank], rank))
            chosen.append(rank)
            held[rank] += 1
        placement.append(tuple(chosen))
    shelf = _Shelf(tuple(placement), nodes, ())
    shelf.level()
    return shelf.placement()


def _packed(
    nodes: Sequence[NodeId], wanted: Sequence[int], loads: Sequence[int], domains: Domains
) -> Placement:
    """Heaviest share first, each replica to the least loaded rank among those with room."""
    empty = tuple(() for _ in wanted)
    shelf = _Shelf(empty, nodes, loads, wanted, domains)
    for expert in sorted(range(len(wanted)), key=lambda expert: (-loads[expert] / wanted[expert], expert)):
        for _ in range(wanted[expert]):
            shelf.add(expert, shelf.lightest(shelf.free_for(expert), expert))
    shelf.level()
    return shelf.placement()


def _ranks_by_node(nodes: Sequence[NodeId]) -> dict[NodeId, list[Rank]]:
    ranks: dict[NodeId, list[Rank]] = {}
    for rank, node in enumerate(nodes):
        ranks.setdefault(node, []).append(Rank(rank))
    return ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class _Move:
    expert: int
    donor: Rank


class _Shelf:
    """A placement while it is being made: who holds how much, and where one more may go."""

    def __init__(
        self,
        placement: Placement,
        nodes: Sequence[NodeId],
        loads: Sequence[int],
        wanted: Sequence[int] = (),
        domains: Domains = NOWHERE,
    ) -> None:
        self.holders = [list(ranks) for ranks in placement]
        self.nodes = nodes
        self.room = 0
        """An even share of replicas: nobody gets more for the sake of domains."""
        self._domains = domains
        replicas = wanted or [max(1, len(ranks)) for ranks in placement]
        self._share = (
            [load / count for load, count in zip(loads, replicas, strict=True)]
            if loads
            else [0.0] * len(placement)
        )
        self.held = [0] * len(nodes)
        self.load = [0.0] * len(nodes)
        for expert, ranks in enumerate(placement):
            for rank in ranks:
                self._count(expert, rank, 1)

    def add(self, expert: int, rank: Rank) -> None:
        self.holders[expert].append(rank)
        self._count(expert, rank, 1)

    def fill_gaps(self, wanted: int, full: Sequence[Rank] = ()) -> None:
        """Give experts more replicas until each has as many as wanted, as far as there are ranks that can hold one."""
        gaps = [expert for expert, ranks in enumerate(self.holders) if len(ranks) < wanted]
        if not gaps:
            return
        emptiest_first = sorted(
            (self.held[rank], self.load[rank], Rank(rank))
            for rank in set(range(len(self.nodes))).difference(full)
        )
        for expert in gaps:
            while len(self.holders[expert]) < wanted:
                place = self._place_for(expert, emptiest_first)
                if place is None:
                    break
                _, _, rank = emptiest_first.pop(place)
                self.add(expert, rank)
                insort(emptiest_first, (self.held[rank], self.load[rank], rank))

    def free_for(self, expert: int) -> list[Rank]:
        """Ranks on nodes that have none of this expert."""
        taken = {self.nodes[rank] for rank in self.holders[expert]}
        return [Rank(rank) for rank, node in enumerate(self.nodes) if node not in taken]

    def near(self, expert: int, rank: Rank, leaving: Rank | None = None) -> int:
        """Domains in common with the nearest replica of an expert, but for one that is to leave."""
        if not self._domains:
            return 0
        others = (self.nodes[each] for each in self.holders[expert] if each != leaving)
        return self._domains.nearest(self.nodes[rank], others)

    def _place_for(self, expert: int, emptiest_first: Sequence[tuple[int, float, Rank]]) -> int | None:
        """Where in the order the rank is that gets one more replica of an expert; None where nobody can hold it.

        Fewest replicas first: memory is what a rank has least of. While there is room, away from the others.
        """
        taken = {self.nodes[rank] for rank in self.holders[expert]}
        best, least = None, (True, len(self._domains.keys) + 1)
        for place, (held, _, rank) in enumerate(emptiest_first):
            if self.nodes[rank] in taken:
                continue
            cost = held >= self.room, self.near(expert, rank)
            if cost < least:
                best, least = place, cost
            if not cost[1] or cost[0] > least[0]:
                break  # nobody later in the order costs less
        return best

    def lightest(self, ranks: Sequence[Rank], expert: int) -> Rank:
        """Least load first, away from the others, among the ranks that have not an even share of replicas yet."""
        room = -(-(sum(self.held) + 1) // len(self.nodes))
        roomy = [rank for rank in ranks if self.held[rank] < room] or ranks
        return min(roomy, key=lambda rank: (self.near(expert, rank), self.load[rank], self.held[rank], rank))

    def part(self, newcomer: Rank) -> bool:
        """Move one replica that stands together with another to a newcomer that stands apart. False if there is none,
        or the newcomer has its share."""
        if self.held[newcomer] >= self.room:
            return False
        here = self.nodes[newcomer]
        for expert, ranks in enumerate(self.holders):
            if any(self.nodes[rank] == here for rank in ranks):
                continue
            crowded = [
                rank for rank in ranks if self.near(expert, rank, rank) > self.near(expert, newcomer, rank)
            ]
            if crowded:
                fullest = max(crowded, key=lambda rank: (self.held[rank], ranks.index(rank)))
                self._replace(_Move(expert=expert, donor=fullest), newcomer)
                return True
        return False

    def take_over(self, newcomer: Rank) -> bool:
        """Move one replica to a newcomer, if that makes the fullest rank less full. False when it would not."""
        move = self._move_to(newcomer)
        if move is None:
            return False
        self._replace(move, newcomer)
        return True

    def level(self) -> None:
        """Move single replicas from the fullest ranks to the emptiest while that helps. Each move helps, so it ends."""
        moved = max(self.held) - min(self.held) > 1
        while moved:
            moved = False
            for rank in sorted(range(len(self.nodes)), key=lambda rank: (self.held[rank], rank)):
                if self.take_over(Rank(rank)):
                    moved = True
                    break

    def placement(self) -> Placement:
        return tuple(tuple(ranks) for ranks in self.holders)

    def _move_to(self, receiver: Rank) -> _Move | None:
        """A replica of the fullest rank that has two more than the receiver and one that may go there."""
        enough, second_best = self.held[receiver] + 2, None
        giving = [rank for rank, held in enumerate(self.held) if held >= enough]
        for donor in sorted(giving, key=lambda rank: (-self.held[rank], -self.load[rank], rank)):
            heaviest_backup_first = sorted(
                (expert for expert, ranks in enumerate(self.holders) if donor in ranks),
                key=lambda expert: (self.holders[expert][0] == donor, -self._share[expert], expert),
            )
            for expert in heaviest_backup_first:
                others = {self.nodes[rank] for rank in self.holders[expert] if rank != donor}
                if receiver not in self.holders[expert] and self.nodes[receiver] not in others:
                    move = _Move(expert=expert, donor=Rank(donor))
                    if self.near(expert, receiver, move.donor) <= self.near(expert, move.donor, move.donor):
                        return move
                    second_best = second_best or move
        return second_best if self.held[receiver] == 0 else None

    def _replace(self, move: _Move, receiver: Rank) -> None:
        ranks = self.holders[move.expert]
        ranks[ranks.index(move.donor)] = receiver
        self._count(move.expert, move.donor, -1)
        self._count(move.expert, receiver, 1)

    def _count(self, expert: int, rank: Rank, by: int) -> None:
        self.held[rank] += by
        self.load[rank] += by * self._share[expert]
