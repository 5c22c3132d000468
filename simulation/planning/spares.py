"""How many spare nodes are enough: the fewest with which seats stay empty for want of a node rarely enough.

Counted on the failures themselves, with no game: a seat is empty for want of a node while more nodes are away than
there are spares. Seconds for seating a spare come on top, and are in the game. Next: `failures.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from simulation.planning.failures import Failure, draw
from simulation.planning.scenario import Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class SpareRow:
    """With so many spares, seats are empty in this share of the time."""

    spare_nodes: int
    missing_seats_share: float


def spares_needed(scenario: Scenario, folder: Path, seed: int) -> tuple[SpareRow, ...]:
    """One row for each number of spares, from none to the first that is enough. A trace stays as it is."""
    rows = []
    for spares in range(scenario.cluster.nodes + 1):
        cluster = replace(scenario.cluster, spare_nodes=spares)
        if scenario.failures.trace:
            failures = draw(scenario, folder, seed)
        else:
            failures = draw(replace(scenario, cluster=cluster), folder, seed)
        share = missing_seats_share(failures, spares, scenario.seconds)
        rows.append(SpareRow(spare_nodes=spares, missing_seats_share=share))
        if share <= scenario.goals.missing_seats_share:
            break
    return tuple(rows)


def missing_seats_share(failures: Sequence[Failure], spares: int, seconds: float) -> float:
    """The share of the time in which more nodes are away than there are spares."""
    changes = []
    for failure in failures:
        for back_at in failure.back_at:
            changes += [(failure.at, 1), (min(back_at, seconds), -1)]
    away, since, missing = 0, 0.0, 0.0
    for at, change in sorted(changes):
        if away > spares:
            missing += at - since
        away, since = away + change, at
    return missing / seconds
