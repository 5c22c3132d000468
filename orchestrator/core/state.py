"""What the controller knows: data only, changed in place by the functions of this package.

Entities that live in the database are frozen and replaced whole (`Job`, `Node`, `Health`, `Generation`, `Incident`,
`Checkpoint`); what is rebuilt after a restart (`NodeView`, `Memory`, acquisitions) is not stored. Next: `machine.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from orchestrator.core.domains import Domains
from orchestrator.core.events import PairChecked, TrainerStatus
from orchestrator.core.held import HeldShard, SaveCost, ShardSource, SnapshotRequest
from orchestrator.core.ids import (
    GenerationNumber,
    IncidentId,
    JobId,
    NodeId,
    Rank,
    Step,
    TrainerId,
)
from orchestrator.core.observed import Limits, Longest
from orchestrator.core.spec import JobSpec

NO_GENERATION = GenerationNumber(0)
FIRST_STATE = Step(0)


class JobState(Enum):
    PENDING = "pending"
    """Waiting for enough ready nodes."""
    RUNNING = "running"
    RECOVERING = "recovering"
    """A new generation has been sent and has not committed a step yet."""
    STOPPING = "stopping"
    STOPPED = "stopped"
    FINISHED = "finished"
    FAILED = "failed"


class NodeState(Enum):
    REQUESTED = "requested"
    """Asked of the cluster, no agent seen yet."""
    SPARE = "spare"
    """Alive, no seat."""
    ACTIVE = "active"
    """Alive, at least one of its trainers is a member."""
    SUSPECT = "suspect"
    """Stream broken or heartbeat late; not yet given up."""
    DRAINING = "draining"
    DEAD = "dead"


class GenerationKind(Enum):
    INITIAL = "initial"
    IMMEDIATE = "immediate"
    """Replaces a broken generation: abandon what runs."""
    PLANNED = "planned"
    """Takes over at a step boundary that all old members agree on."""
    RESTORE = "restore"
    """Everybody reads a checkpoint (or makes the seed state) first."""


class Rung(Enum):
    """How far up the ladder the answers have climbed since the last committed step. Next: `escalation.py`."""

    ORDINARY = "ordinary"
    """No answer has been in vain."""
    REBUILD = "rebuild"
    """The same members, new groups."""
    PART = "restart-part"
    """Some trainers are restarted; the others hold everything."""
    ALL = "restart-all"
    """All trainers are restarted, and go on from the newest saved state."""


class IncidentKind(Enum):
    NODE_LOST = "node-lost"
    TRAINER_LOST = "trainer-lost"
    TRAINER_HUNG = "trainer-hung"
    COMMUNICATION = "communication"
    STATE_REFUSED = "state-refused"
    CORRUPTION = "corruption"
    """Replicas that should be equal are not."""
    NOT_FINITE = "not-finite"
    """A step gave numbers that are none, and was sound when it was computed again."""
    CHECKPOINT_DAMAGED = "checkpoint-damaged"
    DRAIN = "drain"
    STRAGGLER = "straggler"


class CheckpointPurpose(Enum):
    """Who wants a checkpoint; all but the timer's are taken again when they fail."""

    INTERVAL = "interval"
    ASKED = "asked"
    STOP = "stop"
    FINISH = "finish"


class CheckpointState(Enum):
    REQUESTED = "requested"
    WRITING = "writing"
    SEALED = "sealed"
    FAILED = "failed"
    DAMAGED = "damaged"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    id: JobId
    spec: JobSpec
    state: JobState
    reason: str
    submitted_at: float
    started_at: float | None = None
    """First committed step's generation was sent."""
    ended_at: float | None = None
    next_incident: int = 1
    next_request: int = 1
    checkpoint_for: str = ""
    """Who has asked for a checkpoint that could not be taken yet; empty for nobody."""
    starts: int = 1
    """Controllers that have worked on this job; the first part of every action id, so that none repeats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    id: NodeId
    state: NodeState
    cordoned: bool
    incarnation: str
    labels: tuple[tuple[str, str], ...]
    agent_pid: int
    reason: str
    changed_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The history of a node that decides whether it may have a seat. Written when a node fails, never by heartbeats."""

    node: NodeId
    losses: tuple[float, ...] = ()
    """When it or a trainer of it failed, within the window, oldest first."""
    starts: tuple[float, ...] = ()
    """When it was started again, within the window."""
    quarantines: int = 0
    """Quarantines so far: each is longer than the one before."""
    quarantined_until: float | None = None
    """It gets no seat before that time, and after it not without a passed pair check; None: it may have a seat."""
    reason: str = ""


