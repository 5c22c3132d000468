"""What a shard in host memory is called, and what is known of it: by agents, trainers and the controller alike. Pure.

A snapshot is named like "snapshot-00000120.g0004": the state after step 120, taken in generation 4. Its shards are
numbered by the ranks that took them. The entry of a shard is the one that a checkpoint's manifest has for it
(`worker/checkpointing/manifest.py`): opaque here but for what is needed to compare bytes with hashes (`entry.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAME = re.compile(r"snapshot-(\d{8,})\.g(\d{4,})")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class SnapshotId:
    """Step and generation of a snapshot; later ones compare greater."""

    step: int
    generation: int

    @property
    def name(self) -> str:
        return f"snapshot-{self.step:08d}.g{self.generation:04d}"


def parse_snapshot(name: str) -> SnapshotId | None:
    """The snapshot that has exactly this name, or None."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    snapshot = SnapshotId(step=int(found[1]), generation=int(found[2]))
    return snapshot if snapshot.name == name else None


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ShardId:
    """One shard of a snapshot."""

    snapshot: SnapshotId
    rank: int

    def __str__(self) -> str:
        return f"{self.snapshot.name} of rank {self.rank}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRecord:
    """A whole shard: one of `shards`, of `bytes` bytes; `entry` (JSON) says what is in it, with hashes."""

    id: ShardId
    shards: int
    bytes: int
    entry: str
