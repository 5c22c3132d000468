"""A world for the core to run in: agents and trainers as small models, time as a number, no processes, no network.

The machine under test is the real one. Agents do what their orders say (join, copy, write shards), die, stop and come
back; messages to nobody are dropped, and so are reports while no controller runs. `Disk` is what the store, the ledger
and the checkpoint folder would hold, so a controller can be restarted at any moment. Used by the scenarios and by the
random walk. Nothing here is random; who wants chance brings it along.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from orchestrator.core import actions, events
from orchestrator.core.events import Event, TrainerPhase, TrainerStatus
from orchestrator.core.ids import CauseId, GenerationNumber, NodeId, Step, TrainerId, node_of, trainer_id
from orchestrator.core.invariants import check, check_growth
from orchestrator.core.machine import Machine
from orchestrator.core.outcome import Outcome
from orchestrator.core.spec import JobSpec
from orchestrator.core.state import (
    NO_GENERATION,
    Checkpoint,
    ClusterState,
    Entity,
    Generation,
    GenerationKind,
    Incident,
    Job,
    Node,
)
from tests.scenarios.purity import no_hidden_inputs

TICK_SECONDS = 0.25
STEP_TICKS = 2
START_TICKS = 8
ACQUIRE_TICKS = 4
WRITE_TICKS = 3
HANG_SECONDS = 3.0
OUTBOX_LIMIT = 64


def parts_of(generation: Generation, rank: int) -> set[str]:
    """What a rank must hold."""
    experts = (number for number, ranks in enumerate(generation.placement) if rank in ranks)
    return {"dense", *(f"expert-{number:05d}" for number in experts)}


@dataclass(slots=True, kw_only=True)
class Trainer:
    """The model of a trainer process."""

    id: TrainerId
    start: int
    ready_at: float
    ready: bool = False
    stopped: bool = False
    refuses: str = ""
    generation: GenerationNumber = NO_GENERATION
    """The newest generation that it was told."""
    joined: GenerationNumber = NO_GENERATION
    """The newest generation that it has regrouped in."""
    step: int = 0
    holds: set[str] = field(default_factory=set)
    """Parts, at the version `step`."""
    restored: GenerationNumber = NO_GENERATION
    """The newest generation for which it has read a checkpoint or made the seed state."""
    following: bool = False
    """It has copied parts and follows the commits of its donors."""
    finished: bool = False
    told_end: bool = False
    broken: GenerationNumber = NO_GENERATION
    """It has told that it lost touch in this generation."""
    acquisition: str = ""
    acquiring: set[str] = field(default_factory=set)
    acquired_at: float = 0.0
    shard_due: list[tuple[float, events.ShardWritten]] = field(default_factory=list)
    beat_at: float = 0.0
    told_silent: bool = False


@dataclass(slots=True, kw_only=True)
class Agent:
    """The model of an agent, with the trainers that it supervises."""

    node: NodeId
    incarnation: str
    connected: bool = False
    stopped: bool = False
    partitioned: bool = False
    generation: GenerationNumber = NO_GENERATION
    trainers: dict[TrainerId, Trainer] = field(default_factory=dict)
    checkpoints: list[actions.TakeCheckpoint] = field(default_factory=list)
    stops: set[GenerationNumber] = field(default_factory=set)
    outbox: list[tuple[Callable[..., Event], dict[str, object]]] = field(default_factory=list)
    """What it could not tell while no controller listened."""


@dataclass(slots=True, kw_only=True)
class Disk:
    """What outlives a controller."""

    job: Job | None = None
    nodes: dict[NodeId, Node] = field(default_factory=dict)
    generations: dict[GenerationNumber, Generation] = field(default_factory=dict)
    incidents: dict[str, Incident] = field(default_factory=dict)
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    ledger: list[int] = field(default_factory=list)
    sealed: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)
    action_ids: set[str] = field(default_factory=set)
    rolled_back_for: GenerationNumber = NO_GENERATION

    def store(self, outcome: Outcome) -> None:
        for entity in outcome.changes:
            self._upsert(entity)
        for action in outcome.actions:
            assert action.id not in self.action_ids, f"action id {action.id} was used twice"
            self.action_ids.add(action.id)

    def load(self) -> ClusterState:
        begun = [each for each in self.generations.values() if each.began_at is not None]
        current = max(begun, key=lambda each: each.number, default=None)
        newest = max(self.generations.values(), key=lambda each: each.number, default=None)
        return ClusterState(
            job=self.job,
            nodes=dict(self.nodes),
            generation=current,
            planned=None if newest is current else newest,
            incidents={each.id: each for each in self.incidents.values()},
            checkpoints=dict(self.checkpoints),
            reported_through=self.reported_through,
        )

    @property
    def reported_through(self) -> Step:
        return Step(self.ledger[-1] if self.ledger else 0)

    def append(self, step: int, generation: int) -> None:
        if generation >= self.rolled_back_for and step == self.reported_through + 1:
            self.ledger.append(step)

    def _upsert(self, entity: Entity) -> None:
        match entity:
            case Job():
                self.job = entity
            case Node():
                self.nodes[entity.id] = entity
            case Generation():
                self.generations[entity.number] = entity
            case Incident():
                self.incidents[entity.id] = entity
            case Checkpoint():
                self.checkpoints[entity.request] = entity


class World:
    """Machine, disk and agents under one clock. `tell` is called with every line that a reader may want."""

    def __init__(self, spec: JobSpec, tell: Callable[[str], None] = lambda line: None) -> None:
        self.spec = spec
        self.at = 0.0
        self.disk = Disk()
        self.agents: dict[NodeId, Agent] = {}
        self.machine: Machine | None = Machine(ClusterState())
        self.ended: actions.EndJob | None = None
        self.fail_acquisitions: set[TrainerId] = set()
        self.fail_checkpoints: set[TrainerId] = set()
        self.forgetful = False
        """Agents lose what they report while no controller listens."""
        self.outcomes: list[tuple[Event, Outcome]] = []
        self.committed = 0
        """The last step that was really committed, whoever knows."""
        self.newest = NO_GENERATION
        """The generation whose commits count: who is cut off may train on in an older one, to no effect."""
        self._tell = tell
        self._queue: deque[Event] = deque()
        self._handling = False
        self._generation = NO_GENERATION
        self._causes = 0
        self._incarnations = 0
        self._shards: dict[str, int] = {}

    # ---- the controller ----

    @property
    def state(self) -> ClusterState:
        assert self.machine is not None, "no controller runs"
        return self.machine.state

    def stamp(self) -> tuple[float, CauseId]:
        self._causes += 1
        return self.at, CauseId(f"cause-{self._causes}")

    def submit(self, event: Event) -> None:
        """Hand an event to the controller, and everything that follows from it; lost while there is none."""
        self._queue.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._queue:
                self._handle(self._queue.popleft())
        finally:
            self._handling = False

    def command(self, kind: Callable[..., Event], **fields: object) -> None:
        at, cause = self.stamp()
        self.submit(kind(at=at, cause_id=cause, **fields))

    def start_job(self, *, resume: bool = False) -> None:
        self.command(events.JobSubmitted, spec=self.spec, resume=resume)

    def stop_controller(self) -> None:
        self.machine = None
        self._queue.clear()
        for agent in self.agents.values():
            agent.connected = False

    def start_controller(self) -> None:
        state = self.disk.load()
        self.machine = Machine(state)
        self.command(events.ControllerStarted)

    def _handle(self, event: Event) -> None:
        if self.machine is None:
            return
        state = self.machine.state
        if isinstance(event, events.StepCommitted):
            self.disk.append(event.record.step, event.record.generation)
        state.reported_through = self.disk.reported_through
        with no_hidden_inputs():
            outcome = self.machine.handle(event)
        self.disk.store(outcome)
        check(state)
        self._generation = check_growth(self._generation, state)
        self.outcomes.append((event, outcome))
        for reason in outcome.reasons:
            incident = f"{reason.incident} " if reason.incident else ""
            self._tell(f"{incident}{reason.text}")
        for action in outcome.actions:
            self._perform(action)

    def _perform(self, action: actions.Action) -> None:
        match action:
            case actions.StartNode():
                self._tell(f"-> StartNode {action.node}")
                self.start_agent(action.node)
            case actions.StopNode():
                self._tell(f"-> StopNode {action.node}")
                self.agents.pop(action.node, None)
            case actions.RollBackLedger():
                self._tell(f"-> RollBackLedger step {action.step}")
                self.disk.ledger = [step for step in self.disk.ledger if step <= action.step]
                self.disk.rolled_back_for = action.generation
                self.state.reported_through = self.disk.reported_through
            case actions.EndJob():
                self._tell(f"-> EndJob {'well' if action.succeeded else 'badly'}: {action.reason}")
                self.ended = action
            case _:
                agent = self.agents.get(action.node)
                if agent is not None and agent.connected and not agent.stopped:
                    self._tell_order(action)
                    self._order(agent, action)

    def _tell_order(self, action: actions.Action) -> None:
        match action:
            case actions.Acquire():
                donors = "; ".join(f"{each.trainer}: {' '.join(each.parts)}" for each in action.donors)
                self._tell(f"-> Acquire {action.trainer} from {donors}")
            case actions.Fence() | actions.TakeCheckpoint() | actions.StopTraining():
                self._tell(f"-> {type(action).__name__} {action.node}")
            case actions.RestartTrainer():
                self._tell(f"-> RestartTrainer {action.trainer}")
            case actions.SealCheckpoint():
                self._tell(f"-> SealCheckpoint {action.trainer} {action.name}")
            case actions.DeleteCheckpoint():
                self._tell(f"-> DeleteCheckpoint {action.name}")
            case _:
                pass

    # ---- failures ----

    def start_agent(self, node: NodeId) -> None:
        """A new agent process, unless one lives."""
        if node in self.agents:
            return
        self._incarnations += 1
        agent = Agent(node=node, incarnation=f"{node}#{self._incarnations}")
        for device in range(self.spec.cluster.devices_per_node):
            trainer = trainer_id(node, device)
            agent.trainers[trainer] = self._fresh(trainer, 1)
        self.agents[node] = agent

    def kill_node(self, node: NodeId) -> None:
        """SIGKILL of an agent and its trainers: the stream breaks, peers notice."""
        agent = self.agents.pop(node)
        self._say_disconnected(agent, "connection reset")

    def kill_trainer(self, trainer: TrainerId, *, will_restart: bool = True) -> None:
        """SIGKILL of one trainer: its agent notices."""
        agent = self.agents[node_of(trainer)]
        old = agent.trainers[trainer]
        self._report(
            agent,
            events.TrainerExited,
            trainer=trainer,
            start=old.start,
            exit_code=None,
            signal=9,
            will_restart=will_restart,
        )
        if node_of(trainer) not in self.agents:
            return
        if will_restart:
            agent.trainers[trainer] = self._fresh(trainer, old.start + 1)
        else:
            del agent.trainers[trainer]

    def stop_node(self, node: NodeId) -> None:
        """SIGSTOP of an agent and its trainers: nobody notices."""
        self.agents[node].stopped = True

    def wake_node(self, node: NodeId) -> None:
        """SIGCONT."""
        self.agents[node].stopped = False

    def stop_trainer(self, trainer: TrainerId) -> None:
        """SIGSTOP of one trainer."""
        self.agents[node_of(trainer)].trainers[trainer].stopped = True

    def cut(self, node: NodeId) -> None:
        """The stream of an agent breaks; its trainers are fine."""
        agent = self.agents[node]
        agent.partitioned = True
        self._say_disconnected(agent, "connection timed out")

    def heal(self, node: NodeId) -> None:
        """The agent of a cut node reaches the controller again."""
        self.agents[node].partitioned = False

    def break_communication(self, by: TrainerId) -> None:
        """A collective of one member raises, though everybody is alive."""
        agent = self.agents[node_of(by)]
        self._lost_touch(agent, agent.trainers[by], "connection reset by peer")

    def damage(self, name: str) -> None:
        """Bits of a checkpoint rot."""
        self.disk.damaged.add(name)

    # ---- time ----

    def run(self, seconds: float) -> None:
        """Let time pass."""
        for _ in range(round(seconds / TICK_SECONDS)):
            self.tick()

    def run_until(self, done: Callable[[], bool], within_seconds: float) -> None:
        """Let time pass until something is true. Fails after the limit."""
        limit = self.at + within_seconds
        while not done():
            assert self.at < limit, f"not within {within_seconds} s"
            self.tick()

    def tick(self) -> None:
        """A quarter of a second: agents register and beat, trainers work, the lease timer fires."""
        self.at += TICK_SECONDS
        for node in sorted(self.agents):
            if node in self.agents:
                self._agent_tick(self.agents[node])
        self._train()
        if self.machine is not None:
            self.command(events.LeasesDue)

    def _agent_tick(self, agent: Agent) -> None:
        if agent.stopped:
            return
        for trainer in tuple(agent.trainers.values()):
            if not trainer.stopped:
                trainer.beat_at = self.at
        if self.machine is None or agent.partitioned:
            return
        if not agent.connected:
            self._register(agent)
        for trainer in tuple(agent.trainers.values()):
            self._trainer_tick(agent, trainer)
        if agent.connected:
            at, cause = self.stamp()
            self.submit(
                events.HeartbeatReceived(
                    at=at,
                    cause_id=cause,
                    node=agent.node,
                    incarnation=agent.incarnation,
                    trainers=self._statuses(agent),
                )
            )

    def _trainer_tick(self, agent: Agent, trainer: Trainer) -> None:
        """What a trainer tells on its own, besides training."""
        silent = self.at - trainer.beat_at
        if silent > HANG_SECONDS and not trainer.told_silent:
            trainer.told_silent = True
            self._report(
                agent,
                events.TrainerFellSilent,
                trainer=trainer.id,
                start=trainer.start,
                silent_seconds=silent,
            )
        if trainer.stopped or agent.trainers.get(trainer.id) is not trainer:
            return
        if not trainer.ready and self.at >= trainer.ready_at:
            trainer.ready = True
            if trainer.refuses:
                trainer.ready = False
                self._report(
                    agent,
                    events.TrainerRefused,
                    trainer=trainer.id,
                    start=trainer.start,
                    reason=trainer.refuses,
                )
            else:
                self._report_ready(agent, trainer)
        if trainer.acquisition and self.at >= trainer.acquired_at:
            acquisition, trainer.acquisition = trainer.acquisition, ""
            if trainer.id in self.fail_acquisitions:
                self._report(
                    agent,
                    events.AcquisitionFailed,
                    trainer=trainer.id,
                    start=trainer.start,
                    acquisition=acquisition,
                    reason="the donor hung up",
                )
            else:
                trainer.holds |= trainer.acquiring
                trainer.following = True
                self._report(
                    agent,
                    events.PartsAcquired,
                    trainer=trainer.id,
                    start=trainer.start,
                    acquisition=acquisition,
                    version=Step(self.committed),
                )
        due = [shard for at, shard in trainer.shard_due if at <= self.at]
        trainer.shard_due = [(at, shard) for at, shard in trainer.shard_due if at > self.at]
        for shard in due:
            at, cause = self.stamp()
            self.submit(replace(shard, at=at, cause_id=cause, incarnation=agent.incarnation))

    # ---- training ----

    def _train(self) -> None:
        """Regroup whoever can; commit a step where all members of a generation are at work."""
        for generation in tuple(self._generations()):
            self._regroup(generation)
        for generation in tuple(self._generations()):
            self._restore(generation)
        if round(self.at / TICK_SECONDS) % STEP_TICKS:
            return
        for generation in tuple(self._generations()):
            self._step(generation)

    def _generations(self) -> Iterator[Generation]:
        """What trainers have been told, newest last."""
        told = {trainer.generation for agent in self.agents.values() for trainer in agent.trainers.values()}
        for number in sorted(told):
            if number in self.disk.generations:
                yield self.disk.generations[number]

    def _seated(self, generation: Generation) -> list[tuple[Agent, Trainer]] | None:
        """The living processes of all members; None when one is gone."""
        found = []
        for member in generation.members:
            agent = self.agents.get(node_of(member.trainer))
            trainer = agent.trainers.get(member.trainer) if agent else None
            if agent is None or trainer is None or trainer.start != member.start:
                return None
            found.append((agent, trainer))
        return found

    def _restore(self, generation: Generation) -> None:
        """Each member by itself reads its share of a checkpoint, or makes the seed state."""
        if generation.kind not in (GenerationKind.INITIAL, GenerationKind.RESTORE):
            return
        for member in generation.members:
            agent = self.agents.get(node_of(member.trainer))
            trainer = agent.trainers.get(member.trainer) if agent else None
            if agent is None or trainer is None or agent.stopped or trainer.stopped:
                continue
            if trainer.generation != generation.number or trainer.restored == generation.number:
                continue
            trainer.restored = generation.number
            if generation.restore_name in self.disk.damaged:
                self._report(
                    agent,
                    events.RestoreFailed,
                    trainer=trainer.id,
                    start=trainer.start,
                    generation=generation.number,
                    name=generation.restore_name,
                    shard="rank-00000.safetensors",
                    reason="hash does not match",
                    damaged=True,
                )
                trainer.holds.clear()
                continue
            trainer.step = generation.restore_step
            trainer.holds = parts_of(generation, member.rank)
            trainer.following = False

    def _regroup(self, generation: Generation) -> None:
        """Members that were all told a generation, and are all awake, shake hands."""
        seated = self._seated(generation)
        if not seated or any(
            agent.stopped or trainer.stopped or trainer.generation != generation.number
            for agent, trainer in seated
        ):
            return
        if any(trainer.joined == generation.number for _, trainer in seated):
            return
        if generation.kind in (GenerationKind.INITIAL, GenerationKind.RESTORE):
            if any(trainer.restored != generation.number or not trainer.holds for _, trainer in seated):
                return
            self.committed = generation.restore_step
            self.newest = generation.number
        elif not self._hand_over(generation, seated):
            return
        for _, trainer in seated:
            trainer.joined = generation.number
            trainer.step = self.committed
            trainer.finished = trainer.told_end = trainer.following = False
        for agent, trainer in seated:
            self._report(
                agent,
                events.GenerationJoined,
                trainer=trainer.id,
                start=trainer.start,
                generation=generation.number,
                committed=Step(self.committed),
                completed_held=False,
                redoes=generation.kind is GenerationKind.IMMEDIATE,
                copied_parts=0,
            )

    def _hand_over(self, generation: Generation, seated: list[tuple[Agent, Trainer]]) -> bool:
        """Every part is held by somebody at the step that all go on from; who lacks it gets it."""
        current = [t for _, t in seated if t.holds and (t.step == self.committed or t.following)]
        held = set().union(*(trainer.holds for trainer in current))
        wanted = {part for rank in range(len(seated)) for part in parts_of(generation, rank)}
        if not wanted <= held:
            for agent, trainer in seated:
                if trainer.broken != generation.number:
                    trainer.broken = generation.number
                    self._report(
                        agent,
                        events.StateRefused,
                        trainer=trainer.id,
                        start=trainer.start,
                        generation=generation.number,
                        step=Step(trainer.step),
                        reason=f"nobody holds {min(wanted - held)} at step {self.committed}",
                    )
            return False
        for rank, (_, trainer) in enumerate(seated):
            trainer.holds = parts_of(generation, rank)
        self.newest = generation.number
        return True

    def _step(self, generation: Generation) -> None:
        """One step of one generation, or the news that a peer is gone."""
        workers = [
            (agent, trainer)
            for agent in self.agents.values()
            for trainer in agent.trainers.values()
            if trainer.joined == generation.number
        ]
        if not workers or any(trainer.finished for _, trainer in workers):
            self._idle(generation, workers)
            return
        seated = self._seated(generation)
        if seated is None or any(self._has_left(trainer, generation) for _, trainer in seated):
            for agent, trainer in workers:
                awake = not agent.stopped and not trainer.stopped
                if awake and not self._has_left(trainer, generation):
                    self._lost_touch(agent, trainer, "connection reset by peer")
            return
        stuck = any(agent.stopped or trainer.stopped for agent, trainer in seated)
        if stuck or any(trainer.joined != generation.number for _, trainer in seated):
            return
        if any(trainer.broken == generation.number for _, trainer in seated):
            return
        self._commit(generation, seated)

    def _has_left(self, trainer: Trainer, generation: Generation) -> bool:
        """It was told a newer generation that waits for no boundary."""
        newer = trainer.generation > generation.number
        return newer and self.disk.generations[trainer.generation].kind is not GenerationKind.PLANNED

    def _commit(self, generation: Generation, seated: list[tuple[Agent, Trainer]]) -> None:
        step = seated[0][1].step + 1
        if generation.number == self.newest:
            assert all(trainer.step == self.committed for _, trainer in seated), "a committed step was lost"
            self.committed = step
        for _, trainer in seated:
            trainer.step = step
        for agent, trainer in seated[:2]:
            record = events.StepRecord(
                step=Step(step),
                generation=generation.number,
                loss=1.0,
                tokens=100,
                time=self.at,
                step_seconds=TICK_SECONDS * STEP_TICKS,
                sample_ids=(),
                expert_load=(1,) * self.spec.model.experts,
            )
            self._report(agent, events.StepCommitted, trainer=trainer.id, start=trainer.start, record=record)
        self._boundary(generation, seated)

    def _boundary(self, generation: Generation, seated: list[tuple[Agent, Trainer]]) -> None:
        """Orders that all members have are carried out; at the last step all leave the loop."""
        self._checkpoint(generation, seated)
        number = generation.number
        stops = all(number in agent.stops for agent, _ in seated)
        if stops or seated[0][1].step >= self.spec.steps:
            for _, trainer in seated:
                trainer.finished = True
            self._idle(generation, seated)

    def _idle(self, generation: Generation, workers: list[tuple[Agent, Trainer]]) -> None:
        """Members that have left the loop say so once, and still take checkpoints."""
        for agent, trainer in workers:
            if trainer.finished and not trainer.told_end and self.machine is not None and agent.connected:
                trainer.told_end = True
                self._report(
                    agent,
                    events.TrainingEnded,
                    trainer=trainer.id,
                    start=trainer.start,
                    generation=generation.number,
                    step=Step(trainer.step),
                    finished=trainer.step >= self.spec.steps,
                )
        seated = self._seated(generation)
        if workers and seated:
            self._checkpoint(generation, seated)

    def _checkpoint(self, generation: Generation, seated: list[tuple[Agent, Trainer]]) -> None:
        """A request that all members' agents have is carried out by all."""
        requests = [
            {order.request for order in agent.checkpoints if order.generation == generation.number}
            for agent, _ in seated
        ]
        for request in sorted(set.intersection(*requests)):
            for agent, _ in seated:
                agent.checkpoints = [order for order in agent.checkpoints if order.request != request]
            name = f"step-{seated[0][1].step:08d}.g{generation.number:04d}"
            for rank, (agent, trainer) in enumerate(seated):
                self._write(agent, trainer, generation, request, name, rank)

    def _write(
        self, agent: Agent, trainer: Trainer, generation: Generation, request: str, name: str, rank: int
    ) -> None:
        if trainer.id in self.fail_checkpoints:
            self._report(
                agent,
                events.CheckpointFailed,
                trainer=trainer.id,
                start=trainer.start,
                request=request,
                reason="no space left on device",
            )
            return
        at, cause = self.stamp()
        shard = events.ShardWritten(
            at=at,
            cause_id=cause,
            trainer=trainer.id,
            incarnation=agent.incarnation,
            start=trainer.start,
            request=request,
            generation=generation.number,
            step=Step(trainer.step),
            name=name,
            rank=rank,
            shard=f'{{"rank": {rank}}}',
            bytes=1000,
        )
        trainer.shard_due.append((self.at + TICK_SECONDS * WRITE_TICKS, shard))

    # ---- agents ----

    def _order(self, agent: Agent, action: actions.Action) -> None:
        match action:
            case actions.Assign():
                agent.generation = max(agent.generation, action.assignment.number)
                for trainer in tuple(agent.trainers.values()):
                    if trainer.ready and action.assignment.number > trainer.generation:
                        self._assigned(agent, trainer, action.assignment)
            case actions.Fence():
                self._fence(agent, action)
            case actions.RestartTrainer():
                self.kill_trainer(action.trainer)
            case actions.Acquire():
                if action.trainer in agent.trainers:
                    self._acquire(agent.trainers[action.trainer], action)
            case actions.TakeCheckpoint():
                agent.checkpoints.append(action)
            case actions.StopTraining():
                agent.stops.add(action.generation)
            case actions.SealCheckpoint():
                self._seal(agent, action)
            case _:
                pass

    def _assigned(self, agent: Agent, trainer: Trainer, generation: Generation) -> None:
        """A newer generation ends copies. Who has lost its seat in it is ended; who leaves as planned is a spare."""
        seats = {(member.trainer, member.start) for member in generation.members}
        seated = (trainer.id, trainer.start) in seats
        planned = generation.kind is GenerationKind.PLANNED
        trainer.acquisition = ""
        if not planned:
            trainer.following = False
        if not seated and trainer.joined and not planned:
            agent.trainers[trainer.id] = self._fresh(trainer.id, trainer.start + 1)
        elif seated:
            trainer.generation = generation.number
        elif planned and trainer.joined:
            trainer.joined = trainer.generation = NO_GENERATION
            trainer.holds.clear()

    def _fence(self, agent: Agent, action: actions.Fence) -> None:
        """Processes that had a seat are ended; those that never had one stay, and say so."""
        agent.generation = max(agent.generation, action.generation)
        for trainer in tuple(agent.trainers.values()):
            if trainer.generation:
                agent.trainers[trainer.id] = self._fresh(trainer.id, trainer.start + 1)
            elif trainer.ready:
                self._report_ready(agent, trainer)

    def _acquire(self, trainer: Trainer, action: actions.Acquire) -> None:
        trainer.acquisition = action.acquisition
        trainer.acquiring = {part for donor in action.donors for part in donor.parts}
        if not trainer.joined:
            trainer.holds.clear()
        trainer.acquired_at = self.at + ACQUIRE_TICKS * TICK_SECONDS

    def _seal(self, agent: Agent, action: actions.SealCheckpoint) -> None:
        trainer = agent.trainers[action.trainer]
        self.disk.sealed.add(action.name)
        self._report(
            agent,
            events.CheckpointSealed,
            trainer=trainer.id,
            start=trainer.start,
            request=action.request,
            step=action.step,
            name=action.name,
            path=f"/checkpoints/{action.name}",
            bytes=4000,
        )

    def _register(self, agent: Agent) -> None:
        agent.connected = True
        at, cause = self.stamp()
        self.submit(
            events.NodeRegistered(
                at=at,
                cause_id=cause,
                node=agent.node,
                incarnation=agent.incarnation,
                labels=(),
                agent_pid=1000 + len(self.agents),
                generation=agent.generation,
                trainers=self._statuses(agent),
            )
        )
        for trainer in tuple(agent.trainers.values()):
            trainer.told_end = False
            if trainer.broken == trainer.joined and trainer.broken:
                self._lost_touch(agent, trainer, "connection reset by peer", again=True)
        outbox, agent.outbox = agent.outbox, []
        for kind, fields in outbox:
            self._report(agent, kind, **fields)

    def _say_disconnected(self, agent: Agent, reason: str) -> None:
        if agent.connected and self.machine is not None:
            agent.connected = False
            at, cause = self.stamp()
            self.submit(
                events.NodeDisconnected(
                    at=at, cause_id=cause, node=agent.node, incarnation=agent.incarnation, reason=reason
                )
            )

    def _lost_touch(self, agent: Agent, trainer: Trainer, detail: str, *, again: bool = False) -> None:
        if trainer.broken == trainer.joined and not again:
            return
        trainer.broken = trainer.joined
        self._report(
            agent,
            events.CommunicationFailed,
            trainer=trainer.id,
            start=trainer.start,
            generation=trainer.joined,
            step=Step(trainer.step),
            detail=detail,
        )

    def _report_ready(self, agent: Agent, trainer: Trainer) -> None:
        status = self._status(trainer)
        self._report(agent, events.TrainerBecameReady, trainer=trainer.id, start=trainer.start, status=status)

    def _report(self, agent: Agent, kind: Callable[..., Event], **fields: object) -> None:
        """A report of an agent; kept (or lost, when agents are forgetful) while nobody listens."""
        if self.machine is not None and agent.connected:
            at, cause = self.stamp()
            self.submit(kind(at=at, cause_id=cause, incarnation=agent.incarnation, **fields))
        elif not self.forgetful:
            agent.outbox = [*agent.outbox, (kind, fields)][-OUTBOX_LIMIT:]

    def _fresh(self, trainer: TrainerId, start: int) -> Trainer:
        return Trainer(
            id=trainer, start=start, ready_at=self.at + START_TICKS * TICK_SECONDS, beat_at=self.at
        )

    def _statuses(self, agent: Agent) -> tuple[TrainerStatus, ...]:
        return tuple(self._status(trainer) for trainer in agent.trainers.values())

    def _status(self, trainer: Trainer) -> TrainerStatus:
        phase = TrainerPhase.READY if trainer.ready else TrainerPhase.STARTING
        if trainer.finished:
            phase = TrainerPhase.FINISHED
        elif trainer.joined and trainer.joined == trainer.generation and trainer.broken != trainer.joined:
            phase = TrainerPhase.FORWARD
        elif trainer.joined:
            phase = TrainerPhase.REGROUPING
        return TrainerStatus(
            trainer=trainer.id,
            start=trainer.start,
            pid=100 + trainer.start,
            ready=trainer.ready,
            store_address=f"{trainer.id}:store",
            peer_address=f"{trainer.id}:peer",
            device_name="cpu",
            generation=trainer.joined,
            step=Step(trainer.step),
            phase=phase,
            operation=trainer.step * 10,
            waiting=not trainer.stopped,
            silent_seconds=self.at - trainer.beat_at,
        )
