"""What agents do: register, beat, report, obey. A small model of `worker/agent`, with its promises to the core.

Reports about a trainer go through `report`, which keeps them while no controller listens (or loses them, when agents
are forgetful: the core must do without them). Next: `training.py`, `world.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from orchestrator.core import actions, events, spec_rules
from orchestrator.core.events import CheckOutcome, Event
from orchestrator.core.ids import CauseId, GenerationNumber, NodeId, Step, TrainerId, node_of, trainer_id
from orchestrator.core.spec import JobSpec
from orchestrator.core.state import NO_GENERATION, Generation, GenerationKind
from tests.scenarios.models import (
    ACQUIRE_SECONDS,
    CHECK_SECONDS,
    HANG_SECONDS,
    OUTBOX_LIMIT,
    START_SECONDS,
    Agent,
    Disk,
    Trainer,
    memory_address,
)


class Controller(Protocol):
    """What agents see of the world."""

    at: float
    disk: Disk
    spec: JobSpec

    @property
    def listens(self) -> bool: ...

    def stamp(self) -> tuple[float, CauseId]: ...

    def submit(self, event: Event) -> None: ...


class Agents:
    """All agents by node."""

    def __init__(self, controller: Controller) -> None:
        self.alive: dict[NodeId, Agent] = {}
        self.fail_acquisitions: set[TrainerId] = set()
        self.overtake_acquisitions: set[TrainerId] = set()
        """Trainers that copy more slowly than training goes on."""
        self.wrong: set[TrainerId] = set()
        """Trainers that compute wrong answers in pair checks."""
        self.slowness: dict[NodeId, float] = {}
        """How many times as long a node needs for its work."""
        self.stall_seconds = 0.0
        self.slow_seals: list[tuple[Agent, actions.SealCheckpoint]] | None = None
        """Orders to seal that are not carried out yet; None while each is at once."""
        """How long training stands still for a checkpoint or a snapshot, as the members report it."""
        self.racks = 0
        """In which nodes stand, those of a rack one after the other; 0 for no labels."""
        self.with_memory = False
        """They have host memory for snapshots."""
        self.forgetful = False
        self._controller = controller
        self._incarnations = 0

    # ---- processes ----

    def start(self, node: NodeId) -> None:
        """A new agent process, unless one lives."""
        if node in self.alive:
            return
        self._incarnations += 1
        agent = Agent(node=node, incarnation=f"{node}#{self._incarnations}")
        for device in range(self._controller.spec.cluster.devices_per_node):
            trainer = trainer_id(node, device)
            agent.trainers[trainer] = self._fresh(trainer, 1)
        self.alive[node] = agent

    def end(self, node: NodeId) -> None:
        """The agent and its trainers end; the stream breaks."""
        agent = self.alive.pop(node, None)
        if agent is not None:
            self.disconnect(agent, "connection reset")

    def end_trainer(self, trainer: TrainerId, *, again: bool = True) -> None:
        """A trainer process ends by a signal; its agent starts another, or gives the device up."""
        agent = self.alive[node_of(trainer)]
        old = agent.trainers[trainer]
        if again:
            agent.trainers[trainer] = self._fresh(trainer, old.start + 1)
        else:
            del agent.trainers[trainer]
        kind = events.TrainerExited
        self.report(agent, old, kind, exit_code=None, signal=9, will_restart=again)

    # ---- the stream ----

    def disconnect(self, agent: Agent, reason: str) -> None:
        """The stream of an agent breaks, and the controller notices."""
        if agent.connected and self._controller.listens:
            agent.connected = False
            at, cause = self._controller.stamp()
            self._controller.submit(
                events.NodeDisconnected(
                    at=at, cause_id=cause, node=agent.node, incarnation=agent.incarnation, reason=reason
                )
            )

    def report(self, agent: Agent, trainer: Trainer, kind: Callable[..., Event], **fields: object) -> None:
        """What an agent tells about one of its trainers."""
        self._tell(agent, kind, {"trainer": trainer.id, "start": trainer.start, **fields})

    def lost_touch(
        self, agent: Agent, trainer: Trainer, number: GenerationNumber | None = None, *, again: bool = False
    ) -> None:
        """A collective of a member raises; told once per generation, and again after a registration."""
        number = number or trainer.joined
        if trainer.broken == number and not again:
            return
        trainer.broken = number
        self.report(
            agent,
            trainer,
            events.CommunicationFailed,
            generation=number,
            step=Step(trainer.step),
            detail="connection reset by peer",
        )

    def tick(self, agent: Agent) -> None:
        """A quarter of a second of an agent: register if need be, look after the trainers, beat."""
        at = self._controller.at
        if agent.stopped:
            return
        for trainer in agent.trainers.values():
            if not trainer.stopped:
                trainer.beat_at = at
        if not self._controller.listens or agent.cut:
            return
        unread, agent.unread = agent.unread, []
        for action in unread if agent.connected else ():
            self._carry_out(agent, action)
        if not agent.connected:
            self._register(agent)
        for trainer in tuple(agent.trainers.values()):
            self._look_after(agent, trainer)
        if agent.connected:
            self._beat(agent)

    def _labels(self, node: NodeId) -> tuple[tuple[str, str], ...]:
        nodes = spec_rules.node_ids(self._controller.spec.cluster)
        if not self.racks or node not in nodes:
            return ()
        return (("rack", f"rack-{nodes.index(node) * self.racks // len(nodes) + 1}"),)

    def tell_held(self, agent: Agent) -> None:
        """All that an agent holds; what it could not tell it tells when it registers."""
        if agent.connected and self._controller.listens:
            at, cause = self._controller.stamp()
            self._controller.submit(
                events.SnapshotsHeld(
                    at=at, cause_id=cause, node=agent.node, incarnation=agent.incarnation, held=agent.held
                )
            )

    def _beat(self, agent: Agent) -> None:
        at, cause = self._controller.stamp()
        statuses = tuple(trainer.status(at, self.slowness) for trainer in agent.trainers.values())
        self._controller.submit(
            events.HeartbeatReceived(
                at=at, cause_id=cause, node=agent.node, incarnation=agent.incarnation, trainers=statuses
            )
        )

    def _register(self, agent: Agent) -> None:
        agent.connected = True
        at, cause = self._controller.stamp()
        self._controller.submit(
            events.NodeRegistered(
                at=at,
                cause_id=cause,
                node=agent.node,
                incarnation=agent.incarnation,
                labels=self._labels(agent.node),
                agent_pid=1000,
                generation=agent.generation,
                trainers=tuple(trainer.status(at, self.slowness) for trainer in agent.trainers.values()),
                memory_address=memory_address(agent.node) if self.with_memory else "",
                held=agent.held,
            )
        )
        for trainer in tuple(agent.trainers.values()):
            trainer.told_end = False
            if trainer.broken and trainer.broken == trainer.generation:
                self.lost_touch(agent, trainer, trainer.broken, again=True)
        outbox, agent.outbox = agent.outbox, []
        for kind, fields in outbox:
            self._tell(agent, kind, fields)

    def _tell(self, agent: Agent, kind: Callable[..., Event], fields: dict[str, object]) -> None:
        if self._controller.listens and agent.connected:
            at, cause = self._controller.stamp()
            self._controller.submit(kind(at=at, cause_id=cause, incarnation=agent.incarnation, **fields))
        elif not self.forgetful:
            agent.outbox = [*agent.outbox, (kind, fields)][-OUTBOX_LIMIT:]

    def _look_after(self, agent: Agent, trainer: Trainer) -> None:
        """What an agent tells of a trainer by itself: silence, readiness, copies, shards."""
        at = self._controller.at
        silent = at - trainer.beat_at
        told = agent.timeouts
        limit = told.hang_seconds if told is not None and told.generation == trainer.joined else HANG_SECONDS
        if silent > limit and not trainer.told_silent:
            trainer.told_silent = True
            self.report(agent, trainer, events.TrainerFellSilent, silent_seconds=silent)
        if trainer.stopped or agent.trainers.get(trainer.id) is not trainer:
            return
        if not trainer.ready and at >= trainer.ready_at:
            self._become_ready(agent, trainer)
        if trainer.acquisition and at >= trainer.acquired_at:
            self._acquired(agent, trainer)
        if trainer.check is not None and at >= trainer.check_due:
            self._checked(agent, trainer, trainer.check)
        done = [fields for due, fields in trainer.shards if due <= at]
        trainer.shards = [(due, fields) for due, fields in trainer.shards if due > at]
        for fields in done:
            self.report(agent, trainer, events.ShardWritten, **fields)

    def _become_ready(self, agent: Agent, trainer: Trainer) -> None:
        if trainer.refuses:
            trainer.ready_at = float("inf")
            self.report(agent, trainer, events.TrainerRefused, reason=trainer.refuses)
            return
        trainer.ready = True
        self._say_ready(agent, trainer)

    def _say_ready(self, agent: Agent, trainer: Trainer) -> None:
        status = trainer.status(self._controller.at, self.slowness)
        self.report(agent, trainer, events.TrainerBecameReady, status=status)

    def _acquired(self, agent: Agent, trainer: Trainer) -> None:
        donors = [self._living(donor) for donor in trainer.donors]
        if any(donor is not None and donor.stopped for donor in donors):
            return
        acquisition, trainer.acquisition = trainer.acquisition, ""
        if trainer.id in self.fail_acquisitions or None in donors:
            reason = "the donor hung up"
            self.report(agent, trainer, events.AcquisitionFailed, acquisition=acquisition, reason=reason)
            return
        if trainer.id in self.overtake_acquisitions:
            fields = {"acquisition": acquisition, "reason": "log full", "standing_only": True}
            self.report(agent, trainer, events.AcquisitionFailed, **fields)
            return
        trainer.holds |= trainer.acquiring
        trainer.following = True
        self.report(
            agent, trainer, events.PartsAcquired, acquisition=acquisition, version=self._newest_step()
        )

    def _checked(self, agent: Agent, trainer: Trainer, check: actions.CheckPair) -> None:
        """Both of a pair are there and awake, or the one that is says that it was alone."""
        trainer.check = None
        others = [
            other
            for each in self.alive.values()
            for other in each.trainers.values()
            if other.id != trainer.id
            and not each.stopped
            and not other.stopped
            and check.check in (other.checked, other.check.check if other.check else "")
        ]
        trainer.checked = check.check
        met = bool(others)
        self.report(
            agent,
            trainer,
            events.PairChecked,
            check=check.check,
            outcome=CheckOutcome.DONE if met else CheckOutcome.FAILED,
            right=trainer.id not in self.wrong,
            digest="abcdef012345",
            compute_seconds=0.2 * self.slowness.get(node_of(trainer.id), 1.0),
            exchange_seconds=0.01,
            reason="" if met else "the other one did not come",
        )

    # ---- orders ----

    def obey(self, action: actions.Action, node: NodeId) -> bool:
        """Carry out an order, if it arrives."""
        agent = self.alive.get(node)
        if agent is None or not agent.connected:
            return False
        if agent.stopped:
            agent.unread.append(action)
        else:
            self._carry_out(agent, action)
        return True

    def _carry_out(self, agent: Agent, action: actions.Action) -> None:
        match action:
            case actions.Assign():
                self._assign(agent, action.assignment)
            case actions.Fence():
                self._fence(agent, action)
            case actions.RestartTrainer() if action.trainer in agent.trainers:
                if agent.trainers[action.trainer].start == action.start:
                    self.end_trainer(action.trainer)
            case actions.CheckPair() if action.trainer in agent.trainers:
                agent.trainers[action.trainer].check = action
                agent.trainers[action.trainer].check_due = self._controller.at + CHECK_SECONDS
            case actions.Acquire() if action.trainer in agent.trainers:
                self._acquire(agent.trainers[action.trainer], action)
            case actions.TakeCheckpoint():
                agent.checkpoints.append(action)
            case actions.TakeSnapshot() | actions.DropSnapshots() | actions.SetTimeouts():
                self._take_in(agent, action)
            case actions.StopTraining():
                agent.stops.add(action.generation)
            case actions.SealCheckpoint():
                self._seal(agent, action)
            case _:
                pass

    def _take_in(
        self, agent: Agent, action: actions.TakeSnapshot | actions.DropSnapshots | actions.SetTimeouts
    ) -> None:
        """What is for the agent itself."""
        match action:
            case actions.TakeSnapshot() if self.with_memory:
                agent.snapshots.append(action)
            case actions.DropSnapshots():
                agent.held = tuple(each for each in agent.held if each.name not in action.names)
            case actions.SetTimeouts():
                agent.timeouts = action
            case _:
                pass

    def _assign(self, agent: Agent, generation: Generation) -> None:
        agent.generation = max(agent.generation, generation.number)
        for trainer in tuple(agent.trainers.values()):
            if trainer.ready and generation.number > trainer.generation:
                self._assigned(agent, trainer, generation)

    def _assigned(self, agent: Agent, trainer: Trainer, generation: Generation) -> None:
        """A newer generation ends copies. Who has no seat in it is ended, or leaves at the boundary if planned."""
        seats = {(member.trainer, member.start) for member in generation.members}
        planned = generation.kind is GenerationKind.PLANNED
        trainer.acquisition = ""
        trainer.leaves = NO_GENERATION
        if not planned:
            trainer.following = False
        if (trainer.id, trainer.start) in seats:
            trainer.generation = generation.number
        elif trainer.joined and planned:
            trainer.leaves = generation.number
        elif trainer.generation:
            agent.trainers[trainer.id] = self._fresh(trainer.id, trainer.start + 1)

    def _fence(self, agent: Agent, action: actions.Fence) -> None:
        """Processes that have a seat are ended; those that never had one stay, and say so."""
        if action.generation < agent.generation:
            return
        agent.generation = action.generation
        for trainer in tuple(agent.trainers.values()):
            if trainer.generation:
                agent.trainers[trainer.id] = self._fresh(trainer.id, trainer.start + 1)
            elif trainer.ready:
                self._say_ready(agent, trainer)

    def _acquire(self, trainer: Trainer, action: actions.Acquire) -> None:
        trainer.acquisition = action.acquisition
        trainer.acquiring = {part for donor in action.donors for part in donor.parts}
        trainer.donors = tuple(donor.trainer for donor in action.donors)
        if not trainer.joined:
            trainer.holds.clear()
        trainer.acquired_at = self._controller.at + ACQUIRE_SECONDS

    def _living(self, trainer: TrainerId) -> Trainer | None:
        """A trainer as it is; one on a stopped node is stopped too."""
        agent = self.alive.get(node_of(trainer))
        found = agent.trainers.get(trainer) if agent else None
        if agent is not None and agent.stopped and found is not None:
            return replace(found, stopped=True)
        return found

    def _newest_step(self) -> Step:
        return Step(max(trainer.step for agent in self.alive.values() for trainer in agent.trainers.values()))

    def seal_what_waits(self) -> None:
        """Storage answers again: who still lives seals what it was told to."""
        waiting, self.slow_seals = self.slow_seals or [], None
        for agent, action in waiting:
            if agent in self.alive.values():
                self._seal(agent, action)

    def _seal(self, agent: Agent, action: actions.SealCheckpoint) -> None:
        if self.slow_seals is not None:
            self.slow_seals.append((agent, action))
            return
        self._controller.disk.sealed.add(action.name)
        self.report(
            agent,
            agent.trainers[action.trainer],
            events.CheckpointSealed,
            request=action.request,
            step=action.step,
            name=action.name,
            path=f"/checkpoints/{action.name}",
            bytes=4000,
        )

    def _fresh(self, trainer: TrainerId, start: int) -> Trainer:
        at = self._controller.at
        return Trainer(id=trainer, start=start, ready_at=at + START_SECONDS, beat_at=at)
