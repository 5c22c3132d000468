"""A generation of the controller as one trainer sees it. Pure. Next: `machine.py`."""

from __future__ import annotations

from worker.agent.controller_messages import Generation
from worker.agent.messages import Assignment


def seat_of(generation: Generation, rank: int) -> Assignment:
    """The assignment for the member `rank`, or with rank -1 for a trainer that only has to know the number."""
    return Assignment(
        number=generation.number,
        kind=generation.kind,
        rank=rank,
        members=generation.members,
        placement=generation.placement,
        deal=generation.deal,
        restore_name=generation.restore_name,
        restore_step=generation.restore_step,
        restore_shards=generation.restore_shards,
        reason=generation.reason,
    )
