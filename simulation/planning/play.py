"""The game: months of failures against the real decision core, from event to event.

The core is `orchestrator.core.machine.Machine`, as in production: it gets events, and what it orders is carried out by
a coarse cluster. Time jumps to the next thing that happens; between two of them steps pass in bulk, and of the
checkpoints in a quiet stretch only the last is played, since no failure can ask for another. No recovery rule is here:
who leads, who is seated, what is restored, all that comes out of the core. Next: `orders.py`, which carries out.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from orchestrator.core import cadence, events, snapshots
from orchestrator.core.events import Event
from orchestrator.core.ids import CauseId, GenerationNumber, Step
from orchestrator.core.machine import Machine
from orchestrator.core.measurements import StepRecord
from orchestrator.core.spec import CheckpointMode
from orchestrator.core.state import (
    NO_GENERATION,
    ClusterState,
    Incident,
    JobState,
    NodeState,
)
from simulation.planning.costs import Costs
from simulation.planning.failures import Failure, FailureKind
from simulation.planning.fleet import Fleet, Node, Trainer
from simulation.planning.job import job_of
from simulation.planning.meter import Census, Meter, Stalls
from simulation.planning.orders import Orders
from simulation.planning.scenario import Scenario
from simulation.planning.training import Doing, Training

BINS = 210
"""Slices of the timeline: four hours each in 35 days."""
LEASE_TIMER_SECONDS = 0.25
"""How often the controller looks for waits that ran out; a wait is seen half a period late on average."""
SHORTEST_LOOK_SECONDS = 4.0
LONGEST_LOOK_SECONDS = 3600.0
"""While an incident is open, the controller's timer is played at growing distances from the last disturbance."""
SNAPSHOT_RETRY_SECONDS = 15.0
"""After a snapshot that was due and could not be taken, since members were not together or a checkpoint was written."""
START_LIMIT_SECONDS = 86_400.0
"""By then the first generation has begun, or the scenario cannot be played."""

Progress = Callable[[float, int], None]
"""Called with the share of the time that is played, and the number of incidents so far."""


_Timed = tuple[float, int, Callable[[], None]]
"""When, in which order among equals, and what."""


class CannotStart(Exception):
    """The core ended the job before its first step; the message is its reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What came out of one game."""

    scenario: Scenario
    meter: Meter
    seconds: float
    steps: int
    steps_lost: int
    steps_redone: int
    incidents: tuple[Incident, ...]
    began: float
    """When training began: times of incidents count from the start of the job before it."""
    restores: int
    checkpoints: int
    snapshots: int
    snapshot_seconds: float
    """The last interval."""
    snapshot_stall_seconds: float
    memory_gigabytes: float
    """Of host memory that a node has held of snapshots at most."""
    events: int
    ended: str
    """Why the core ended the job before its time; empty if it did not."""
    decisions: int
    generations: int


