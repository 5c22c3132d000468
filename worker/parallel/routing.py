"""Who serves whom: from a placement of experts to one destination per (source rank, expert).

Pure and without torch. Every rank computes the same table from the same placement. What must not live here: tokens
(`dispatch.py` moves them) and the choice of a placement (the controller makes it).
"""

from __future__ import annotations

from collections.abc import Sequence

Placement = Sequence[Sequence[int]]
"""Ranks that hold a replica of expert e, the primary first."""


class RoutingError(ValueError):
    """A placement that cannot be served."""


def held_experts(placement: Placement, rank: int) -> tuple[int, ...]:
    """Global ids, ascending, of the experts that `rank` holds."""
    return tuple(expert for expert, ranks in enumerate(placement) if rank in ranks)


def route(placement: Placement, node_of_rank: Sequence[int | str], world: int) -> tuple[tuple[int, ...], ...]:
    """Destination rank for each source rank and expert: `table[source][expert]`.

    A replica on the source's own rank serves it; else one on its own node; else any. Where there is a choice, the
    replica that serves the fewest sources of this expert takes the next one (so that an expert with more replicas is
    spread over all of them), then the rank that serves least in all, then the order of the placement. Experts with
    the fewest replicas are settled first: the others can still go around the ranks that those load.
    """
    _check(placement, node_of_rank, world)
    table = [[-1] * len(placement) for _ in range(world)]
    served_W = [0] * world
    for expert in sorted(range(len(placement)), key=lambda expert: (len(placement[expert]), expert)):
        served = dict.fromkeys(placement[expert], 0)
        offers = [_near(placement[expert], source, node_of_rank) for source in range(world)]
        # The bound sources first: those that are free to choose then even out what the bound ones left uneven.
        for source in sorted(
            range(world), key=lambda source: (not offers[source], len(offers[source]), source)
        ):
            candidates = offers[source] or placement[expert]
            loads = [(served[rank], served_W[rank]) for rank in candidates]
            chosen = candidates[loads.index(min(loads))]
            table[source][expert] = chosen
            served[chosen] += 1
            served_W[chosen] += 1
    return tuple(tuple(row) for row in table)


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