@dataclass(slots=True, kw_only=True)
class NodeView:
    """The volatile side of a node: rebuilt from registrations and heartbeats."""

    connected: bool
    last_seen: float
    trainers: dict[TrainerId, TrainerStatus] = field(default_factory=dict)
    memory_address: str = ""
    """Where its host memory is read; empty for an agent that holds no snapshots."""
    held: tuple[HeldShard, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A trainer with a seat in a generation."""

    trainer: TrainerId
    start: int
    rank: Rank
    store_address: str
    peer_address: str
    stage: int = 0
    """Of the pipeline; 0 without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A membership epoch: who trains, who holds which expert, who computes which microbatch."""

    number: GenerationNumber
    kind: GenerationKind
    members: tuple[Member, ...]
    """By rank."""
    placement: tuple[tuple[Rank, ...], ...]
    """Expert -> ranks that hold a replica; the first is the primary."""
    deal: tuple[tuple[int, ...], ...]
    """Rank -> microbatch indices of every step."""
    restore_name: str
    """Checkpoint folder for `RESTORE`; empty means the seed state (step 0)."""
    restore_step: Step
    incident: IncidentId | None
    reason: str
    created_at: float
    began_at: float | None = None
    """When it came into force; None for a planned one that waits for its boundary (or was overtaken)."""
    rung: Rung = Rung.ORDINARY
    """The highest rung since the last committed step."""
    tries: int = 0
    """Generations at that rung so far, this one included."""
    restore_shards: tuple[ShardSource, ...] = ()
    """Where the shards of `restore_name` are, if it is a snapshot in host memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """One failure from first sign to restored redundancy. Times are absolute; None means not yet."""

    id: IncidentId
    kind: IncidentKind
    node: NodeId
    cause: str
    action: str
    reasons: tuple[str, ...]
    generation: GenerationNumber
    """The generation that answers the failure."""
    first_sign_at: float
    detected_at: float
    decided_at: float | None = None
    regrouped_at: float | None = None
    first_commit_at: float | None = None
    restored_at: float | None = None
    degraded: bool = False
    """Capacity does not allow full redundancy for now."""
    steps_lost: int = 0
    steps_redone: int = 0
    rolled_back_by: GenerationNumber = NO_GENERATION
    """The last generation that went back to saved state on its account."""
    exposed_at: float | None = None
    """Since when experts stood on fewer replicas than asked for; None where none did."""
    covered_at: float | None = None
    """Until when; None while they still do."""
    experts_exposed: int = 0
    alarmed_at: float | None = None
    """When that had lasted for longer than the job bears."""

    @property
    def closed(self) -> bool:
        """Redundancy is back, as far as it was asked for."""
        return self.restored_at is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    request: str
    state: CheckpointState
    generation: GenerationNumber
    step: Step
    """0 until the members have agreed on the boundary."""
    name: str
    path: str
    shards: tuple[str, ...]
    """JSON of the shard entries by rank; empty string for ranks that have not written yet."""
    bytes: int
    requested_at: float
    sealed_at: float | None
    reason: str
    purpose: CheckpointPurpose = CheckpointPurpose.INTERVAL
    stall_seconds: float | None = None
    """How long training stood still for it, on the rank where that was longest; None while nobody has said."""


@dataclass(slots=True, kw_only=True)
class Acquisition:
    """A background copy under way: which trainer, what it will hold, whether it has caught up."""

    id: str
    trainer: TrainerId
    start: int
    parts: tuple[str, ...]
    generation: GenerationNumber
    begun_at: float
    caught_up: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What the acquisitions under way are for: the generation to send once all of them have caught up."""

    members: tuple[tuple[TrainerId, int, int], ...]
    """Trainer, start and stage, by the rank they will have."""
    placement: tuple[tuple[Rank, ...], ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Blame:
    """Members lost touch with a peer and the cause is not known yet."""

    generation: GenerationNumber
    reporters: tuple[TrainerId, ...]
    """In the order of their reports."""
    detail: str
    at: float
    """When the controller heard of it; waits count from here."""
    since: float
    """When it was; earlier, if there was no controller to tell."""


class PairPurpose(Enum):
    """What a pair check is for, in words."""

    READMIT = "its time in quarantine is over"
    CONFIRM_SLOW = "it looks slow"


@dataclass(slots=True, kw_only=True)
class PairCheck:
    """Two trainers at work against each other: one that must prove itself, one that is known to be good."""

    id: str
    candidate: TrainerId
    partner: TrainerId
    starts: tuple[tuple[TrainerId, int], ...]
    """Both, with the processes that are meant."""
    purpose: PairPurpose
    begun_at: float
    same_kind: bool
    """Their devices have the same name."""
    reports: dict[TrainerId, PairChecked] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Memory:
    """What one controller remembers between two events and a restarted one does without. Never stored."""

    domains: Domains | None = None
    """What the labels of nodes say; None until somebody asks, and when they have changed."""
    short_of_nodes: int = 0
    """Before the start: at least so many events, each about one node, must come before enough nodes are ready."""
    limits: Limits | None = None
    """Time-outs that were derived for a generation."""
    silences: Longest = field(default_factory=Longest)
    """Of trainers at work, each counted when it was over."""
    gaps: Longest = field(default_factory=Longest)
    """Between two heartbeats of a node."""
    stalls: int = 0
    """In a row, without a committed step, while somebody computed."""
    long_step_said: float = 0.0
    """The usual step for which a collective was said to wait too short."""
    pauses: Longest = field(default_factory=Longest)
    """Between two signs of progress of a generation that commits steps."""
    leases_from: float = 0.0
    """No lease can run late before this time, so sweeps before it need not look."""
    many_late: bool = False
    """It was said that too many nodes are late at once to suspect each."""
    silent: set[TrainerId] = field(default_factory=set)
    """Trainers that their agent had not heard of for too long when it last spoke."""
    resting: bool = False
    """Everything is as well as it can be: only an event can change that, not time."""
    started_at: float = 0.0
    """When this controller took over: limits that began before it count from here."""
    progress_at: float = 0.0
    """The last sign that the members get on with their work."""
    reminded_at: float = 0.0
    """When members that have not joined were last told the generation again."""
    redone: bool = False
    """A member of this generation has said that it computes a step again."""
    step_began_at: float = 0.0
    """When the last committed step of this generation began, at the latest: all members were alive then."""
    blame: Blame | None = None
    thin: tuple[int, ...] = ()
    """Experts on fewer nodes than asked for, in generation `thin_in`."""
    thin_in: GenerationNumber = NO_GENERATION
    whole: Generation | None = None
    """A generation with all its seats and replicas: until somebody is to leave, nothing can be better. Thousands of
    nodes that register after the start need not be looked through each time to find that out."""
    repair: Repair | None = None
    repair_awaits: str = ""
    """What repair was last said to wait for in this generation."""
    acquisitions_made: int = 0
    acquire_failures: dict[TrainerId, tuple[float, ...]] = field(default_factory=dict)
    """When copies of a trainer failed."""
    quorum_at: float | None = None
    """Since when enough trainers have been ready to start, though not the first ones by name."""
    waiting_since: float | None = None
    """Since when nobody is left to train."""
    generations_without_commit: int = 0
    wait_seconds: float | None = None
    """How long the wait for nodes may last before training goes on with what is there; None for the start limit."""
    recorded: Step = FIRST_STATE
    """The step of the last report; two ranks report each step."""
    step_seconds: tuple[float, ...] = ()
    """Of the last committed steps, oldest first."""
    expert_load: tuple[int, ...] = ()
    """Tokens per expert in the last committed step."""
    work_seconds: dict[TrainerId, tuple[float, ...]] = field(default_factory=dict)
    """What members worked in each of their last steps of this generation, waiting for others not counted."""
    scores: dict[TrainerId, float] = field(default_factory=dict)
    """Speed of members against the median member, 0 to 1."""
    stragglers: tuple[TrainerId, ...] = ()
    straggling_since: dict[TrainerId, float] = field(default_factory=dict)
    straggler_words: dict[TrainerId, str] = field(default_factory=dict)
    straggler_rest: dict[TrainerId, float] = field(default_factory=dict)
    """Stragglers that a pair check found sound, and until when they are left alone."""
    straggler_checks: dict[NodeId, tuple[float, ...]] = field(default_factory=dict)
    """When stragglers of a node were checked, within the window."""
    checks: dict[str, PairCheck] = field(default_factory=dict)
    """Pair checks under way."""
    checks_made: int = 0
    check_attempts: dict[NodeId, int] = field(default_factory=dict)
    """Checks in a row that proved nothing."""
    slow_checks: dict[NodeId, int] = field(default_factory=dict)
    """In a row that found a member of the node slow."""
    check_not_before: dict[NodeId, float] = field(default_factory=dict)
    check_without_partner: frozenset[NodeId] = frozenset()
    """Nodes that were said to wait for a partner."""
    ended: dict[TrainerId, bool] = field(default_factory=dict)
    """Members that left the loop in this generation; True when all steps were done."""
    unreadable: str = ""
    """Who of them cannot read what data, in words."""
    stop_sent: GenerationNumber = NO_GENERATION
    breaker_said: str = ""
    """What was last said of the circuit breaker."""
    revival_said: frozenset[NodeId] = frozenset()
    """Nodes that were said not to be started again, because their budget is used up."""
    checkpoint_due: bool = False
    interval_said: float = 0.0
    """The interval between checkpoints that was last explained."""
    checkpoint_failures: int = 0
    """In a row, of those that are taken again."""
    checkpoint_failed_at: float | None = None
    snapshot: SnapshotRequest | None = None
    """Under way."""
    snapshot_at: float = 0.0
    """When the last one was ordered."""
    snapshots_made: int = 0
    snapshot_costs: tuple[SaveCost, ...] = ()
    """Of the last ones that were sealed, oldest first."""
    snapshot_interval_said: float = 0.0
    """The interval between snapshots that was last explained."""
    sealed_step: Step = FIRST_STATE
    """Of the last one that is known to be sealed."""
    sealed_in: GenerationNumber = NO_GENERATION
    """The last generation of which one was said to be sealed."""
    refused_snapshots: tuple[str, ...] = ()
    refused: dict[TrainerId, str] = field(default_factory=dict)
    """Trainers that cannot run this job, and why."""
    losses: dict[Step, float] = field(default_factory=dict)
    """Of the last committed steps, by step, the oldest first."""
    restored_by: Generation | None = None
    """The last generation that went back to a checkpoint."""
    redone_step: Step = FIRST_STATE
    """The last step that was computed again because its numbers were none."""
    refusals: dict[Step, int] = field(default_factory=dict)
    """How often the state after a step was refused."""
    fenced_starts: dict[TrainerId, int] = field(default_factory=dict)
    """Up to this start a trainer's processes are to be ended, so what they report makes nobody ready."""
    failed_starts: dict[TrainerId, int] = field(default_factory=dict)
    """Up to this start the failures of a trainer's processes are on record."""
    newest_seen: GenerationNumber = NO_GENERATION
    """The highest generation that any agent has named; new ones are always above it."""


@dataclass(slots=True, kw_only=True)
class ClusterState:
    """Everything. `job` is None before the first submission; one job per controller."""

    job: Job | None = None
    nodes: dict[NodeId, Node] = field(default_factory=dict)
    views: dict[NodeId, NodeView] = field(default_factory=dict)
    health: dict[NodeId, Health] = field(default_factory=dict)
    """Of nodes that have failed; one that is not there has a clean record."""
    generation: Generation | None = None
    """The generation in force (sent, maybe still regrouping)."""
    planned: Generation | None = None
    """Sent, waiting for the boundary; becomes `generation` when its first member has joined it."""
    joined: set[TrainerId] = field(default_factory=set)
    """Members of `generation` that have regrouped."""
    acquisitions: dict[str, Acquisition] = field(default_factory=dict)
    incidents: dict[IncidentId, Incident] = field(default_factory=dict)
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    committed: Step = FIRST_STATE
    """Highest step known to be committed (volatile; the ledger holds the truth)."""
    reported_through: Step = FIRST_STATE
    """Last step that the ledger holds without a gap."""
    action_sequence: int = 0
    """Actions of this controller so far; the second part of an action id."""
    memory: Memory = field(default_factory=Memory)


Entity = Job | Node | Health | Generation | Incident | Checkpoint
"""What a change may hold; the store upserts it by its key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why, in words; `incident` ties it to one."""

    text: str
    incident: IncidentId | None = None
