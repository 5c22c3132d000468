"""What happened: the closed set of inputs of the core, in the past tense.

Every event carries `at` (seconds since the epoch, read at the edge) and `cause_id` (one id follows a cause
through log, incident and messages). Events hold plain values only. Next: `machine.py`, which handles them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from orchestrator.core.asker import UNKNOWN_ASKER, Asker
from orchestrator.core.held import HeldShard
from orchestrator.core.ids import CauseId, GenerationNumber, NodeId, Rank, Step, TrainerId
from orchestrator.core.measurements import StepRecord, ValidationRecord
from orchestrator.core.spec import JobSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class _Event:
    at: float
    cause_id: CauseId


class TrainerPhase(Enum):
    """Where in its life or in a step a trainer is; sent with every heartbeat."""

    STARTING = "starting"
    READY = "ready"
    ACQUIRING = "acquiring"
    REGROUPING = "regrouping"
    RESTORING = "restoring"
    FORWARD = "forward"
    BACKWARD = "backward"
    REDUCE = "reduce"
    VOTE = "vote"
    OPTIMIZER = "optimizer"
    BOUNDARY = "boundary"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerStatus:
    """One trainer as its agent sees it. `start` counts the processes started for this device."""

    trainer: TrainerId
    start: int
    pid: int
    ready: bool
    store_address: str
    peer_address: str
    device_name: str
    generation: GenerationNumber
    step: Step
    phase: TrainerPhase
    operation: int
    """Sequence number of the newest collective: tells slow from hung."""
    waiting: bool
    """Inside a wait for peers; the one that does not wait is the one the others wait for."""
    silent_seconds: float
    """Since the trainer process itself last gave a sign of life."""
    work_seconds: float = 0.0
    """Of its last committed step, what it worked itself: waiting for others is not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSubmitted(_Event):
    """A job was handed to the controller; `resume` continues from what the work directory holds."""

    spec: JobSpec
    resume: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerStarted(_Event):
    """State was loaded from the database: every lease gets a fresh grace period."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRegistered(_Event):
    """An agent opened its stream (first time, or again after a broken stream or a controller restart)."""

    node: NodeId
    incarnation: str
    labels: tuple[tuple[str, str], ...]
    agent_pid: int
    generation: GenerationNumber
    """The newest generation that the agent has seen; 0 for a fresh one."""
    trainers: tuple[TrainerStatus, ...]
    memory_address: str = ""
    """Where its host memory is read; empty for an agent that holds no snapshots."""
    held: tuple[HeldShard, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDisconnected(_Event):
    """The stream of an agent broke."""

    node: NodeId
    incarnation: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatReceived(_Event):
    """An agent is alive and says how its trainers are. Changes no rows."""

    node: NodeId
    incarnation: str
    trainers: tuple[TrainerStatus, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotsHeld(_Event):
    """All shards that an agent holds in host memory now. Changes no rows."""

    node: NodeId
    incarnation: str
    held: tuple[HeldShard, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _TrainerEvent(_Event):
    trainer: TrainerId
    incarnation: str
    """Incarnation of the agent that says so."""
    start: int
    age_seconds: float = 0.0
    """How long ago it was, when the agent had no controller to tell."""

    @property
    def happened_at(self) -> float:
        """By the controller's clock."""
        return self.at - self.age_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerBecameReady(_TrainerEvent):
    """A trainer has imported, made its device context and waits for a seat."""

    status: TrainerStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerExited(_TrainerEvent):
    """The process of a trainer ended; its agent starts another while its budget lasts."""

    exit_code: int | None
    signal: int | None
    will_restart: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerFellSilent(_TrainerEvent):
    """The trainer process gave no sign of life for longer than the hang limit (stopped or stuck)."""

    silent_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CommunicationFailed(_TrainerEvent):
    """A collective raised: a peer is gone, which one the trainer cannot always say."""

    generation: GenerationNumber
    step: Step
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationJoined(_TrainerEvent):
    """A member built the groups of a generation, shook hands and stands at `committed`."""

    generation: GenerationNumber
    committed: Step
    completed_held: bool
    """The step in flight was completed from held gradients (else it is redone)."""
    redoes: bool
    """A step that had begun is computed again."""
    copied_parts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCommitted(_TrainerEvent):
    """A step is durable in the sense of the protocol. Changes no rows; goes to the ledger."""

    record: StepRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated(_TrainerEvent):
    """Held-out windows were measured: for the ledger, nothing follows from it."""

    record: ValidationRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class PartsAcquired(_TrainerEvent):
    """A background copy has caught up to `version` and follows the donors' commits."""

    acquisition: str
    version: Step


