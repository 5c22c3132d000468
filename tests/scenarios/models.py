"""The people of the world: trainers, agents, and what a controller leaves on disk. Data and small questions only.

Next: `agents.py` and `training.py`, which make them act; `world.py`, which owns them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from orchestrator.core import actions
from orchestrator.core.events import Event, TrainerPhase, TrainerStatus
from orchestrator.core.held import HeldShard
from orchestrator.core.ids import GenerationNumber, NodeId, Step, TrainerId, node_of
from orchestrator.core.measurements import StepRecord
from orchestrator.core.outcome import Outcome
from orchestrator.core.parts import dense_part, expert_part
from orchestrator.core.state import (
    NO_GENERATION,
    Checkpoint,
    ClusterState,
    Entity,
    Generation,
    Health,
    Incident,
    Job,
    Node,
)

TICK_SECONDS = 0.25
STEP_TICKS = 2
START_SECONDS = 2.0
ACQUIRE_SECONDS = 1.0
CHECK_SECONDS = 0.5
WORK_SECONDS = 0.4
"""Of a step of half a second, by a node that is not slow."""
WRITE_SECONDS = 0.75
HASH_SECONDS = 0.25
"""Until a share is whole in the memory of its own agent."""
SEND_SECONDS = 0.5
"""From there until it is in the buddy's."""
HANG_SECONDS = 3.0
OUTBOX_LIMIT = 64
RIGHT = "00000000"
"""The checksum of a replica as it should be."""


@dataclass(slots=True, kw_only=True)
class Trainer:
    """A trainer process."""

    id: TrainerId
    start: int
    ready_at: float
    beat_at: float
    ready: bool = False
    stopped: bool = False
    refuses: str = ""
    told_silent: bool = False
    generation: GenerationNumber = NO_GENERATION
    """The newest generation in which it was told to have a seat."""
    joined: GenerationNumber = NO_GENERATION
    """The newest generation that it has regrouped in."""
    leaves: GenerationNumber = NO_GENERATION
    """A planned generation that goes on without it."""
    restored: GenerationNumber = NO_GENERATION
    """The newest generation for which it has read a checkpoint or made the seed state."""
    broken: GenerationNumber = NO_GENERATION
    """The newest generation in which it has lost touch with a peer."""
    step: int = 0
    work_share: float = 1.0
    """Of the work of its last step; 1.0 is fair."""
    holds: set[str] = field(default_factory=set)
    """Parts, at the version `step`, or at that of its donors while it follows them."""
    wrong: dict[str, str] = field(default_factory=dict)
    """Parts that are not what they should be, and their checksums; copies from here are as wrong."""
    changed: set[str] = field(default_factory=set)
    """Those of them that changed within the step that is being computed."""
    following: bool = False
    finished: bool = False
    told_end: bool = False
    acquisition: str = ""
    acquiring: set[str] = field(default_factory=set)
    donors: tuple[TrainerId, ...] = ()
    acquired_at: float = 0.0
    check: actions.CheckPair | None = None
    check_due: float = 0.0
    checked: str = ""
    """The last pair check that it took part in."""
    shards: list[tuple[float, dict[str, object]]] = field(default_factory=list)
    """Being written: when they are done, and the report of it."""

    def status(self, at: float, slowness: Mapping[NodeId, float]) -> TrainerStatus:
        """What its agent says of it."""
        phase = TrainerPhase.READY if self.ready else TrainerPhase.STARTING
        if self.finished:
            phase = TrainerPhase.FINISHED
        elif self.joined and self.joined == self.generation and self.broken != self.joined:
            phase = TrainerPhase.FORWARD
        elif self.joined:
            phase = TrainerPhase.REGROUPING
        return TrainerStatus(
            trainer=self.id,
            start=self.start,
            pid=100 + self.start,
            ready=self.ready,
            store_address=f"{self.id}:store",
            peer_address=f"{self.id}:peer",
            device_name="cpu",
            generation=self.joined,
            step=Step(self.step),
            phase=phase,
            operation=self.step * 10,
            waiting=not self.stopped,
            silent_seconds=at - self.beat_at,
            work_seconds=WORK_SECONDS * self.work_share * slowness.get(node_of(self.id), 1.0)
            if self.joined
            else 0.0,
        )


