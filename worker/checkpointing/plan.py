"""Who writes which piece of the state, so that nothing is written twice and every rank writes about as much.

PURE and deterministic: each rank computes the whole plan from the placement and takes its own row. Experts are cut
over the ranks that hold them, a dense part (which all of its stage hold) fills these up to one level. `writer` writes
a row, `manifest.coverage_faults` checks that the rows together are complete.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from worker.checkpointing.manifest import Piece
from worker.checkpointing.names import dense_part, dense_stage, expert_part

# An expert is dealt in this many units to its replicas: with fewer, ranks differ by more than an eighth of an expert;
# with more, the plan costs more for a difference that no disk notices.
UNITS = 8


def plan_shards(
    placement: Mapping[int, Sequence[int]],
    world: int,
    lengths: Mapping[str, int],
    stage_of_rank: Sequence[int] = (),
) -> tuple[tuple[Piece, ...], ...]:
    """The pieces of each rank, by rank; a rank with an empty row writes no shard.

    `placement` maps an expert to the ranks that hold it, the primary first; `lengths` maps each part to its elements;
    `stage_of_rank` says whose dense part each rank holds, where there is more than one. What is frozen and not saved is
    in neither.
    """
    assert world >= 1
    dense = [stage for part in lengths if (stage := dense_stage(part)) is not None]
    assert set(lengths) == {*map(dense_part, dense), *map(expert_part, placement)}
    rows: list[list[Piece]] = [[] for _ in range(world)]
    shares = _deal_experts(placement, world, lengths)
    loads = [0] * world
    for expert in sorted(placement):
        part = expert_part(expert)
        begun = 0
        for rank, units in zip(placement[expert], shares[expert], strict=True):
            start = lengths[part] * begun // UNITS
            begun += units
            stop = lengths[part] * begun // UNITS
            if stop > start:
                rows[rank].append(Piece(part=part, start=start, stop=stop))
                loads[rank] += stop - start
    for stage in dense:
        ranks = [rank for rank in range(world) if not stage_of_rank or stage_of_rank[rank] == stage]
        part, start = dense_part(stage), 0
        for rank, share in zip(ranks, _fill_up([loads[r] for r in ranks], lengths[part]), strict=True):
            if share:
                rows[rank].insert(0, Piece(part=part, start=start, stop=start + share))
                start += share
    return tuple(tuple(row) for row in rows)


def _deal_experts(
    placement: Mapping[int, Sequence[int]], world: int, lengths: Mapping[str, int]
) -> dict[int, list[int]]:
    """Units of each expert for each of its ranks, in placement order; each unit goes to the least loaded replica."""
    loads = [0] * world
    shares: dict[int, list[int]] = {}
    for expert in placement:
        ranks = placement[expert]
        assert ranks and all(0 <= rank < world for rank in ranks) and len(set(ranks)) == len(ranks)
        shares[expert] = [0] * len(ranks)
    for _ in range(UNITS):
        for expert in sorted(placement):
            ranks = placement[expert]
            seat = min(range(len(ranks)), key=lambda index: (loads[ranks[index]], index))
            shares[expert][seat] += 1
            loads[ranks[seat]] += lengths[expert_part(expert)]
    return shares


def _fill_up(loads: Sequence[int], amount: int) -> list[int]:
    """Shares that sum to `amount` and raise the lowest loads to one common level, as water would."""
    low, high = 0, max(loads) + amount
    while low < high:
        level = (low + high) // 2
        if sum(max(0, level - load) for load in loads) >= amount:
            high = level
        else:
            low = level + 1
    shares = [max(0, low - load) for load in loads]
    surplus = sum(shares) - amount
    for rank, share in enumerate(shares):
        taken = min(surplus, 1, share)
        shares[rank] -= taken
        surplus -= taken
    assert surplus == 0
    return shares