@dataclass(frozen=True, slots=True, kw_only=True)
class AcquisitionFailed(_TrainerEvent):
    """A background copy ended without being caught up; with `standing_only` none can be made while training goes on."""

    acquisition: str
    reason: str
    standing_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointBegun(_TrainerEvent):
    """The boundary is behind: a rank's share is copied, and is written while training goes on."""

    request: str
    generation: GenerationNumber
    step: Step
    name: str
    """Folder name of the checkpoint, for example `step-00000120.g0004`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardWritten(_TrainerEvent):
    """One rank's share of a checkpoint is on durable storage."""

    request: str
    generation: GenerationNumber
    step: Step
    name: str
    """Folder name of the checkpoint, for example `step-00000120.g0004`."""
    rank: int
    shard: str
    """JSON of the shard entry for the manifest."""
    bytes: int
    stall_seconds: float | None = None
    """How long this rank did not train for it; None from an agent that does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFailed(_TrainerEvent):
    """A rank could not write or seal, or take its share of a snapshot; training is not affected."""

    request: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSealed(_TrainerEvent):
    """The manifest is in place under the final name: the checkpoint can be restored."""

    request: str
    step: Step
    name: str
    path: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreFailed(_TrainerEvent):
    """A checkpoint was refused; `damaged` tells damage from a mismatch with the job."""

    generation: GenerationNumber
    name: str
    shard: str
    reason: str
    damaged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StateRefused(_TrainerEvent):
    """A trainer will not go on with the state it has: non-finite loss or gradients, or a part that nobody holds."""

    generation: GenerationNumber
    step: Step
    reason: str
    not_finite: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaFinding:
    """What one holder of a part says about its replica; `changed` means: since the step began."""

    part: str
    rank: Rank
    checksum: str
    changed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicasDiffered(_TrainerEvent):
    """The members compared their replicas of the state after `step`. Findings are of all holders of unsound parts."""

    generation: GenerationNumber
    step: Step
    findings: tuple[ReplicaFinding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRedone(_TrainerEvent):
    """A step gave numbers that are none, was computed again from the same samples, and was sound."""

    generation: GenerationNumber
    step: Step
    rank: Rank | None
    """The one member whose own numbers were not finite, if it was exactly one."""
    seconds: float
    """That both attempts took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingEnded(_TrainerEvent):
    """A member left the loop: all steps done, or stopped at a boundary on request."""

    generation: GenerationNumber
    step: Step
    finished: bool
    unreadable: str = ""
    """What this member cannot read of its data, if that is why it left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerRefused(_TrainerEvent):
    """A trainer cannot run this job at all (bad data, no memory): trying again would not help."""

    reason: str


class CheckOutcome(Enum):
    """How far one side of a pair check got."""

    DONE = "done"
    FAILED = "failed"
    """It could not meet the other one, or something raised."""
    ABANDONED = "abandoned"
    """A newer generation came first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairChecked(_TrainerEvent):
    """One of two trainers that were checked against each other tells how it went."""

    check: str
    outcome: CheckOutcome
    right: bool
    """Its products are the known answer, and so were those that it received."""
    digest: str
    """Of a computation whose last bits depend on every unit that took part."""
    compute_seconds: float
    exchange_seconds: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeEnded(_Event):
    """The cluster saw the process of a node end, or knows that it will never begin; nobody had asked for that."""

    node: NodeId
    pod: str
    """Which process of the node: what its agent shows as the label `pod`."""
    reason: str
    """How it ended, and its last words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRemarked(_Event):
    """The cluster has something to say about a node that is asked for or up: what it waits for, what threatens it."""

    node: NodeId
    remark: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasesDue(_Event):
    """Timer: look for silent nodes, hung trainers and waits that ran out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointDue(_Event):
    """Timer: look whether a checkpoint is due."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedundancyScanDue(_Event):
    """Timer: compare replicas as they are with replicas as they should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionDue(_Event):
    """Timer: delete checkpoints beyond `checkpoint.keep`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Command(_Event):
    by: str
    """Who asked, in words: the proven name where there is one."""
    asker: Asker = UNKNOWN_ASKER


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainRequested(_Command):
    """A human wants a node emptied: its seat moves first, then it is cordoned."""

    node: NodeId


@dataclass(frozen=True, slots=True, kw_only=True)
class CordonRequested(_Command):
    """A human wants a node to get no seat from now on."""

    node: NodeId


@dataclass(frozen=True, slots=True, kw_only=True)
class UncordonRequested(_Command):
    """A human gives a node back."""

    node: NodeId


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeRequested(_Command):
    """A human wants another number of nodes or spares, while the job trains."""

    nodes: int
    spares: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRequested(_Command):
    """A human wants a checkpoint now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRequested(_Command):
    """A human wants the job stopped at a boundary, with a resumable checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutdownRequested(_Command):
    """A human wants nodes and controller ended; `force` also while the job runs."""

    force: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRefused(_Command):
    """A human asked for something and was refused at the door: changes nothing, and is kept for the audit log."""

    command: str
    """As the Admin service calls it, for example `Drain`."""
    arguments: str
    """What was asked, as a JSON object."""
    code: str
    reason: str


Event = (
    JobSubmitted
    | ControllerStarted
    | NodeRegistered
    | NodeDisconnected
    | HeartbeatReceived
    | SnapshotsHeld
    | TrainerBecameReady
    | TrainerExited
    | TrainerFellSilent
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
    | RestoreFailed
    | StateRefused
    | ReplicasDiffered
    | StepRedone
    | TrainingEnded
    | TrainerRefused
    | PairChecked
    | NodeEnded
    | NodeRemarked
    | LeasesDue
    | CheckpointDue
    | RedundancyScanDue
    | RetentionDue
    | DrainRequested
    | CordonRequested
    | UncordonRequested
    | ResizeRequested
    | CheckpointRequested
    | StopRequested
    | ShutdownRequested
    | CommandRefused
)
