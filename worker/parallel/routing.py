"""Who serves whom: from a placement of experts to one destination per (source rank, expert).

Pure and without torch. Every rank computes the same table from the same placement. What must not live here: tokens
(`dispatch.py` moves them) and the choice of a placement (the controller makes it).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

Placement = Sequence[Sequence[int]]
"""Ranks that hold a replica of expert e, the primary first."""


class RoutingError(ValueError):
    """A placement that cannot be served."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What one rank must know in order to exchange tokens."""

    group: tuple[int, ...]
    """The exchange group: the ranks that this rank's tokens and answers can reach, step by step; ascending."""
    held: tuple[int, ...]
    """Experts held here, ascending."""
    target_E: tuple[int, ...]
    """For each expert, who serves it to this rank: an index into `group`."""


def plan_route(placement: Placement, node_of_rank: Sequence[int | str], rank: int) -> Route:
    """The route of `rank`. Every rank gets the same table, so the members of a group agree on it.

    Raises RoutingError for a placement that cannot be served.
    """
    table = route(placement, node_of_rank, len(node_of_rank))
    group = next(group for group in exchange_groups(table) if rank in group)
    index = {member: place for place, member in enumerate(group)}
    return Route(
        group=group,
        held=held_experts(placement, rank),
        target_E=tuple(index[target] for target in table[rank]),
    )


def exchange_groups(table: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """The connected parts of who-serves-whom: no token leaves its part, so no part need wait for another."""
    group_of = list(range(len(table)))
    for source, targets in enumerate(table):
        for target in set(targets):
            joined, other = group_of[source], group_of[target]
            if joined != other:
                group_of = [joined if group == other else group for group in group_of]
    return tuple(
        tuple(rank for rank, group in enumerate(group_of) if group == wanted)
        for wanted in dict.fromkeys(group_of)
    )


def held_experts(placement: Placement, rank: int) -> tuple[int, ...]:
    """Global ids, ascending, of the experts that `rank` holds."""
    return tuple(expert for expert, ranks in enumerate(placement) if rank in ranks)


def route(placement: Placement, node_of_rank: Sequence[int | str], world: int) -> tuple[tuple[int, ...], ...]:
    """Destination rank for each source rank and expert: `table[source][expert]`.

    A replica on the source's own rank serves it; else one on its own node; else any. Where there is a choice, the
    replica that serves the fewest sources of this expert takes the next one (so that an expert with more replicas is
    spread over all of them), then one of the source's own column (so that tokens stay among few ranks), then the rank
    that serves least in all, then the order of the placement. Experts with the fewest replicas are settled first: the
    others can still go around the ranks that those load.
    """
    _check(placement, node_of_rank, world)
    column = _columns(placement, world)
    table = [[-1] * len(placement) for _ in range(world)]
    served_W = [0] * world
    for expert in sorted(range(len(placement)), key=lambda expert: (len(placement[expert]), expert)):
        served = dict.fromkeys(placement[expert], 0)
        offers = [_near(placement[expert], source, node_of_rank) for source in range(world)]
        # The bound sources first: those that are free to choose then even out what the bound ones left uneven.
        for source in sorted(
            range(world),
            key=lambda source: (not offers[source], len(offers[source]), *column[source], source),
        ):
            candidates = offers[source] or placement[expert]
            loads = [
                (served[rank], column[rank][1] != column[source][1], served_W[rank]) for rank in candidates
            ]
            chosen = candidates[loads.index(min(loads))]
            table[source][expert] = chosen
            served[chosen] += 1
            served_W[chosen] += 1
    return tuple(tuple(row) for row in table)


def _columns(placement: Placement, world: int) -> list[tuple[int, int]]:
    """For each rank its row and its column, where twins (ranks that hold the same experts) stand in one row.

    The first of all twins form column 0, the second ones column 1, as long as no row has run out; whoever is left is
    counted to the columns in turn. Where replicas lie in groups, a column is a group, and after losses it still holds
    every expert. Rows are numbered by place in the column, so that sources ordered by (row, column) take turns.
    """
    held = [held_experts(placement, rank) for rank in range(world)]
    twins = Counter(held)
    columns = min((count for experts, count in twins.items() if experts), default=1)
    seen: Counter[tuple[int, ...]] = Counter()
    rows: Counter[int] = Counter()
    found: list[tuple[int, int]] = []
    for experts in held:
        column = seen[experts] % columns
        seen[experts] += 1
        found.append((rows[column], column))
        rows[column] += 1
    return found


def _near(ranks: Sequence[int], source: int, node_of_rank: Sequence[int | str]) -> Sequence[int]:
    """The replicas that a source should prefer: its own, else those on its node, else none in particular."""
    if source in ranks:
        return (source,)
    return [rank for rank in ranks if node_of_rank[rank] == node_of_rank[source]]


def _check(placement: Placement, node_of_rank: Sequence[int | str], world: int) -> None:
    if len(node_of_rank) != world:
        raise RoutingError(f"{len(node_of_rank)} nodes named for {world} ranks: name the node of every rank")
    for expert, ranks in enumerate(placement):
        if not ranks:
            raise RoutingError(f"expert {expert} has no living replica: restore it before ranks are seated")
        if len(set(ranks)) != len(ranks) or not all(0 <= rank < world for rank in ranks):
            raise RoutingError(
                f"expert {expert} is placed on {tuple(ranks)}: distinct ranks below {world} are needed"
            )
