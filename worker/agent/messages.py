"""What an agent and its trainer say to each other: frozen values, sent as JSON frames over a socket pair.

No torch, no grpc here: both programs import this module. Encoding is in `channel.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    trainer: str
    start: int
    rank: int
    store_address: str
    peer_address: str
    stage: int = 0
    """Of the pipeline; its place among the members of the stage is its data index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSource:
    """A shard of the snapshot that a generation goes back to, what is in it, and the memory servers that hold it."""

    rank: int
    entry: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A generation as a trainer sees it. `rank` is -1 for a trainer that is not a member."""

    number: int
    kind: str
    """initial | immediate | planned | restore"""
    rank: int
    members: tuple[Member, ...]
    placement: tuple[tuple[int, ...], ...]
    deal: tuple[tuple[int, ...], ...]
    restore_name: str
    restore_step: int
    restore_shards: tuple[ShardSource, ...]
    """Of a snapshot in host memory; empty where `restore_name` is a checkpoint."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Donor:
    trainer: str
    peer_address: str
    parts: tuple[str, ...]


# ---- agent -> trainer ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Configure:
    """The first order: the whole job spec (JSON mapping), where things are, and the secret of copies."""

    config: str
    trainer: str
    start: int
    workdir: str
    copy_token: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeSeat:
    assignment: Assignment


@dataclass(frozen=True, slots=True, kw_only=True)
class AcquireParts:
    acquisition: str
    generation: int
    donors: tuple[Donor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeCheckpoint:
    request: str
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeSnapshot:
    """Copy this rank's share into a slot of shared memory, at the boundary that all members agree on."""

    request: str
    generation: int
    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SealCheckpoint:
    request: str
    generation: int
    step: int
    name: str
    shards: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteCheckpoint:
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StopTraining:
    request: str
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckPair:
    """Do some work against another trainer: rank 0 or 1 of a pair that meets at a store."""

    check: str
    generation: int
    rank: int
    store_address: str
    limit_seconds: float


Order = (
    Configure
    | TakeSeat
    | AcquireParts
    | TakeCheckpoint
    | TakeSnapshot
    | SealCheckpoint
    | DeleteCheckpoint
    | StopTraining
    | CheckPair
)

# ---- trainer -> agent ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """A sign of life from a thread of the trainer, ten times a second."""

    generation: int
    step: int
    phase: str
    operation: int
    waiting: bool
    work_seconds: float = 0.0
    """Of the last committed step, waiting for others not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    store_address: str
    peer_address: str
    device_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommunicationFailed:
    generation: int
    step: int
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationJoined:
    generation: int
    committed: int
    completed_held: bool
    redoes: bool
    copied_parts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCommitted:
    step: int
    generation: int
    loss: float
    tokens: int
    time: float
    step_seconds: float
    sample_ids: tuple[int, ...]
    expert_load: tuple[int, ...]
    """Token-expert pairs of each expert of each stage, over all layers."""
    layer_load: tuple[tuple[int, ...], ...]
    """The same by layer of the whole model and expert of the layer."""
    learning_rate: float
    gradient_norm: float
    """Over all parts, before clipping."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated:
    """The held-out windows were measured with the state after `step`."""

    step: int
    generation: int
    loss: float
    """Nats for each predicted token."""
    bits_per_byte: float
    tokens: int
    windows: int
    time: float
    seconds: float
    """That it took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartsAcquired:
    acquisition: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AcquisitionFailed:
    acquisition: str
    reason: str
    standing_only: bool = False
    """The parts can only be had while training stands still."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointBegun:
    """This rank's share is copied, and is written while training goes on."""

    request: str
    generation: int
    step: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardWritten:
    request: str
    generation: int
    step: int
    name: str
    rank: int
    shard: str
    bytes: int
    stall_seconds: float
    """How long this rank did not train for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFailed:
    """Of a snapshot too: the request says which."""

    request: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSealed:
    request: str
    step: int
    name: str
    path: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotTaken:
    """This rank's share is in the slot, hashed: `entry` is what a checkpoint's manifest would say of it."""

    request: str
    generation: int
    step: int
    rank: int
    shards: int
    slot: int
    entry: str
    bytes: int
    stall_seconds: float
    """For which training stood still: comparing replicas, and the copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreFailed:
    generation: int
    name: str
    shard: str
    reason: str
    damaged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StateRefused:
    generation: int
    step: int
    reason: str
    not_finite: bool
    """Loss or gradients, twice in a row; else a part that nobody holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaFinding:
    """What one holder of a part says about its replica, in hexadecimal; `changed` means: since the step began."""

    part: str
    rank: int
    checksum: str
    changed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicasDiffered:
    """The members compared their replicas of the state after `step`; findings are about parts that are not sound."""

    generation: int
    step: int
    findings: tuple[ReplicaFinding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRedone:
    """A step gave numbers that are none, was computed again from the same samples, and was sound."""

    generation: int
    step: int
    rank: int
    """The one member whose own numbers were not finite; -1 if it was not exactly one."""
    seconds: float
    """That both attempts took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingEnded:
    """A member left the loop; `unreadable` says what it cannot read of its data, if that is why."""

    generation: int
    step: int
    finished: bool
    unreadable: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerRefused:
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PairChecked:
    check: str
    outcome: str
    """done | failed | abandoned"""
    right: bool
    digest: str
    compute_seconds: float
    exchange_seconds: float
    reason: str


Report = (
    Beat
    | Ready
    | CommunicationFailed
    | GenerationJoined
    | StepCommitted
    | Validated
    | PartsAcquired
    | AcquisitionFailed
    | CheckpointBegun
    | ShardWritten
    | CheckpointFailed
    | CheckpointSealed
    | SnapshotTaken
    | RestoreFailed
    | StateRefused
    | ReplicasDiffered
    | StepRedone
    | TrainingEnded
    | TrainerRefused
    | PairChecked
)
