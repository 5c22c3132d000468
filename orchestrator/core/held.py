"""What agents hold in host memory, and where a restore reads it: plain values, shared by events, state and actions.

No behaviour but names. Next: `snapshots.py`, which decides; `tiers.py`, which picks what is restored.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.ids import GenerationNumber, Rank, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldShard:
    """A whole shard of a snapshot in an agent's memory, of its own trainer or of another node's."""

    step: Step
    generation: GenerationNumber
    rank: Rank
    """Of the trainer that took it, in that generation."""
    shards: int
    """Of the whole snapshot."""
    bytes: int
    entry: str
    """JSON: its pieces and their hashes, as a checkpoint's manifest has them."""
    stall_seconds: float
    """How long training stood still for it; 0 for a copy."""

    @property
    def name(self) -> str:
        """Of the snapshot."""
        return f"snapshot-{self.step:08d}.g{self.generation:04d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSource:
    """A shard of the snapshot that a generation goes back to."""

    rank: Rank
    entry: str
    addresses: tuple[str, ...]
    """Memory servers of the agents that hold it."""
