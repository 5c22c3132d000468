"""How likely it is that several nodes die at once and nothing is lost: counted exactly, over the real placement.

Nothing is lost while every expert has a living replica and every stage a living trainer. So what kills a job is a set
of nodes that covers all holders of something; such sets are counted, none is drawn. The nodes die together, before
any replica is made again: with time in between, only the last one counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from math import comb

from orchestrator.core.ids import NodeId
from orchestrator.core.placement import Placement

LOSSES = (1, 2, 3)
"""Nodes that die at once."""


def holders(placement: Placement, nodes: Sequence[NodeId], stages: int = 1) -> frozenset[frozenset[NodeId]]:
    """The sets of nodes of which one must live: the holders of each expert, and of each stage's dense part.

    Ranks take stages in turn (`stages.seated`).
    """
    dense = (frozenset(nodes[stage::stages]) for stage in range(stages))
    return frozenset({*dense, *(frozenset(nodes[rank] for rank in ranks) for ranks in placement)})


def survival(needed: Iterable[frozenset[NodeId]], nodes: int, lost: int) -> float:
    """The share of all sets of `lost` of `nodes` nodes that leave one node of each needed set alive.

    Sets of one node are counted by a formula, larger ones by listing the few sets of dead nodes that cover them.
    """
    if lost >= nodes:
        return 0.0
    sets = set(needed)
    alone = {next(iter(each)) for each in sets if len(each) == 1}
    larger = [each for each in sets if 1 < len(each) <= lost and not each & alone]
    others = sorted({node for each in sets for node in each} - alone)
    deadly = {
        each | frozenset(more)
        for each in larger
        for more in combinations([node for node in others if node not in each], lost - len(each))
    }
    return (comb(nodes - len(alone), lost) - len(deadly)) / comb(nodes, lost)


def chances(placement: Placement, nodes: Sequence[NodeId], stages: int = 1) -> tuple[float, ...]:
    """The chance to lose nothing when 1, 2 or 3 nodes die at once, by `LOSSES`."""
    needed = holders(placement, nodes, stages)
    return tuple(survival(needed, len(set(nodes)), lost) for lost in LOSSES)
