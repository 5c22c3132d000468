"""Which saved state a restore goes back to: the newest consistent one, wherever it lies, and why in words.

Two tiers: a snapshot in host memory, whole while some living agent holds each of its shards, and the newest sealed
checkpoint. The greater step wins; of two at the same step the snapshot, which is nearer. A damaged or refused one of
either tier does not count any more, so that the next one is used. Next: `ladder.py`, `restore.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from orchestrator.core import checkpoints, snapshots
from orchestrator.core.held import ShardSource
from orchestrator.core.ids import Step
from orchestrator.core.snapshots import Snapshot
from orchestrator.core.state import Checkpoint, ClusterState
from orchestrator.core.words import count


class Tier(Enum):
    MEMORY = "host memory"
    STORAGE = "checkpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What a restore goes back to."""

    tier: Tier
    name: str
    step: Step
    shards: tuple[ShardSource, ...] = ()
    """Of a snapshot."""
    why: str = ""
    """Why this one and not another, in words."""

    def __str__(self) -> str:
        where = " in host memory" if self.tier is Tier.MEMORY else ""
        return f"{self.name}{where}{f' ({self.why})' if self.why else ''}"


def newest(state: ClusterState) -> Saved | None:
    """The newest consistent saved state; None when there is only the seed."""
    held, checkpoint = snapshots.known(state), checkpoints.newest(state)
    snapshot = next((each for each in held if each.whole), None)
    if snapshot is not None and (checkpoint is None or snapshot.step >= checkpoint.step):
        return Saved(
            tier=Tier.MEMORY,
            name=snapshot.name,
            step=snapshot.step,
            shards=snapshot.sources,
            why=f"{_all_there(snapshot)}; {_other(checkpoint)}",
        )
    if checkpoint is None:
        return None
    why = _why_not_memory(held[0], checkpoint) if held else ""
    return Saved(tier=Tier.STORAGE, name=checkpoint.name, step=checkpoint.step, why=why)


def _all_there(snapshot: Snapshot) -> str:
    each = "it has" if snapshot.shards == 1 else "each of them has"
    return f"{count(snapshot.shards, 'shard')}, {each} a living holder"


def _other(checkpoint: Checkpoint | None) -> str:
    if checkpoint is None:
        return "no checkpoint is sealed"
    return f"the newest checkpoint is {checkpoint.name}"


def _why_not_memory(held: Snapshot, checkpoint: Checkpoint) -> str:
    if held.step <= checkpoint.step:
        return f"{held.name} in host memory is older"
    missing = held.shards - len(held.sources)
    verb = "is" if missing == 1 else "are"
    return (
        f"{held.name} in host memory is newer, but {missing} of its {count(held.shards, 'shard')} {verb} held by "
        "nobody alive"
    )
