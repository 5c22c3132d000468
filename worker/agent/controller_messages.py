"""What an agent and the controller say to each other: frozen values, the same names as in `protos/worker.proto`.

The machine of the agent decides on these, so that it needs no protobuf; `wire.py` alone converts. What a trainer
reports travels on unchanged, wrapped in `TrainerSaid` with the name and the start of the process that said it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from worker.agent.messages import (
    AcquisitionFailed,
    CheckpointBegun,
    CheckpointFailed,
    CheckpointSealed,
    CommunicationFailed,
    Donor,
    GenerationJoined,
    Member,
    PairChecked,
    PartsAcquired,
    ReplicasDiffered,
    RestoreFailed,
    ShardSource,
    ShardWritten,
    StateRefused,
    StepCommitted,
    StepRedone,
    TrainerRefused,
    TrainingEnded,
    Validated,
)

# ---- agent -> controller ----


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerStatus:
    """One trainer as its agent sees it. `start` counts the processes started for this device."""

    trainer: str
    start: int
    pid: int
    ready: bool
    store_address: str
    peer_address: str
    device_name: str
    generation: int
    step: int
    phase: str
    operation: int
    waiting: bool
    silent_seconds: float
    work_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldShard:
    """A whole shard of a snapshot in this agent's memory, its own or another's."""

    step: int
    generation: int
    rank: int
    shards: int
    bytes: int
    entry: str
    stall_seconds: float = 0.0
    """What taking it cost training; 0 for a copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """The first message of a stream. `generation` is the newest one that this agent has seen, 0 for none."""

    node: str
    incarnation: str
    labels: tuple[tuple[str, str], ...]
    agent_pid: int
    generation: int
    trainers: tuple[TrainerStatus, ...]
    memory_address: str = ""
    """Where shards are offered and read; empty for an agent that holds none."""
    held: tuple[HeldShard, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotsHeld:
    """All shards that this agent holds now."""

    held: tuple[HeldShard, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    trainers: tuple[TrainerStatus, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerReady:
    trainer: str
    start: int
    status: TrainerStatus
    age_seconds: float = 0.0
    """For how long it has waited for a controller, when it is sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerExited:
    trainer: str
    start: int
    exit_code: int | None
    signal: int | None
    will_restart: bool
    age_seconds: float = 0.0
    """For how long it has waited for a controller, when it is sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerFellSilent:
    trainer: str
    start: int
    silent_seconds: float
    age_seconds: float = 0.0
    """For how long it has waited for a controller, when it is sent."""


PassedOn = (
    CommunicationFailed
    | GenerationJoined
    | StepCommitted
    | Validated
    | PartsAcquired
    | AcquisitionFailed
    | CheckpointBegun
    | ShardWritten
    | CheckpointFailed
    | CheckpointSealed
    | RestoreFailed
    | StateRefused
    | ReplicasDiffered
    | StepRedone
    | TrainingEnded
    | TrainerRefused
    | PairChecked
)
"""Reports of a trainer that the controller gets as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSaid:
    """A report of one trainer process, passed on."""

    trainer: str
    start: int
    report: PassedOn
    age_seconds: float = 0.0
    """For how long it has waited for a controller, when it is sent."""


AgentMessage = (
    Registration | Heartbeat | SnapshotsHeld | TrainerReady | TrainerExited | TrainerFellSilent | TrainerSaid
)

# ---- controller -> agent ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """Answer to a registration. `config` is the whole job spec as JSON; `copy_token` a secret, and never shown."""

    config: str
    reported_through: int
    generation: int
    copy_token: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A generation as the controller sends it to every node: the same for all of them."""

    number: int
    kind: str
    """initial | immediate | planned | restore"""
    members: tuple[Member, ...]
    placement: tuple[tuple[int, ...], ...]
    deal: tuple[tuple[int, ...], ...]
    restore_name: str
    restore_step: int
    reason: str
    restore_shards: tuple[ShardSource, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Assign:
    generation: Generation
    reported_through: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    generation: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquire:
    trainer: str
    acquisition: str
    generation: int
    donors: tuple[Donor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartTrainer:
    trainer: str
    reason: str
    start: int = 0
    """The process that is meant; 0 for whichever runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckPair:
    trainer: str
    check: str
    generation: int
    rank: int
    store_address: str
    limit_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeCheckpoint:
    request: str
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeSnapshot:
    """`keep` is the newest sealed snapshot: what is older is not needed any more. An empty buddy: nobody copies."""

    request: str
    generation: int
    keep: str
    buddy: str
    buddy_address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DropSnapshots:
    names: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetTimeouts:
    """For members of this generation that are at work; in others, what the job says."""

    generation: int = 0
    hang_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SealCheckpoint:
    trainer: str
    request: str
    generation: int
    step: int
    name: str
    shards: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteCheckpoint:
    trainer: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StopTraining:
    request: str
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shutdown:
    reason: str


ControllerMessage = (
    Welcome
    | Assign
    | Fence
    | Acquire
    | RestartTrainer
    | CheckPair
    | TakeCheckpoint
    | TakeSnapshot
    | DropSnapshots
    | SetTimeouts
    | SealCheckpoint
    | DeleteCheckpoint
    | StopTraining
    | Shutdown
)
