"""What an agent does: events in, instructions out. PURE: no IO, no clock, no waiting; time comes with the events.

Theory of operation. Three things are kept apart. The *link* to the controller comes and goes, and training does not
depend on it: what must not be lost waits in the outbox, steps in the ring, and both are sent after the next welcome.
The *devices* each have at most one trainer process, named by its start. The *generation* is the fence: `newest` is
the highest number heard of, `floor` the lowest that still counts; they differ while a planned generation waits for a
step boundary. A process that had a seat in an older generation and has none in a newer one must not act any more: it
is killed and a fresh one started, unless it leaves at a boundary as planned. Whatever is late is dropped with a note.

States are in `lifecycle.py`, processes in `crew.py` and `device.py`, limits in `policy.py`. Next: `driver.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_never

from worker.agent import errands, policy
from worker.agent import messages as to_trainer
from worker.agent.controller_messages import (
    Acquire,
    Assign,
    CheckPair,
    ControllerMessage,
    DeleteCheckpoint,
    DropSnapshots,
    Fence,
    Generation,
    Heartbeat,
    Registration,
    RestartTrainer,
    SealCheckpoint,
    SetTimeouts,
    Shutdown,
    StopTraining,
    TakeCheckpoint,
    TakeSnapshot,
    TrainerSaid,
    Welcome,
)
from worker.agent.crew import Crew, JobOrder
from worker.agent.device import Device, Killed
from worker.agent.events import (
    ClockTicked,
    ControllerConnected,
    ControllerLost,
    ControllerSpoke,
    CopyArrived,
    CopyEnded,
    EndAsked,
    Event,
    TrainerEnded,
    TrainerReported,
    TrainerStarted,
)
from worker.agent.instructions import AdmitCallers, EndAgent, Instruction
from worker.agent.lifecycle import Link, State, Trigger, follow
from worker.agent.outbox import Outbox
from worker.agent.outgoing import Outgoing
from worker.agent.policy import ConfigError, Policy
from worker.agent.seats import seat_of
from worker.agent.snapshots import Snapshots
from worker.agent.step_ring import KeptStep, StepRing

EXIT_DONE = 0
EXIT_ORPHANED = 1
EXIT_CONFIG = 2

_Order = (
    Assign
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
)


class Machine:
    """One agent. `handle` is the only way to change it."""

    def __init__(
        self,
        *,
        node: str,
        incarnation: str,
        labels: Mapping[str, str],
        agent_pid: int,
        workdir: str,
        devices: int | None,
        at: float,
        memory_address: str = "",
    ) -> None:
        """`memory_address` is where this agent's memory server listens; empty where there is none."""
        self.node = node
        self.state = State.JOINING
        self.newest = 0
        self.floor = 0
        self.assignment: Generation | None = None
        self.previous: Generation | None = None
        self.policy: Policy | None = None
        self.ring = StepRing(policy.STEP_RECORDS_LIMIT)
        self.outgoing = Outgoing(Outbox(limit=policy.OUTBOX_LIMIT, settled_seconds=policy.SETTLED_SECONDS))
        self.snapshots = Snapshots(self.outgoing)
        self.crew: Crew | None = None
        self._memory_address = memory_address
        self._incarnation = incarnation
        self._labels = tuple(sorted(labels.items()))
        self._agent_pid = agent_pid
        self._workdir = workdir
        self._device_count = devices
        self._config: dict[str, Any] = {}
        self._away_since = at
        self._ticked_at = at
        self._heartbeat_at = at

    def handle(self, event: Event) -> list[Instruction]:
        """Take in what happened; returns what to do, in order."""
        if self.state is State.ENDING:
            return []
        match event:
            case ControllerConnected():
                self._connected(event)
            case ControllerLost():
                self._lost(event)
            case ControllerSpoke():
                self._hear(event.message, event.at)
            case TrainerStarted() | TrainerReported() | TrainerEnded():
                self._trainer_event(event)
            case CopyArrived():
                self.snapshots.arrived(event)
            case CopyEnded():
                self.snapshots.sent(event)
            case ClockTicked():
                self._tick(event)
            case EndAsked():
                self._end(event.reason, event.exit_code)
            case _:
                assert_never(event)
        self._follow_seats()
        return self.outgoing.take()

    # ---- the link to the controller ----

    def _connected(self, event: ControllerConnected) -> None:
        self.outgoing.link = Link.REGISTERING
        registration = Registration(
            node=self.node,
            incarnation=self._incarnation,
            labels=self._labels,
            agent_pid=self._agent_pid,
            generation=self.newest,
            trainers=self.crew.statuses(event.at) if self.crew else (),
            memory_address=self._memory_address,
            held=self.snapshots.held(),
        )
        self.outgoing.send(registration)

    def _lost(self, event: ControllerLost) -> None:
        if self.outgoing.link is Link.REGISTERED:
            self._away_since = event.at
            self.outgoing.note(f"the controller is away: {event.reason}")
        self.outgoing.link = Link.AWAY

    def _hear(self, message: ControllerMessage, at: float) -> None:
        if isinstance(message, Shutdown):
            self._end(f"the controller said so: {message.reason}", EXIT_DONE)
        elif isinstance(message, Welcome):
            self._welcomed(message, at)
        elif self.crew is None or self.outgoing.link is not Link.REGISTERED:
            self.outgoing.note(f"{type(message).__name__} before a welcome: ignored")
        else:
            self._obey(self.crew, message, at)

    def _obey(self, crew: Crew, message: _Order, at: float) -> None:
        match message:
            case Assign():
                self._assigned(crew, message)
            case Fence():
                self._fenced(crew, message, at)
            case TakeCheckpoint():
                self._take_checkpoint(crew, message, at)
            case StopTraining():
                self._stop_training(crew, message)
            case TakeSnapshot():
                self._take_snapshot(crew, message)
            case DropSnapshots():
                self.snapshots.drop(message)
            case SetTimeouts():
                crew.told = message
            case Acquire() | RestartTrainer() | CheckPair() | SealCheckpoint() | DeleteCheckpoint():
                errands.run(crew, self.outgoing, message, self.floor, at)
            case _:
                assert_never(message)

    def _welcomed(self, message: Welcome, at: float) -> None:
        if not message.copy_token:
            self._end("the controller's welcome cannot be used: copy_token is empty", EXIT_CONFIG)
            return
        try:
            config = policy.read_config(message.config)
            limits = policy.read_policy(config, self._device_count)
        except ConfigError as error:
            self._end(f"the controller's welcome cannot be used: {error}", EXIT_CONFIG)
            return
        if self.crew is not None and config != self._config:
            reason = "the controller now runs another job than this agent's trainers; start a fresh agent"
            self._end(reason, EXIT_CONFIG)
            return
        self.outgoing.link = Link.REGISTERED
        self._heartbeat_at = at + limits.heartbeat_seconds
        if self.crew is None:
            self._join(config, message, limits, at)
        self._resend_steps(message.reported_through)
        self.outgoing.resend(at)

    def _join(self, config: dict[str, Any], message: Welcome, limits: Policy, at: float) -> None:
        """The first welcome: the job is known, so the trainers can warm up."""
        self._config, self.policy = config, limits
        self.state = follow(self.state, Trigger.WELCOMED)
        self.crew = Crew(
            node=self.node,
            limits=limits,
            job=JobOrder(config=message.config, workdir=self._workdir, copy_token=message.copy_token),
            outgoing=self.outgoing,
        )
        self.outgoing.emit(AdmitCallers(job=str(config.get("name")), copy_token=message.copy_token))
        for device in self.crew.devices.values():
            self.crew.start(device, at, "the job is known")

    # ---- generations ----

    def _assigned(self, crew: Crew, message: Assign) -> None:
        new = message.generation
        if new.number < self.newest:
            self.outgoing.note(f"generation {new.number} is older than {self.newest}: ignored")
            return
        if self.assignment is None or new.number > self.assignment.number:
            self._advance(crew, new)
        for device in crew.devices.values():
            self._seat(crew, device, new)
        self._resend_steps(message.reported_through)

    def _advance(self, crew: Crew, new: Generation) -> None:
        """A newer generation is known. A planned one leaves the running one valid until it is joined."""
        devices = crew.devices.values()
        if any(device.rank_in(new) >= 0 for device in devices) and not any(device.seat for device in devices):
            self.ring.clear()  # a newcomer: what this node knew may have been undone while it had no seat
        self.previous, self.assignment = self.assignment, new
        self.newest = new.number
        if new.kind == "restore":
            self.ring.roll_back(new.restore_step, new.number)
        if new.kind != "planned":
            self._raise_floor(new.number)

    def _raise_floor(self, number: int) -> None:
        if number > self.floor:
            self.floor = number
            self.outgoing.outbox.forget_generations_below(number)

    def _seat(self, crew: Crew, device: Device, generation: Generation) -> None:
        """Tell one trainer the generation, or end it if the generation has gone on without it."""
        if not device.usable or device.told >= generation.number:
            return
        rank = device.rank_in(generation)
        if rank < 0 and device.seat and generation.kind != "planned":
            reason = f"generation {generation.number} goes on without it; it had a seat in {device.seat}"
            crew.kill(device, Killed.FENCED, reason)
            return
        device.told = generation.number
        if rank >= 0:
            device.seat, device.ended = generation.number, None
            self.outgoing.outbox.forget_readiness(device.trainer)
        self.outgoing.tell(device, to_trainer.TakeSeat(assignment=seat_of(generation, rank)))

    def _fenced(self, crew: Crew, message: Fence, at: float) -> None:
        if message.generation < self.newest:
            self.outgoing.note(f"a fence of generation {message.generation}, before {self.newest}: ignored")
            return
        self.newest = message.generation
        self._raise_floor(message.generation)
        self.assignment = self.previous = None
        self.ring.clear()
        for device in crew.devices.values():
            if device.running and device.seat:
                crew.kill(device, Killed.FENCED, f"fenced: {message.reason}")
            elif device.usable:
                crew.post_ready(device, at)

    def _follow_seats(self) -> None:
        """Bring the state in line with the seats, and with the fenced processes that are left."""
        if self.crew is None or self.state is State.ENDING:
            return
        living = [device for device in self.crew.devices.values() if device.running]
        seated = any(device.seat and device.killed is not Killed.FENCED for device in living)
        leaving = any(device.killed is Killed.FENCED for device in living)
        if seated and self.state is not State.SEATED:
            self.state = follow(self.state, Trigger.SEATED)
        elif not seated and self.state is State.SEATED:
            self.state = follow(self.state, Trigger.FENCED if leaving else Trigger.UNSEATED)
        elif not leaving and self.state is State.FENCED:
            self.state = follow(self.state, Trigger.RENEWED)

    # ---- steps ----

    def _reports_steps(self, generation: Generation | None) -> bool:
        """This node has one of the ranks whose agents keep the ledger up to date."""
        return generation is not None and any(
            member.rank in policy.REPORTING_RANKS and self.crew is not None and member.trainer in self.crew
            for member in generation.members
        )

    def _step_committed(self, device: Device, record: to_trainer.StepCommitted) -> None:
        kept = KeptStep(trainer=device.trainer, start=device.start, record=record)
        if not self.ring.add(kept) or self.outgoing.link is not Link.REGISTERED:
            return
        if self._reports_steps(self.assignment) or self._reports_steps(self.previous):
            self._send_step(kept)

    def _resend_steps(self, reported_through: int) -> None:
        if self._reports_steps(self.assignment):
            for kept in self.ring.after(reported_through):
                self._send_step(kept)

    def _send_step(self, kept: KeptStep) -> None:
        self.outgoing.send(TrainerSaid(trainer=kept.trainer, start=kept.start, report=kept.record))

    # ---- orders for members ----

    def _take_checkpoint(self, crew: Crew, message: TakeCheckpoint, at: float) -> None:
        stale = errands.why_stale(message.generation, self.floor)
        order = to_trainer.TakeCheckpoint(request=message.request, generation=message.generation)
        for device in crew.seated():
            if stale:
                failed = to_trainer.CheckpointFailed(request=message.request, reason=stale)
                self.outgoing.pass_on(device, failed, at)
            else:
                self.outgoing.tell(device, order)

    def _take_snapshot(self, crew: Crew, message: TakeSnapshot) -> None:
        if stale := errands.why_stale(message.generation, self.floor):
            self.outgoing.note(f"TakeSnapshot ignored: {stale}")
        else:
            self.snapshots.take(message, crew.seated())

    def _stop_training(self, crew: Crew, message: StopTraining) -> None:
        if stale := errands.why_stale(message.generation, self.floor):
            self.outgoing.note(f"StopTraining ignored: {stale}")
            return
        order = to_trainer.StopTraining(request=message.request, generation=message.generation)
        for device in crew.seated():
            self.outgoing.tell(device, order)

    # ---- trainers ----

    def _trainer_event(self, event: TrainerStarted | TrainerReported | TrainerEnded) -> None:
        device = self.crew.device_of(event) if self.crew else None
        if self.crew is None or device is None:
            return
        match event:
            case TrainerStarted():
                device.pid = event.pid
            case TrainerReported():
                if device.killed is not Killed.FENCED:
                    self.crew.sign_of_life(device, event.at)
                    self._trainer_reported(self.crew, device, event.report, event.at)
            case TrainerEnded():
                self.crew.ended(device, event)
            case _:
                assert_never(event)

    def _trainer_reported(self, crew: Crew, device: Device, report: to_trainer.Report, at: float) -> None:
        match report:
            case to_trainer.Beat():
                device.take_beat(report)
                return
            case to_trainer.Ready():
                self._became_ready(crew, device, report, at)
                return
            case to_trainer.StepCommitted():
                self._step_committed(device, report)
                return
            case to_trainer.CommunicationFailed() | to_trainer.StateRefused() | to_trainer.ReplicasDiffered():
                if report.generation < self.floor:
                    return
            case to_trainer.SnapshotTaken():
                if report.generation >= self.floor:
                    self.snapshots.taken(device, report)
                return
            case to_trainer.GenerationJoined():
                self._raise_floor(report.generation)
            case to_trainer.CheckpointSealed() | to_trainer.CheckpointFailed():
                device.seals.pop(report.request, None)
            case to_trainer.TrainingEnded():
                device.ended = report
            case to_trainer.TrainerRefused():
                device.refused = True
            case _:
                pass
        self.outgoing.pass_on(device, report, at)

    def _became_ready(self, crew: Crew, device: Device, ready: to_trainer.Ready, at: float) -> None:
        device.ready = ready
        if device.killed is not Killed.NO:
            return
        crew.post_ready(device, at)
        if self.assignment is not None:
            self._seat(crew, device, self.assignment)
        for order in device.seals.values():
            self.outgoing.tell(device, order)

    # ---- time ----

    def quiet(self, at: float) -> dict[str, int]:
        """The pids of trainers that have said nothing for a while."""
        return self.crew.quiet(at) if self.crew is not None else {}

    def _tick(self, event: ClockTicked) -> None:
        at = event.at
        slept = at - self._ticked_at
        self._ticked_at = at
        if slept > policy.OWN_PAUSE_SECONDS:
            self.outgoing.note(f"the agent itself did not run for {slept:.1f} s")
            self._away_since = min(at, self._away_since + slept)
            if self.crew:
                self.crew.forgive(slept, at)
        orphan = self.policy.orphan_seconds if self.policy else policy.ORPHAN_SECONDS_BEFORE_WELCOME
        if self.outgoing.link is not Link.REGISTERED and at - self._away_since >= orphan:
            self._end(f"no controller for {orphan:g} s", EXIT_ORPHANED)
        elif self.crew is not None and self.policy is not None:
            self.crew.tick(at, event.processor_seconds)
            self._beat_heart(self.crew, self.policy, at)

    def _beat_heart(self, crew: Crew, limits: Policy, at: float) -> None:
        if self.outgoing.link is not Link.REGISTERED:
            return
        self.outgoing.outbox.settle(at)
        if at >= self._heartbeat_at:
            self._heartbeat_at = max(at, self._heartbeat_at + limits.heartbeat_seconds)
            self.outgoing.send(Heartbeat(trainers=crew.statuses(at)))

    def _end(self, reason: str, exit_code: int) -> None:
        self.state = follow(self.state, Trigger.ENDED)
        self.outgoing.emit(EndAgent(reason=reason, exit_code=exit_code))