class Game:
    """One scenario with one list of failures."""

    def __init__(self, scenario: Scenario, costs: Costs, failures: tuple[Failure, ...]) -> None:
        self.scenario = scenario
        self.costs = costs
        self.spec = job_of(scenario)
        self.machine = Machine(ClusterState())
        self.fleet = Fleet(self.spec.cluster)
        self.meter = Meter(scenario.seconds, BINS)
        self.training = Training(scenario, costs, self.meter)
        self.now = 0.0
        self.began: float | None = None
        self.ended = ""
        self.restores = 0
        self.checkpoints = 0
        self._failures = failures
        self._orders = Orders(self)
        self._queue: list[_Timed] = []
        self._numbers = 0
        self._events = 0
        self._decisions = 0
        self._generations = 0
        self._told = Step(0)
        self._next_due = 0.0
        self._next_snapshot = math.inf
        self._look_at = 0.0
        self._disturbed_at = 0.0
        self._census: Census | None = None

    # ---- for those who carry out orders ----

    @property
    def state(self) -> ClusterState:
        return self.machine.state

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        """Have something happen."""
        self._numbers += 1
        heapq.heappush(self._queue, (self.now + seconds, self._numbers, what))

    def tell(self, kind: Callable[..., Event], **fields: object) -> None:
        """An event reaches the core, which decides; its orders are carried out."""
        self._events += 1
        self.state.reported_through = self._told
        outcome = self.machine.handle(kind(at=self.now, cause_id=CauseId(f"c-{self._events}"), **fields))
        self._decisions += not outcome.empty
        if outcome.actions:
            self._orders.carry_out(outcome.actions)
        if self._look_at <= self.now and outcome.reasons and not self._settled():
            self._look_later()

    def tell_of(self, node: Node, trainer: Trainer, kind: Callable[..., Event], **fields: object) -> None:
        """An agent says something of one of its trainers."""
        self.tell(kind, trainer=trainer.id, incarnation=node.incarnation, start=trainer.start, **fields)

    def census(self) -> Census:
        """Who does what; counted again after `changed`."""
        if self._census is None:
            self._census = self.fleet.census(self.training.generation)
        return self._census

    def changed(self) -> None:
        """Somebody is not what he was."""
        self._census = None

    def stop_training(self, doing: Doing) -> None:
        """The members stop, and the step in flight will be computed again."""
        self.training.stop(doing, self.census(), self.since_began())

    def since_began(self) -> float:
        """Seconds of training time on the clock."""
        return self.now - (self.began if self.began is not None else self.now)

    def begin(self) -> None:
        """The first generation is at work: from here on everything counts, and things fail."""
        if self.began is not None:
            return
        self.began = self.now
        self.training.metered = True
        self._next_due = self.now + self.interval()
        self._next_snapshot = self.now + self.snapshot_interval() if self.spec.snapshot.enabled else math.inf
        for failure in self._failures:
            self._numbers += 1
            timed: _Timed = (self.now + failure.at, self._numbers, partial(self._fail, failure))
            heapq.heappush(self._queue, timed)

    def report_steps(self) -> None:
        """The newest committed step is reported, once."""
        generation, committed = self.training.generation, self.training.committed
        if self.training.doing is not Doing.TRAINING or generation is None or committed <= self._told:
            return
        first = generation.members[0]
        node, process = self._orders.process_of(first)
        if process is None:
            return
        self._told = committed
        record = StepRecord(
            step=committed,
            generation=generation.number,
            loss=0.0,
            tokens=0,
            time=self.now,
            step_seconds=self.training.speed.step_seconds,
            sample_ids=(),
            expert_load=(1,) * self.spec.model.experts,
        )
        self.tell_of(node, process, events.StepCommitted, record=record)

    def forget_steps_after(self, step: Step) -> None:
        """The ledger went back."""
        self._told = min(self._told, step)

    def interval(self) -> float:
        """Seconds from one checkpoint to the next."""
        plan = self.scenario.checkpoint
        if plan.interval is CheckpointMode.FIXED or self.began is None:
            return plan.interval_seconds
        tier = cadence.Tier(
            what="a checkpoint",
            stalls=(self._orders.stall_seconds(),),
            works=(self._orders.checkpoint_seconds(),),
            uses=self.restores,
            observed_seconds=self.since_began(),
            shortest_seconds=self.machine.policy.shortest_interval_seconds,
            longest_seconds=plan.interval_seconds,
            bound="checkpoint.interval_seconds",
        )
        return cadence.choose(tier, self.machine.policy).interval_seconds

    def snapshot_interval(self) -> float:
        """Seconds from one snapshot in host memory to the next, as the core has them."""
        state, policy = self.state, self.machine.policy
        assert state.job is not None
        costs = snapshots.costs(state)
        return cadence.of_snapshots(state.job, costs, state.incidents, policy, self.now).interval_seconds

    # ---- the game ----

    def play(self, progress: Progress = lambda share, incidents: None) -> Played:
        """From the submission of the job to the end of the scenario. Raises CannotStart."""
        self.tell(events.JobSubmitted, spec=self.spec, resume=False)
        while self.began is None:
            if not self._queue or self.now > START_LIMIT_SECONDS or self.ended:
                raise CannotStart(self.ended or "the first generation does not come about")
            self._next()
        end = self.began + self.scenario.seconds
        while not self.ended:
            upcoming = min(self._queue[0][0] if self._queue else end, end)
            if self._save_before(upcoming):
                continue
            if upcoming >= end:
                break
            self._next()
            progress(self.since_began() / self.scenario.seconds, len(self.state.incidents))
        self._pass_time(end)
        progress(1.0, len(self.state.incidents))
        return self._played()

    def _next(self) -> None:
        at, _, what = heapq.heappop(self._queue)
        self._pass_time(at)
        what()

    def _pass_time(self, until: float) -> None:
        if until > self.now:
            self.training.advance(self.since_began(), until - self.now, self.census())
            self.now = until

    def _save_before(self, upcoming: float) -> bool:
        """Play a timer of saves, if one fires before `upcoming`; of many in a quiet stretch only the last of each."""
        if min(self._next_due, self._next_snapshot) > upcoming:
            return False
        if self._quiet():
            self._skip_to(upcoming)
        if self._next_due <= self._next_snapshot:
            self._pass_time(self._next_due)
            self._next_due = self.now + self.interval()
            self.report_steps()
            self.tell(events.CheckpointDue)
        else:
            self._pass_time(self._next_snapshot)
            self._look()
            taken = self._orders.memory.busy
            self._next_snapshot = self.now + (self.snapshot_interval() if taken else SNAPSHOT_RETRY_SECONDS)
        return True

    def _skip_to(self, upcoming: float) -> None:
        """Let all saves but the last of each kind pass: no failure can ask for them. They cost what they cost."""
        memory, interval = self._orders.memory, self.interval()
        saves = max(0, int((upcoming - self._orders.checkpoint_seconds() - self._next_due) / interval))
        self._next_due += saves * interval
        self.checkpoints += saves
        copies = 0
        if self.spec.snapshot.enabled:
            interval = self.snapshot_interval()
            waiting = memory.work_seconds() + 2 * self.training.speed.step_seconds
            copies = max(0, int((upcoming - waiting - self._next_snapshot) / interval))
            self._next_snapshot += copies * interval
            memory.taken += copies
        span = min(self._next_due, self._next_snapshot) - self.now
        if (saves or copies) and span > 0:
            stalls = Stalls(
                checkpoints=saves * self._orders.stall_seconds(), snapshots=copies * memory.stall_seconds()
            )
            self.training.advance_over_saves(self.since_began(), span, self.census(), stalls)
            self.now += span

    def _quiet(self) -> bool:
        """Nothing is under way but training."""
        training = self.training
        together = training.doing is Doing.TRAINING and training.planned is None and not training.pauses
        return together and not self._orders.busy

    def _played(self) -> Played:
        assert self.began is not None
        return Played(
            scenario=self.scenario,
            meter=self.meter,
            seconds=self.scenario.seconds,
            steps=self.training.committed,
            steps_lost=self.training.steps_lost,
            steps_redone=self.training.steps_redone,
            incidents=tuple(self.state.incidents.values()),
            began=self.began,
            restores=self.restores,
            checkpoints=self.checkpoints,
            snapshots=self._orders.memory.taken,
            snapshot_seconds=self.snapshot_interval() if self.spec.snapshot.enabled else 0.0,
            snapshot_stall_seconds=self._orders.memory.stall_seconds(),
            memory_gigabytes=self._orders.memory.most_gigabytes,
            events=self._events,
            ended=self.ended,
            decisions=self._decisions,
            generations=self.machine.state.generation.number if self.machine.state.generation else 0,
        )

    # ---- failures ----

    def _fail(self, failure: Failure) -> None:
        """Something breaks."""
        if failure.kind.takes_node:
            self._fail_nodes(failure)
            return
        node = self.fleet.nodes[failure.nodes[0]]
        process = node.trainers[failure.device] if node.up else None
        if process is None or not process.ready or process.stuck:
            return
        self._members_lose(process)
        if failure.kind is FailureKind.PROCESS_HANG:
            process.stuck = True
            self.changed()
            self.later(self.spec.timeouts.hang_seconds, lambda: self._orders.notice_hang(node, process))
        else:
            self._orders.end_process(node, process, told=True)

    def _fail_nodes(self, failure: Failure) -> None:
        """Nodes are gone, with a broken connection or without a word."""
        for number, back_at in zip(failure.nodes, failure.back_at, strict=True):
            node = self.fleet.nodes[number]
            if node.up and node.registered:
                self._beat(node)  # its last
            for process in node.trainers:
                self._members_lose(process)
            was = node.incarnation
            registered = node.registered
            node.fail()
            self.changed()
            if registered and not failure.kind.silent:
                notice = self.costs.crash_notice_seconds.value
                self.later(notice, partial(self._orders.notice_crash, node, was))
            self.later(back_at - failure.at, partial(self._orders.boot, node))
        self.disturb()
        lease = self.spec.timeouts.lease_seconds + LEASE_TIMER_SECONDS / 2
        self.later(lease, self._look)

    def _members_lose(self, process: Trainer) -> None:
        """A process is about to be gone: if it has a seat, the members stop at their next collective."""
        self.report_steps()
        generation = self.training.generation
        if generation is None or self.training.doing is not Doing.TRAINING:
            return
        if process.joined == generation.number:
            self.stop_training(Doing.STUCK)

    # ---- the controller's timer ----

    def disturb(self) -> None:
        """A node or process has failed or come: the timer matters again, soon at first and then more rarely."""
        self._disturbed_at = self.now
        self._look_later()

    def _look_later(self) -> None:
        pause = min(max(self.now - self._disturbed_at, SHORTEST_LOOK_SECONDS), LONGEST_LOOK_SECONDS)
        self._look_at = self.now + pause
        self.later(pause, self._look_again)

    def _look_again(self) -> None:
        if self.now < self._look_at or self._settled():
            return
        self._look()
        if self._look_at <= self.now:
            self._look_later()

    def _look(self) -> None:
        """The lease timer fires, after the heartbeats of those who live."""
        if self.ended:
            return
        self.report_steps()
        for node in tuple(self.fleet.listening()):
            self._beat(node)
        self.tell(events.LeasesDue)

    def _beat(self, node: Node) -> None:
        training = self.training
        at_work: GenerationNumber = NO_GENERATION
        if training.doing is Doing.TRAINING and training.generation is not None:
            at_work = training.generation.number
        statuses = self.fleet.statuses(node, training.committed, at_work)
        self.tell(events.HeartbeatReceived, node=node.id, incarnation=node.incarnation, trainers=statuses)

    def _settled(self) -> bool:
        """Nothing is open: the timer would find nothing."""
        state = self.state
        if self.ended or state.job is None or state.job.state is not JobState.RUNNING:
            return bool(self.ended)
        suspect = any(node.state is NodeState.SUSPECT for node in state.nodes.values())
        under_way = state.planned is not None or state.memory.repair is not None
        return not suspect and not under_way and not any(not each.closed for each in state.incidents.values())
