"""What the core orders, carried out by the simulated cluster: each action takes the time that was measured for it.

One method for each action; what is answered are the events of production. Next: `play.py`, which owns clock and core.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, assert_never

from orchestrator.core import actions, events
from orchestrator.core.actions import Action
from orchestrator.core.events import Event
from orchestrator.core.ids import GenerationNumber, NodeId, Step, TrainerId, node_of
from orchestrator.core.spec import JobSpec
from orchestrator.core.state import NO_GENERATION, ClusterState, Generation, GenerationKind, Member
from simulation.planning import checks, sizes
from simulation.planning.costs import Costs
from simulation.planning.fleet import Fleet, Node, Trainer
from simulation.planning.host_memory import HostMemory
from simulation.planning.meter import Cause
from simulation.planning.scenario import Scenario
from simulation.planning.training import Doing, Training

SEAL_SECONDS = 0.05
"""Writing a manifest and renaming a folder."""


class Table(Protocol):
    """What is played with."""

    scenario: Scenario
    costs: Costs
    spec: JobSpec
    fleet: Fleet
    training: Training
    ended: str
    restores: int
    checkpoints: int

    @property
    def state(self) -> ClusterState: ...

    def later(self, seconds: float, what: Callable[[], None]) -> None: ...

    def tell(self, kind: Callable[..., Event], **fields: object) -> None: ...

    def tell_of(self, node: Node, trainer: Trainer, kind: Callable[..., Event], **fields: object) -> None: ...

    def changed(self) -> None: ...

    def disturb(self) -> None: ...

    def stop_training(self, doing: Doing) -> None: ...

    def since_began(self) -> float: ...

    def begin(self) -> None: ...

    def report_steps(self) -> None: ...

    def forget_steps_after(self, step: Step) -> None: ...


class Orders:
    """Carries out actions on the fleet and the training of a table."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._entered: GenerationNumber = NO_GENERATION
        """The newest generation whose members have been told."""
        self._boundary_due = False
        self._requests: list[str] = []
        """Checkpoints that wait for a boundary."""
        self._writing = 0
        self.memory = HostMemory(table)

    @property
    def busy(self) -> bool:
        """A checkpoint is being taken or written, or a boundary is waited for."""
        return bool(self._requests or self._writing or self._boundary_due) or self.memory.busy

    def carry_out(self, orders: Sequence[Action]) -> None:  # noqa: C901, PLR0912 - a table, one row per action
        """All actions of one outcome."""
        copies: list[actions.Acquire] = []
        for order in orders:
            match order:
                case actions.StartNode():
                    self._start(order.node)
                case actions.Assign():
                    self._assign(order.assignment)
                case actions.Acquire():
                    copies.append(order)
                case actions.RestartTrainer():
                    self._restart(order.trainer)
                case actions.CheckPair():
                    checks.begin(self._table, order)
                case actions.Fence():
                    self._fence(order.node)
                case actions.TakeCheckpoint():
                    self._take(order.request)
                case actions.TakeSnapshot():
                    self.memory.take(order)
                    self._await_boundary()
                case actions.DropSnapshots():
                    self.memory.drop(order)
                case actions.SealCheckpoint():
                    self._table.later(SEAL_SECONDS, partial(self._seal, order))
                case actions.RollBackLedger():
                    self._table.training.roll_back(order.step, self._table.since_began())
                    self._table.forget_steps_after(order.step)
                case actions.EndJob():
                    self._table.ended = order.reason
                case (
                    actions.Welcome()
                    | actions.StopNode()
                    | actions.StopTraining()
                    | actions.DeleteCheckpoint()
                    | actions.SetTimeouts()
                ):
                    pass  # configs are known, a job that ends ends the game, a deletion disturbs nobody
                case _:
                    assert_never(order)
        if copies:
            self._copy(copies)

    def process_of(self, member: Member) -> tuple[Node, Trainer | None]:
        """The node of a member, and its process if it is the one that has the seat."""
        node = self._table.fleet.node(node_of(member.trainer))
        process = self._table.fleet.trainer(member.trainer)
        return node, process if process is not None and process.start == member.start else None

    # ---- nodes and processes ----

    def _start(self, node_id: NodeId) -> None:
        """The cluster is asked for a node; one that is broken comes when it is repaired."""
        node = self._table.fleet.node(node_id)
        if not node.up and not node.away:
            self.boot(node)

    def boot(self, node: Node) -> None:
        """A node is there: its agent registers, its trainers get ready."""
        node.boot(self._table.fleet.devices)
        self._table.changed()
        incarnation = node.incarnation
        self._table.later(
            self._table.costs.node_start_seconds.value, lambda: self._register(node, incarnation)
        )

    def _register(self, node: Node, incarnation: str) -> None:
        if not node.up or node.incarnation != incarnation:
            return
        node.registered = True
        self._table.tell(
            events.NodeRegistered,
            node=node.id,
            incarnation=node.incarnation,
            labels=(("rack", self._table.scenario.cluster.rack_of(node.id)),),
            agent_pid=1,
            generation=NO_GENERATION,
            trainers=self._statuses(node),
            memory_address=f"{node.id}:memory",
        )
        for process in node.trainers:
            self._warm_up(node, process)
        self._table.disturb()

    def _statuses(self, node: Node) -> tuple[events.TrainerStatus, ...]:
        training = self._table.training
        works = training.doing is Doing.TRAINING and training.generation is not None
        number = training.generation.number if works and training.generation is not None else NO_GENERATION
        return self._table.fleet.statuses(node, training.committed, number)

    def _warm_up(self, node: Node, process: Trainer) -> None:
        """A fresh process becomes ready."""
        start = process.start

        def ready() -> None:
            if node.up and process in node.trainers and process.start == start and not process.ready:
                process.ready = True
                self._table.changed()
                status = next(each for each in self._statuses(node) if each.trainer == process.id)
                self._table.tell_of(node, process, events.TrainerBecameReady, status=status)

        self._table.later(self._table.costs.trainer_start_seconds.value, ready)

    def end_process(self, node: Node, process: Trainer, *, told: bool) -> None:
        """A process is gone and its agent starts another; `told` when the core hears of it as an exit."""
        gone = process.start
        process.start += 1
        process.ready = process.stuck = process.copying = False
        process.joined = NO_GENERATION
        self._table.changed()
        self._table.disturb()
        self._warm_up(node, process)
        if told:
            incarnation = node.incarnation

            def notice() -> None:
                if node.up and node.incarnation == incarnation:
                    self._table.tell(
                        events.TrainerExited,
                        trainer=process.id,
                        incarnation=incarnation,
                        start=gone,
                        exit_code=None,
                        signal=9,
                        will_restart=True,
                    )

            self._table.later(self._table.costs.crash_notice_seconds.value, notice)

    def notice_crash(self, node: Node, incarnation: str) -> None:
        """The stream of a dead node breaks, and a survivor loses touch."""
        reason = "connection reset by peer"
        self._table.tell(events.NodeDisconnected, node=node.id, incarnation=incarnation, reason=reason)
        self._lose_touch()

    def notice_hang(self, node: Node, process: Trainer) -> None:
        """An agent sees that a process gives no sign of life."""
        if node.up and process in node.trainers and process.stuck:
            silent = self._table.spec.timeouts.hang_seconds
            self._table.tell_of(node, process, events.TrainerFellSilent, silent_seconds=silent)

    def _lose_touch(self) -> None:
        """A survivor's collective fails, if the members are at one that cannot end."""
        training = self._table.training
        generation = training.generation
        if generation is None or training.doing not in (Doing.STUCK, Doing.REGROUPING):
            return
        if all(self._table.fleet.lives(member) for member in generation.members):
            return
        survivor = next((each for each in generation.members if self._table.fleet.lives(each)), None)
        if survivor is not None:
            node, process = self.process_of(survivor)
            assert process is not None
            self._table.tell_of(
                node,
                process,
                events.CommunicationFailed,
                generation=generation.number,
                step=training.committed,
                detail="connection reset by peer",
            )

    def _restart(self, trainer: TrainerId) -> None:
        process = self._table.fleet.trainer(trainer)
        if process is not None:
            self.end_process(self._table.fleet.node(node_of(trainer)), process, told=False)

    def _fence(self, node_id: NodeId) -> None:
        """Processes with a seat are ended; those that never had one stay and say so."""
        node = self._table.fleet.node(node_id)
        for process in node.trainers:
            if process.joined:
                self.end_process(node, process, told=False)
            elif process.ready:
                status = next(each for each in self._statuses(node) if each.trainer == process.id)
                self._table.tell_of(node, process, events.TrainerBecameReady, status=status)

    # ---- generations ----

    def _assign(self, generation: Generation) -> None:
        """A generation reaches its members, all in the same moment."""
        if generation.number <= self._entered:
            return
        self._entered = generation.number
        training = self._table.training
        if generation.kind is GenerationKind.PLANNED:
            training.planned = generation
            self._await_boundary()
            return
        training.planned = None
        self._requests.clear()
        self.memory.forget()
        self._table.stop_training(Doing.REGROUPING)
        self._enter(generation)

    def _enter(self, generation: Generation) -> None:
        """Members build groups, after reading a checkpoint where that is asked; then they are at work."""
        table, training = self._table, self._table.training
        training.generation = generation
        table.changed()
        if not generation.members:
            training.doing = Doing.WAITING
            return
        self._release(generation)
        restores = generation.kind is GenerationKind.RESTORE
        training.doing = Doing.RESTORING if restores else Doing.REGROUPING
        reading = self._reading(generation) if restores else 0.0
        table.restores += restores
        regrouping = table.costs.regroup(len(generation.members))
        if restores:
            table.later(reading, lambda: self._regroup(generation))
        table.later(reading + regrouping, lambda: self._join(generation))

    def _reading(self, generation: Generation) -> float:
        """Seconds until all members have what they go back to, from their agents' memory or from storage."""
        if generation.restore_shards:
            return self.memory.recall_seconds(generation)
        training = self._table.scenario.training
        return self._table.costs.read(sizes.fullest_node(training, generation, shared=False))

    def _regroup(self, generation: Generation) -> None:
        training = self._table.training
        if training.generation is generation and training.doing is Doing.RESTORING:
            training.doing = Doing.REGROUPING

    def _release(self, generation: Generation) -> None:
        """Who had a seat and has none in this generation is free; after an immediate one, as a fresh process."""
        seated = {member.trainer for member in generation.members}
        for node in self._table.fleet.nodes:
            for process in node.trainers:
                process.copying = False
                if process.joined and process.id not in seated and not process.stuck:
                    if generation.kind is GenerationKind.PLANNED:
                        process.joined = NO_GENERATION
                    else:
                        self.end_process(node, process, told=False)

    def _join(self, generation: Generation) -> None:
        """All members that live have tried to meet: they are at work, or one of them is missed."""
        table, training = self._table, self._table.training
        if training.generation is not generation or training.doing is not Doing.REGROUPING:
            return
        if not all(table.fleet.lives(member) for member in generation.members):
            training.doing = Doing.STUCK
            self._lose_touch()
            return
        training.go(generation)
        for member in generation.members:
            _, process = self.process_of(member)
            assert process is not None
            process.joined = generation.number
            process.copying = False
        table.changed()
        table.begin()
        redoes = generation.kind is GenerationKind.IMMEDIATE
        for member in generation.members:
            node, process = self.process_of(member)
            assert process is not None
            table.tell_of(
                node,
                process,
                events.GenerationJoined,
                generation=generation.number,
                committed=training.committed,
                completed_held=False,
                redoes=redoes,
                copied_parts=0,
            )
        self._await_boundary()

    # ---- boundaries ----

    def _await_boundary(self) -> None:
        if not self._boundary_due:
            self._boundary_due = True
            self._table.later(self._to_boundary(), self._boundary)

    def _to_boundary(self) -> float:
        training = self._table.training
        return training.to_boundary() if training.doing is Doing.TRAINING else 0.0

    def _boundary(self) -> None:
        """A step is committed: what waited for it happens. Asked again where pauses or failures came between."""
        table, training = self._table, self._table.training
        self._boundary_due = False
        if training.doing is not Doing.TRAINING:
            return
        if not training.at_boundary():
            self._await_boundary()
            return
        table.report_steps()
        requests, self._requests = self._requests, []
        for request in requests:
            self._save(request)
        self.memory.at_boundary()
        planned = training.planned
        if planned is not None:
            training.planned = None
            table.stop_training(Doing.REGROUPING)
            self._enter(planned)

    # ---- copies ----

    def _copy(self, orders: Sequence[actions.Acquire]) -> None:
        """Newcomers copy while the others train; donors stop for a moment to stage what they give."""
        table = self._table
        given: dict[TrainerId, dict[str, float]] = {}
        sent: dict[TrainerId, float] = {}
        received: dict[TrainerId, float] = {}
        for order in orders:
            for donor in order.donors:
                for part in donor.parts:
                    size = sizes.of_part(table.scenario.training, part)
                    given.setdefault(donor.trainer, {})[part] = size
                    sent[donor.trainer] = sent.get(donor.trainer, 0.0) + size
                    received[order.trainer] = received.get(order.trainer, 0.0) + size
        staging = max(table.costs.stage(sum(parts.values())) for parts in given.values())
        table.training.pause(Cause.COPY_STALL, staging)
        sending = table.costs.send(max(*sent.values(), *received.values()))
        for order in orders:
            process = table.fleet.trainer(order.trainer)
            if process is not None:
                process.copying = True
                table.later(staging + sending, partial(self._acquired, order))
        table.changed()

    def _acquired(self, order: actions.Acquire) -> None:
        node = self._table.fleet.node(order.node)
        process = self._table.fleet.trainer(order.trainer)
        if process is not None and process.copying:
            version = self._table.training.committed
            self._table.tell_of(
                node, process, events.PartsAcquired, acquisition=order.acquisition, version=version
            )

    # ---- checkpoints ----

    def stall_seconds(self) -> float:
        """How long a checkpoint stops training."""
        return self.memory.stall_seconds()

    def checkpoint_seconds(self) -> float:
        """From a checkpoint's timer to its seal, at most: a step to the boundary, the stall, the writing."""
        generation = self._table.training.generation
        if generation is None or not generation.members:
            return 0.0
        writing = self._table.costs.write(self._fullest_node(generation))
        waiting = 2 * self._table.training.speed.step_seconds
        return waiting + self.stall_seconds() + writing + SEAL_SECONDS

    def _take(self, request: str) -> None:
        if request not in self._requests:
            self._requests.append(request)
            self._await_boundary()

    def _save(self, request: str) -> None:
        """All members copy their shares to host memory, and write them while they train on."""
        table, training = self._table, self._table.training
        generation = training.generation
        assert generation is not None
        stall = self.stall_seconds()
        training.pause(Cause.CHECKPOINT_STALL, stall)
        self._writing += 1
        step = training.committed
        writing = table.costs.write(self._fullest_node(generation))

        def written() -> None:
            self._writing -= 1
            for member in generation.members:
                node, process = self.process_of(member)
                if process is None or not table.fleet.lives(member):
                    continue
                table.tell_of(
                    node,
                    process,
                    events.ShardWritten,
                    request=request,
                    generation=generation.number,
                    step=step,
                    name=f"step-{step:08d}.g{generation.number:04d}",
                    rank=member.rank,
                    shard="shard",
                    bytes=0,
                    stall_seconds=stall,
                )

        table.later(stall + writing, written)

    def _seal(self, order: actions.SealCheckpoint) -> None:
        process = self._table.fleet.trainer(order.trainer)
        if process is None:
            return
        self._table.checkpoints += 1
        self._table.tell_of(
            self._table.fleet.node(order.node),
            process,
            events.CheckpointSealed,
            request=order.request,
            step=order.step,
            name=order.name,
            path=order.name,
            bytes=0,
        )

    def _fullest_node(self, generation: Generation) -> float:
        """Gigabytes of a checkpoint that the busiest node writes."""
        return sizes.fullest_node(self._table.scenario.training, generation, shared=True)
