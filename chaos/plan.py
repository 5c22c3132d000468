"""From a seed to runs: how many nodes, which faults, in which moments. Pure: a seed gives the same plan anywhere.

Kinds come from a shuffled deck, so each has its turn before any has its second. What a machine cannot do is left out
when the run is played, not when it is drawn. Next: `strikes.py`, which carries strikes out.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chaos.kinds import TRAITS, Kind

NODES = (4, 8)
MOST_STRIKES = 4
LIVING = 3
"""So many nodes are left at least: two replicas on distinct nodes, and one more to die of something else."""
REPLICAS = (2, 2, 2, 3)
RACK_NODES = 2
"""Nodes that stand in one rack, where a run has racks."""
STEP_PHASES = ("forward", "dispatch", "backward", "reduce", "vote", "boundary")
RECOVERY_PHASES = ("regroup", "acquire")


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """One fault, drawn; `pick` values choose among what is there when it strikes."""

    kind: Kind
    after_steps: int
    """Committed steps between the rest before and this strike."""
    after_seconds: float
    """Then this long into whatever is going on."""
    picks: tuple[float, float, float]
    """In [0, 1): victims, phases, durations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """One run: a cluster and the strikes that it suffers, one after the other."""

    number: int
    """From 1; with the seed it names the run."""
    nodes: int
    spares: int
    replicas: int
    strikes: tuple[Strike, ...]
    stages: int = 1
    """Of a pipeline; more than one where the strikes leave each stage as many nodes as an expert has replicas."""

    @property
    def kinds(self) -> frozenset[Kind]:
        return frozenset(each.kind for each in self.strikes)

    @property
    def racks(self) -> tuple[tuple[str, ...], ...]:
        """The nodes of each rack, neighbours by name; none in a run that loses no rack."""
        if Kind.RACK not in self.kinds:
            return ()
        names = [f"node-{number}" for number in range(1, self.nodes + self.spares + 1)]
        return tuple(tuple(names[first : first + RACK_NODES]) for first in range(0, len(names), RACK_NODES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What may be drawn."""

    kinds: tuple[Kind, ...] = tuple(Kind)
    nodes: tuple[int, int] = NODES
    most_strikes: int = MOST_STRIKES
    most_stages: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A fixed part of what a seed draws."""

    seed: int
    runs: int
    draw: Draw


SHORT = Part(seed=4571, runs=4, draw=Draw(nodes=(4, 6), most_strikes=7, most_stages=2))
"""Every kind at least once, with pipelines and without, in as few and as small runs as could be found; for
continuous integration."""


def runs(seed: int, draw: Draw) -> Iterator[RunPlan]:
    """All runs of a seed, without end."""
    source = random.Random(seed)
    deck: list[Kind] = []
    number = 0
    while True:
        number += 1
        nodes = source.randint(*draw.nodes)
        replicas = min(source.choice(REPLICAS), nodes)
        spares = source.randint(0, 2)
        if len(deck) < draw.most_strikes:
            deck += _shuffled(source, draw.kinds)
        chosen = _deal(deck, nodes + spares - max(LIVING, replicas), draw.most_strikes)
        chosen.sort(
            key=lambda kind: kind is not Kind.RACK
        )  # while all racks stand, replicas can be kept apart
        lost = sum(TRAITS[kind].nodes_lost for kind in chosen)
        yield RunPlan(
            number=number,
            nodes=nodes,
            spares=spares,
            replicas=replicas,
            strikes=tuple(_strike(source, kind) for kind in chosen),
            stages=_stages(seed, number, draw.most_stages, min(nodes, nodes + spares - lost) // replicas),
        )


def _stages(seed: int, number: int, most: int, room: int) -> int:
    """Drawn beside all else, so that a seed's strikes are the same with stages and without."""
    return min(random.Random(f"{seed}/{number}/stages").randint(1, most), max(1, room))


def _shuffled(source: random.Random, kinds: Sequence[Kind]) -> list[Kind]:
    return source.sample(list(kinds), len(kinds))


def _deal(deck: list[Kind], may_die: int, most: int) -> list[Kind]:
    """Take the first kinds that the cluster has nodes for; those that it has not wait for a larger one."""
    chosen: list[Kind] = []
    for kind in tuple(deck):
        if len(chosen) == most:
            break
        lost = TRAITS[kind].nodes_lost
        if kind is Kind.RACK and kind in chosen:
            continue  # with a rack gone the others may be too few to keep replicas apart
        if lost <= may_die or not lost:
            may_die -= lost
            chosen.append(kind)
            deck.remove(kind)
    return chosen


def _strike(source: random.Random, kind: Kind) -> Strike:
    return Strike(
        kind=kind,
        after_steps=source.randint(3, 12),
        after_seconds=source.uniform(0.0, 0.3),
        picks=(source.random(), source.random(), source.random()),
    )
