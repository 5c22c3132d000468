"""Generations as they arrive: whole, packed, or as the difference from one that this agent holds.

The controller tells ten thousand agents of a generation that differs from the last one by a single member; so it sends
the difference, once made, to all. Here it becomes the whole generation again. Pure but for protobuf: no network.
Next: `wire.py`, which calls this; `orchestrator/service/assignments.py`, which makes the messages.
"""

from __future__ import annotations

import zlib

from protos import worker_pb2 as pb

HELD_LIMIT = 4
"""Generations that are kept to apply differences to; the one in force and a planned one are enough."""
UNPACKED_LIMIT_BYTES = 256 * 1024 * 1024
"""What a packed generation may become; ten thousand members take about one hundredth of it."""


class UnknownBase(Exception):
    """A difference from a generation that is not held here: the agent must register again and say what it holds."""


class Assignments:
    """The generations that one agent process has been told, newest last."""

    def __init__(self) -> None:
        self._held: dict[int, pb.Generation] = {}

    @property
    def held(self) -> tuple[int, ...]:
        """Numbers of the generations that differences may refer to."""
        return tuple(self._held)

    def whole(self, message: pb.Assign) -> pb.Generation:
        """The generation that an assignment tells, and remember it. Raises UnknownBase, ValueError for nonsense."""
        if message.HasField("difference"):
            generation = self._applied(message.difference)
        elif message.packed:
            generation = _unpacked(message.packed)
        else:
            generation = message.generation
        self._held.pop(generation.number, None)
        self._held[generation.number] = generation
        while len(self._held) > HELD_LIMIT:
            del self._held[next(iter(self._held))]
        return generation

    def _applied(self, difference: pb.GenerationDifference) -> pb.Generation:
        base = self._held.get(difference.base)
        if base is None:
            self._held.clear()
            raise UnknownBase(f"a difference from generation {difference.base}, which is not held here")
        generation = pb.Generation()
        generation.CopyFrom(difference.generation)
        removed = set(difference.removed)
        stay = [member for member in base.members if member.rank not in removed]
        new_rank = {member.rank: rank for rank, member in enumerate(stay)}
        generation.members.extend([*stay, *difference.added])
        for rank, member in enumerate(generation.members):
            member.rank = rank
        if not difference.HasField("placement"):
            raise ValueError("a difference says nothing of the placement")
        _place(generation, base, difference.placement, new_rank)
        if difference.microbatches:
            world = len(generation.members)
            generation.deal.extend(
                pb.Microbatches(indices=range(rank, difference.microbatches, world)) for rank in range(world)
            )
        return generation


def _place(
    generation: pb.Generation,
    base: pb.Generation,
    said: pb.PlacementDifference,
    new_rank: dict[int, int],
) -> None:
    """The base's placement without those who left, but for the experts that are named."""
    for held in base.placement:
        ranks = [new_rank[rank] for rank in held.ranks if rank in new_rank]
        generation.placement.append(pb.Ranks(ranks=ranks))
    for expert, changed in said.experts.items():
        if not 0 <= expert < len(generation.placement):
            raise ValueError(f"a difference places expert {expert} of {len(generation.placement)}")
        generation.placement[expert].CopyFrom(changed)


def _unpacked(packed: bytes) -> pb.Generation:
    """Raises ValueError."""
    opened = zlib.decompressobj()
    try:
        data = opened.decompress(packed, UNPACKED_LIMIT_BYTES)
        if opened.unconsumed_tail or not opened.eof:
            raise ValueError(f"a packed generation is torn, or larger than {UNPACKED_LIMIT_BYTES} bytes")
        return pb.Generation.FromString(data)
    except zlib.error as error:
        raise ValueError(f"a packed generation cannot be unpacked: {error}") from error
