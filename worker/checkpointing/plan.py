"""Who writes which piece of the state, so that nothing is written twice and every rank writes about as much.

PURE and deterministic: each rank computes the whole plan from the placement and takes its own row. Experts are cut
over the ranks that hold them, the dense part (which everyone holds) fills the ranks up to one level. `writer` writes
a row, `manifest.coverage_faults` checks that the rows together are complete.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from worker.checkpointing.manifest import Piece
from worker.checkpointing.names import DENSE, expert_part

# An expert is dealt in this many units to its replicas: with fewer, ranks differ by more than an eighth of an expert;
# with more, the plan costs more for a difference that no disk notices.
UNITS = 8


def plan_shards(
    placement: Mapping[int, Sequence[int]], world: int, lengths: Mapping[str, int]
) -> tuple[tuple[Piece, ...], ...]:
    """The pieces of each rank, by rank; a rank with an empty row writes no shard.

    `placement` maps an expert to the ranks that hold it, the primary first; `lengths` maps each part to its elements.
    Where the dense part is frozen and not saved, it is in neither.
    """
    assert world >= 1
    assert set(lengths) - {DENSE} == {expert_part(expert) for expert in placement}
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
    start = 0
    for rank, share in enumerate(_fill_up(loads, lengths.get(DENSE, 0))):
        if share:
            rows[rank].insert(0, Piece(part=DENSE, start=start, stop=start + share))
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
