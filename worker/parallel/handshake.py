"""The first thing in a new generation: who stands where, and from where all go on.

Each member states its last committed step, whether it holds the reduced gradients of the next one, the newest
tally that it got out of a vote, and the version of every part that it must hold. One all-gather, then the same pure
rule everywhere (`resume_from`):

- The highest committed step is the truth; nothing is rolled back.
- If anybody left the vote of the step after a member's state (it committed it, or holds its tally), every old
  member entered that vote and so holds its reduced gradients: all complete the step from them. Else it is redone.
- A member that lacks a part, or has an older version of it, receives it from the lowest rank that has it.

Why no committed step is lost: docs/PROTOCOL.md. Next: `training/regroup.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from worker.parallel.groups import Group

ABSENT = -1
"""Version of a part that a member does not hold or need not hold."""


class PartLost(Exception):
    """Nobody in the generation holds a part at the version that all go on from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One member's statement. `versions` is by part: dense first (of each stage), then expert 0, 1, ..."""

    committed: int
    ready: int
    """Step whose reduced gradients this member holds; `ABSENT` if none."""
    tally_step: int
    """Step of the newest vote that this member left; `ABSENT` if none."""
    tally: tuple[float, ...]
    """What that vote said; any values where there was none."""
    versions: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """One part goes from one member to another."""

    part: int
    """By its number: dense parts first, then experts."""
    source: int
    to: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumption:
    """From where everybody goes on."""

    committed: int
    """The step that all stand at when the resumption has been carried out."""
    tally: tuple[float, ...] | None
    """If not None, members at `committed - 1` first complete `committed` from the gradients that they hold."""
    transfers: tuple[Transfer, ...]


def exchange_standings(group: Group, mine: Standing) -> list[Standing]:
    """Everybody's statement, by rank."""
    header = (mine.committed, mine.ready, mine.tally_step)
    row = torch.tensor([*header, *mine.versions, *mine.tally], dtype=torch.float64)
    gathered = group.all_gather(group.to_device(row))
    group.settle()
    return [_standing(values.tolist(), len(mine.versions)) for values in gathered]


def _standing(values: list[float], parts: int) -> Standing:
    committed, ready, tally_step = (int(value) for value in values[:3])
    return Standing(
        committed=committed,
        ready=ready,
        tally_step=tally_step,
        tally=tuple(values[3 + parts :]),
        versions=tuple(int(value) for value in values[3 : 3 + parts]),
    )


def resume_from(
    standings: Sequence[Standing], placement: Sequence[Sequence[int]], stage_of_rank: Sequence[int] = ()
) -> Resumption:
    """The rule. `standings` by rank; `placement` of the new generation, expert -> ranks; the stage of each rank, where
    there is more than one.

    Raises PartLost when no member holds some part at the step that the generation goes on from.
    """
    highest = max(standing.committed for standing in standings)
    committed = max(highest, *(standing.tally_step for standing in standings))
    assert committed <= highest + 1, "a vote can be one step ahead of the commits at most"
    behind = any(_completes(standing, committed) for standing in standings)
    tally = next((s.tally for s in standings if s.tally_step == committed), None)
    assert tally is not None or not behind, "whoever committed a step holds its tally"
    reached = [_reached(standing, committed) for standing in standings]
    return Resumption(
        committed=committed,
        tally=tally if behind else None,
        transfers=_transfers(reached, placement, stage_of_rank or (0,) * len(standings), committed),
    )


def _completes(standing: Standing, committed: int) -> bool:
    """An old member that holds the gradients of the step that others left the vote of."""
    return standing.committed == committed - 1 and standing.ready == committed


def _reached(standing: Standing, committed: int) -> tuple[int, ...]:
    """Versions once held gradients have been applied."""
    if not _completes(standing, committed):
        return standing.versions
    return tuple(committed if version == committed - 1 else version for version in standing.versions)


def _transfers(
    reached: Sequence[tuple[int, ...]],
    placement: Sequence[Sequence[int]],
    stage_of_rank: Sequence[int],
    committed: int,
) -> tuple[Transfer, ...]:
    transfers: list[Transfer] = []
    stages = len(reached[0]) - len(placement)
    dense = [tuple(r for r, its in enumerate(stage_of_rank) if its == stage) for stage in range(stages)]
    holders_by_part = [*dense, *map(tuple, placement)]
    for part, must_hold in enumerate(holders_by_part):
        have = [rank for rank, versions in enumerate(reached) if versions[part] == committed]
        lack = [rank for rank in must_hold if reached[rank][part] != committed]
        if lack and not have:
            name = _described(part, stages)
            raise PartLost(f"no member of the generation holds {name} at step {committed}")
        transfers.extend(Transfer(part=part, source=have[0], to=rank) for rank in lack)
    return tuple(transfers)


def _described(part: int, stages: int) -> str:
    if part >= stages:
        return f"expert {part - stages}"
    return "dense" if stages == 1 else f"dense of stage {part}"
