"""What agents hold in host memory, what is on its way there, and where a restore reads it.

Plain values, shared by events, state and actions; a request under way counts what it hears. Next: `snapshots.py`, which
decides; `tiers.py`, which picks what is restored.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.core.ids import GenerationNumber, NodeId, Rank, Step


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


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveCost:
    """What one snapshot took."""

    stall_seconds: float
    """For which training stood still."""
    work_seconds: float | None
    """From its order until it was sealed; None where another controller had ordered it."""


@dataclass(slots=True, kw_only=True)
class SnapshotRequest:
    """A snapshot that was ordered and is not sealed yet."""

    request: str
    generation: GenerationNumber
    at: float
    holders: int
    """How many agents are to hold each shard."""
    shards: int = 0
    """Of the whole, as the first shard says."""
    told: dict[Rank, set[NodeId]] = field(default_factory=dict)
    """Who has said to hold the shard of a rank."""
    ready: int = 0
    """Shards that as many have told of as should."""

    def take_note(self, shard: HeldShard, node: NodeId) -> None:
        """A node holds a shard of it. Counted as they come, since thousands do."""
        nodes = self.told.setdefault(shard.rank, set())
        before = len(nodes)
        nodes.add(node)
        self.shards = shard.shards
        self.ready += before < self.holders <= len(nodes)

    @property
    def seems_sealed(self) -> bool:
        return 0 < self.shards <= self.ready
