"""A generation on its way to thousands of agents: serialised once, and small for those who hold an older one.

All agents are told the whole membership, and nearly all of them know nearly all of it already. So an agent that holds a
generation gets the difference from it, others the whole, compressed when it is long; either is made once and the same
bytes go to everybody. Nothing is decided here: what the agent puts together is the generation, field by field.
Next: `worker_api.py`, which sends this; `worker/agent/assignments.py`, which puts it together.
"""

from __future__ import annotations

import zlib
from typing import TypeVar

from orchestrator.core.deal import deal
from orchestrator.core.ids import GenerationNumber, Rank, Step
from orchestrator.core.state import Generation, Member
from orchestrator.service import wire
from protos import worker_pb2 as pb

RECENT_LIMIT = 8
"""Generations that a difference may start from, and messages that are kept to be sent again."""
PACKED_FROM_BYTES = 16 * 1024
"""A whole generation is compressed from this size on."""
PACK_LEVEL = 1
"""Fast: addresses and names that differ in a digit shrink well at any level."""

K = TypeVar("K")
V = TypeVar("V")


class Assignments:
    """Serialised `Assign` messages. One thread uses it: the controller's."""

    def __init__(self) -> None:
        self._recent: dict[GenerationNumber, Generation] = {}
        self._messages: dict[tuple[GenerationNumber, GenerationNumber], pb.Assign] = {}
        self._bodies: dict[tuple[GenerationNumber, GenerationNumber, Step], bytes] = {}

    def message(
        self, generation: Generation, reported_through: Step, holds: tuple[GenerationNumber, ...]
    ) -> bytes:
        """A serialised ControllerMessage for an agent that holds the generations of these numbers, newest last."""
        self._remember(generation)
        base = next((self._recent[each] for each in reversed(holds) if each in self._recent), None)
        since = base.number if base is not None else GenerationNumber(0)
        body = self._bodies.get((since, generation.number, reported_through))
        if body is None:
            assign = self._assign(generation, base, since)
            assign.reported_through, assign.number = reported_through, generation.number
            body = pb.ControllerMessage(assign=assign).SerializeToString()
            _keep(self._bodies, (since, generation.number, reported_through), body)
        return body

    def _remember(self, generation: Generation) -> None:
        """A number means one membership; should it ever mean another, nothing made for the first is sent again."""
        known = self._recent.get(generation.number)
        if known is generation:
            return
        if known is not None and not same_assignment(known, generation):
            self._messages.clear()
            self._bodies.clear()
        _keep(self._recent, generation.number, generation)

    def _assign(self, generation: Generation, base: Generation | None, since: GenerationNumber) -> pb.Assign:
        known = self._messages.get((since, generation.number))
        if known is None:
            less = difference(base, generation) if base is not None else None
            known = pb.Assign(difference=less) if less is not None else whole(generation)
            _keep(self._messages, (since, generation.number), known)
        return known


def whole(generation: Generation) -> pb.Assign:
    """All of a generation, compressed when it is long."""
    message = wire.generation(generation)
    data = message.SerializeToString()
    if len(data) < PACKED_FROM_BYTES:
        return pb.Assign(generation=message)
    return pb.Assign(packed=zlib.compress(data, PACK_LEVEL))


def difference(base: Generation, new: Generation) -> pb.GenerationDifference | None:
    """What turns `base` into `new`; None where it would not be much shorter than the whole."""
    if len(base.placement) != len(new.placement):
        return None
    removed, stay = _removed(base.members, new.members)
    added = new.members[stay:]
    if 2 * (len(removed) + len(added)) > len(new.members):
        return None
    gone = set(removed)
    staying = [member.rank for member in base.members if member.rank not in gone]
    new_rank = {old: Rank(rank) for rank, old in enumerate(staying)}
    changed = {
        expert: pb.Ranks(ranks=after)
        for expert, (before, after) in enumerate(zip(base.placement, new.placement, strict=True))
        if tuple(new_rank[rank] for rank in before if rank in new_rank) != after
    }
    rest = wire.generation(new, members=False, placement=False)
    microbatches = sum(map(len, new.deal))
    in_turn = microbatches > 0 and new.deal == deal(microbatches, len(new.members))
    if in_turn:
        rest.ClearField("deal")
    return pb.GenerationDifference(
        base=base.number,
        removed=removed,
        added=[wire.member(member) for member in added],
        placement=pb.PlacementDifference(experts=changed),
        microbatches=microbatches if in_turn else 0,
        generation=rest,
    )


def _removed(before: tuple[Member, ...], after: tuple[Member, ...]) -> tuple[list[Rank], int]:
    """Ranks of those who left, and how many members of `after` are old ones in their old order, from the first on."""
    removed, stay = [], 0
    for member in before:
        if stay < len(after) and _same_seat(member, after[stay]):
            stay += 1
        else:
            removed.append(member.rank)
    return removed, stay


def _same_seat(one: Member, other: Member) -> bool:
    return one is other or (
        one.trainer == other.trainer
        and one.start == other.start
        and one.stage == other.stage
        and one.store_address == other.store_address
        and one.peer_address == other.peer_address
    )


def same_assignment(one: Generation, other: Generation) -> bool:
    """Both would be told in the same words; when it came into force is not among them."""
    return wire.generation(one) == wire.generation(other)


def _keep(kept: dict[K, V], key: K, value: V) -> None:
    """Add to a bounded memory; the oldest goes."""
    kept[key] = value
    while len(kept) > RECENT_LIMIT:
        del kept[next(iter(kept))]