@dataclass(slots=True, kw_only=True)
class Agent:
    """An agent process, with the trainers that it supervises."""

    node: NodeId
    incarnation: str
    connected: bool = False
    stopped: bool = False
    cut: bool = False
    generation: GenerationNumber = NO_GENERATION
    trainers: dict[TrainerId, Trainer] = field(default_factory=dict)
    checkpoints: list[actions.TakeCheckpoint] = field(default_factory=list)
    snapshots: list[actions.TakeSnapshot] = field(default_factory=list)
    timeouts: actions.SetTimeouts | None = None
    held: tuple[HeldShard, ...] = ()
    """In its memory."""
    stops: set[GenerationNumber] = field(default_factory=set)
    unread: list[actions.Action] = field(default_factory=list)
    """Orders that came while the process was stopped."""
    outbox: list[tuple[Callable[..., Event], dict[str, object]]] = field(default_factory=list)
    """What it could not tell while no controller listened."""


@dataclass(slots=True, kw_only=True)
class Seat:
    """A member of a generation, as it lives."""

    agent: Agent
    trainer: Trainer

    @property
    def awake(self) -> bool:
        return not (self.agent.stopped or self.trainer.stopped)


@dataclass(slots=True, kw_only=True)
class Disk:
    """What outlives a controller: database, ledger, checkpoints."""

    job: Job | None = None
    nodes: dict[NodeId, Node] = field(default_factory=dict)
    health: dict[NodeId, Health] = field(default_factory=dict)
    generations: dict[GenerationNumber, Generation] = field(default_factory=dict)
    incidents: dict[str, Incident] = field(default_factory=dict)
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    ledger: list[int] = field(default_factory=list)
    ledger_fence: GenerationNumber = NO_GENERATION
    sealed: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)
    action_ids: set[str] = field(default_factory=set)

    @property
    def reported_through(self) -> Step:
        return Step(self.ledger[-1] if self.ledger else 0)

    def store(self, outcome: Outcome) -> None:
        """What the repository does with an outcome."""
        for entity in outcome.changes:
            self._upsert(entity)
        for action in outcome.actions:
            assert action.id not in self.action_ids, f"action id {action.id} was used twice"
            self.action_ids.add(action.id)

    def load(self) -> ClusterState:
        """What a new controller gets."""
        begun = [each for each in self.generations.values() if each.began_at is not None]
        current = max(begun, key=lambda each: each.number, default=None)
        newest = max(self.generations.values(), key=lambda each: each.number, default=None)
        return ClusterState(
            job=self.job,
            nodes=dict(self.nodes),
            health=dict(self.health),
            generation=current,
            planned=None if newest is current else newest,
            incidents={each.id: each for each in self.incidents.values()},
            checkpoints=dict(self.checkpoints),
            reported_through=self.reported_through,
        )

    def append(self, record: StepRecord) -> None:
        """What the ledger does with a record."""
        if record.generation >= self.ledger_fence and record.step == self.reported_through + 1:
            self.ledger.append(record.step)

    def roll_back(self, action: actions.RollBackLedger) -> None:
        self.ledger = [step for step in self.ledger if step <= action.step]
        self.ledger_fence = action.generation

    def _upsert(self, entity: Entity) -> None:
        match entity:
            case Job():
                self.job = entity
            case Node():
                self.nodes[entity.id] = entity
            case Health():
                self.health[entity.node] = entity
            case Generation():
                self.generations[entity.number] = entity
            case Incident():
                self.incidents[entity.id] = entity
            case Checkpoint():
                self.checkpoints[entity.request] = entity


def parts_of(generation: Generation, rank: int) -> set[str]:
    """What a rank must hold."""
    experts = (number for number, ranks in enumerate(generation.placement) if rank in ranks)
    return {dense_part(generation.members[rank].stage), *map(expert_part, experts)}


def memory_address(node: NodeId) -> str:
    """Of a node's memory server."""
    return f"{node}:memory"
