"""Who stands where in a generation: ranks by stage, and one stage's placement in numbers of its own. Pure, no torch.

A seat is (stage, data index): the data index is a rank's place among the ranks of its stage. Inside a stage members
number themselves by it, so that dispatch and reduction know nothing of other stages. Next: `routing.py`, `pipeline.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Placement = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """The seats of a generation as one of its members sees them."""

    stage: int
    index: int
    """Data index of this member."""
    ranks: tuple[tuple[int, ...], ...]
    """Stage -> ranks, ascending."""
    placement: Placement
    """Of this stage's experts, numbered within a layer, on data indices."""

    @property
    def members(self) -> tuple[int, ...]:
        """Ranks of this member's stage."""
        return self.ranks[self.stage]


def mesh_of(stage_of_rank: Sequence[int], placement: Sequence[Sequence[int]], stages: int, rank: int) -> Mesh:
    """The seats as `rank` sees them. `placement` is of all stages' experts, stage by stage, on ranks."""
    ranks = tuple(tuple(r for r, its in enumerate(stage_of_rank) if its == stage) for stage in range(stages))
    assert all(ranks), f"a stage without a seat: {stage_of_rank} for {stages} stages"
    stage = stage_of_rank[rank]
    index = {member: place for place, member in enumerate(ranks[stage])}
    experts = len(placement) // stages
    return Mesh(
        stage=stage,
        index=index[rank],
        ranks=ranks,
        placement=tuple(
            tuple(index[holder] for holder in placement[expert])
            for expert in range(stage * experts, (stage + 1) * experts)
        ),
    )
