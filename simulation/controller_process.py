"""One controller process: the real controller on the real repository, dying where the seed says.

It begins as `orchestrator/app.py` does: lease, load, unfinished actions, first events, then streams. Simulated is the
process around it: its thread, its chores and timers, its sockets, and its deaths, which come before a commit, after
one, between two actions, or at any other time. Next: `controllers.py`, the supervisor; `laws.py`, asked after every
commit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from orchestrator.controller.controller import ActionFailed, Controller, Ports
from orchestrator.controller.inbox import Inbox
from orchestrator.controller.ledger import FileLedger
from orchestrator.controller.ports import LedgerError, StoreError
from orchestrator.core import actions
from orchestrator.core.events import (
    CheckpointDue,
    ControllerStarted,
    Event,
    HeartbeatReceived,
    JobSubmitted,
    LeasesDue,
    NodeDisconnected,
    NodeRegistered,
    RedundancyScanDue,
    RetentionDue,
)
from orchestrator.core.ids import CauseId, NodeId
from orchestrator.core.machine import Machine
from orchestrator.core.outcome import Outcome
from orchestrator.core.state import ClusterState, Job, JobState
from orchestrator.service import checked, wire
from orchestrator.service.worker_api import StreamLimits
from orchestrator.store.lease import LEASE_SECONDS, ControllerLease, LeaseHeld, Processes
from orchestrator.store.repository import Repository
from orchestrator.timers.timers import Periods
from protos import worker_pb2 as pb
from simulation.database import Database
from simulation.ground import Ground
from simulation.laws import Laws
from simulation.nodes import Nodes
from simulation.ports import Keeping, Messaging, ProcessDied, Recording, Starting
from simulation.streams import Stream

INBOX_CAPACITY = 512
TURN_SECONDS = 0.0005
"""From an event's arrival to its turn."""
LEASE_WAIT_SECONDS = 2.0 * LEASE_SECONDS
LEASE_LOOK_SECONDS = 0.5
FLUSH_SECONDS = 0.5
RETRY_SECONDS = 1.0
OVER = (JobState.STOPPED, JobState.FINISHED, JobState.FAILED)

COPY_TOKEN = "simulated"


class Supervisor(Protocol):
    """Who started this process."""

    def ended(self, process: ControllerProcess, reason: str) -> None: ...

    def is_gone(self, name: str) -> bool:
        """A process of this host has ended; False where that cannot be known."""
        ...

    def job_ended(self, succeeded: bool, reason: str) -> None: ...


class ControllerProcess:
    """From its start to its end. `serving` once it listens to agents."""

    def __init__(
        self,
        ground: Ground,
        name: str,
        *,
        database: Database,
        nodes: Nodes,
        laws: Laws,
        supervisor: Supervisor,
    ) -> None:
        self.place = name
        self.alive = True
        self.stopped = False
        self.serving = False
        self.inbox = Inbox(capacity=INBOX_CAPACITY)
        self.sessions: dict[str, Stream] = {}
        self._ground = ground
        self._nodes = nodes
        self._laws = laws
        self._supervisor = supervisor
        self._engine = database.open()
        self._lease = ControllerLease(
            self._engine,
            holder=name,
            processes=Processes(now=lambda: ground.now, mine=name, gone=supervisor.is_gone),
        )
        self._controller: Controller | None = None
        self._repository: Repository | None = None
        self._ledger: FileLedger | None = None
        self._wait_until = ground.now + LEASE_WAIT_SECONDS
        self._turn_due = False
        self._causes = 0
        self._periods = Periods()
        self._swept_at = 0.0
        self._withheld_until = 0.0
        self._busy_since: dict[str, float] = {}
        ground.scheduler.after(0.0, self._begin)

    @property
    def awake(self) -> bool:
        return self.alive and not self.stopped

    @property
    def state(self) -> ClusterState:
        """As it is between two events."""
        assert self._controller is not None
        return self._controller.inspect(lambda state: state)

    # ---- what is done to it ----

    def stop(self) -> None:
        """SIGSTOP."""
        self.stopped = True

    def wake(self) -> None:
        """SIGCONT."""
        self.stopped = False
        self._have_a_turn()

    def kill(self, reason: str) -> None:
        """SIGKILL, or the end of its host."""
        self._end(reason)

    def say(self, kind: Callable[..., Event], **fields: object) -> bool:
        """An event from outside (a timer, a person); False when it was not taken."""
        if not (self.serving and self.alive):
            return False
        at, cause = self._ground.now, self._cause(kind.__name__)
        if not self.inbox.put(kind(at=at, cause_id=cause, **fields)):
            return False
        self._have_a_turn()
        return True

    # ---- from the start to serving: app.py ----

    def _begin(self) -> None:
        """Become the one controller, or wait for the last one's lease to run out."""
        if not self.alive:
            return
        if self.stopped:
            self._ground.scheduler.after(LEASE_LOOK_SECONDS, self._begin)
            return
        try:
            self._lease.acquire()
        except LeaseHeld:
            if self._ground.now >= self._wait_until:
                self._end("another controller is in charge")
            else:
                self._ground.scheduler.after(LEASE_LOOK_SECONDS, self._begin)
            return
        except StoreError as error:
            self._end(f"the database does not answer: {_first_line(error)}")
            return
        self._guarded(self._load)

    def _load(self) -> None:
        self._repository = Repository(self._engine, epoch=self._lease.epoch)
        state = self._repository.load()
        self._laws.loaded(self.place, state)
        first = self._first_events(state)
        self._ledger = FileLedger(self._ground.folder)
        ports = Ports(
            store=Keeping(self._ground, self._repository, self._committed),
            cluster=Starting(self._ground, self._nodes, self.dismiss),
            messenger=Messaging(self._ground, self._send),
            ledger=Recording(self._ground, self._ledger, self._laws.recorded),
            ending=self._supervisor,
        )
        self._controller = Controller(machine=Machine(state), state=state, ports=ports)
        self._ground.timeline.say(self.place, f"is the controller, epoch {self._lease.epoch}")
        self._controller.perform_unfinished()
        self._laws.check_ledger(self._ground.folder)
        for event in first:
            self.inbox.put(event)
        self.serving = True
        self._have_a_turn()
        self._begin_chores()
        if state.job is not None and state.job.state in OVER:
            self._supervisor.job_ended(state.job.state is not JobState.FAILED, state.job.reason)

    def _first_events(self, state: ClusterState) -> list[Event]:
        job, living = state.job, self._nodes.living()
        if job is None:
            return [self._submission(resume=False)]
        if not living and job.state not in OVER:
            return [self._submission(resume=True)]
        started = ControllerStarted(at=self._ground.now, cause_id=self._cause("start"))
        return [started, *(self._dead(state, job) if self._ground.one_host else ())]

    def _submission(self, *, resume: bool) -> Event:
        cause = self._cause("submission")
        return JobSubmitted(at=self._ground.now, cause_id=cause, spec=self._ground.spec, resume=resume)

    def _dead(self, state: ClusterState, job: Job) -> list[Event]:
        """On one host the processes that died meanwhile are known."""
        found: list[Event] = []
        for node, entity in sorted(state.nodes.items()):
            agent = self._nodes.agents.get(node)
            if job.state not in OVER and agent is not None and not agent.alive and entity.incarnation:
                found.append(
                    NodeDisconnected(
                        at=self._ground.now,
                        cause_id=self._cause("disconnected"),
                        node=node,
                        incarnation=entity.incarnation,
                        reason="its process ended while there was no controller",
                    )
                )
        return found

    def _begin_chores(self) -> None:
        assert self._repository is not None and self._controller is not None
        for period, run in (
            (self._lease.renew_seconds, self._lease.keep),
            (FLUSH_SECONDS, self._repository.flush),
            (RETRY_SECONDS, self._controller.retry_failed),
        ):
            self._ground.scheduler.every(period, lambda run=run: self._chore(run))  # type: ignore[misc]  # a default binds the loop's value
        for period, kind in (
            (self._periods.checkpoint_seconds, CheckpointDue),
            (self._periods.redundancy_scan_seconds, RedundancyScanDue),
            (self._periods.retention_seconds, RetentionDue),
        ):
            self._ground.scheduler.every(period, lambda kind=kind: self._timer(kind))  # type: ignore[misc]  # a default binds the loop's value
        self._swept_at = self._ground.now
        self._ground.scheduler.every(self._periods.leases_seconds, self._sweep)

    def _chore(self, run: Callable[[], None]) -> bool:
        if self.awake:
            self._guarded(run)
        return self.alive

    def _timer(self, kind: Callable[..., Event]) -> bool:
        if self.awake:
            self.say(kind)
        return self.alive

    def _sweep(self) -> bool:
        """The lease timer, with the caution of `orchestrator/timers` about a process that was itself asleep."""
        if not self.awake:
            return self.alive
        late, self._swept_at = self._ground.now - self._swept_at, self._ground.now
        if late > self._periods.asleep_seconds:
            self._withheld_until = self._ground.now + self._periods.wake_up_seconds
        if self._ground.now >= self._withheld_until:
            self.say(LeasesDue)
        return self.alive

    # ---- its thread: controller/runner.py ----

    def _have_a_turn(self) -> None:
        if not self._turn_due:
            self._turn_due = True
            self._ground.scheduler.after(TURN_SECONDS, self._turn)

    def _turn(self) -> None:
        self._turn_due = False
        while self.awake and self._controller is not None and (event := self.inbox.take(0.0)) is not None:
            self._guarded(lambda event=event: self._handle(event))  # type: ignore[misc]  # a default binds the loop's value

    def _handle(self, event: Event) -> None:
        assert self._controller is not None
        self._controller.handle(event)

    def _committed(self, event: Event, outcome: Outcome) -> None:
        """The outcome of the event at hand is stored; nothing of it has been performed."""
        self._laws.stored(self.place, self.state, event, outcome, len(self.inbox))

    def _guarded(self, work: Callable[[], None]) -> None:
        """What ends the process in production ends it here; everything else is a bug, and passes through."""
        try:
            work()
        except ProcessDied as death:
            self._end(str(death))
        except (StoreError, LedgerError, ActionFailed) as error:
            self._release()
            self._end(f"cannot go on: {_first_line(error)}")

    def _release(self) -> None:
        try:
            self._lease.release()
        except StoreError:
            self._ground.timeline.say(self.place, "could not give its lease back")

    def _end(self, reason: str) -> None:
        if not self.alive:
            return
        self.alive = self.serving = False
        self._ground.timeline.say(self.place, f"ends: {reason}")
        for stream in self.sessions.values():
            stream.close(self, "the controller is gone")
        self.sessions.clear()
        if self._ledger is not None:
            self._ledger.close()
        self._engine.dispose()
        self._supervisor.ended(self, reason)

    # ---- its streams: service/worker_api.py ----

    def take(self, stream: Stream, message: pb.AgentMessage | pb.ControllerMessage) -> bool:
        """See `streams.End.take`."""
        assert isinstance(message, pb.AgentMessage)
        if not self.serving:
            return False
        kind = message.WhichOneof("kind") or "empty"
        if not stream.incarnation:
            registered = wire.registration(message, self._ground.now, self._cause(kind))
            return self._enter(stream, registered)
        envelope = checked.Envelope(
            node=NodeId(stream.node),
            incarnation=stream.incarnation,
            at=self._ground.now,
            cause_id=self._cause(kind),
        )
        return self._put(stream, wire.event(message, envelope))

    def lost(self, stream: Stream, reason: str) -> None:
        """See `streams.End.lost`."""
        if self.sessions.get(stream.node) is stream:
            del self.sessions[stream.node]
            self._disconnected(stream, reason)

    def dismiss(self, node: str, reason: str) -> None:
        """Ask an agent to end, if it is connected."""
        stream = self.sessions.get(node)
        if stream is not None:
            stream.down.send(pb.ControllerMessage(shutdown=pb.Shutdown(reason=reason)))

    def _enter(self, stream: Stream, registered: NodeRegistered) -> bool:
        """Take the node's place; an older agent of the node is gone by then, and the core hears of it first."""
        older = self.sessions.get(stream.node)
        stream.incarnation = registered.incarnation
        self.sessions[stream.node] = stream
        if older is not None:
            older.close(self, "replaced by a newer stream of the same node")
            if older.incarnation != registered.incarnation:
                self._disconnected(older, "replaced by a newer agent of the same node")
        return self._put(stream, registered)

    def _disconnected(self, stream: Stream, reason: str) -> None:
        event = NodeDisconnected(
            at=self._ground.now,
            cause_id=self._cause("disconnected"),
            node=NodeId(stream.node),
            incarnation=stream.incarnation,
            reason=reason,
        )
        self.inbox.put(event)
        self._have_a_turn()

    def _put(self, stream: Stream, event: Event) -> bool:
        """Into the inbox. While that is full the stream waits, and is closed when that takes too long."""
        taken = self.inbox.put(event) or isinstance(event, HeartbeatReceived)
        if taken:
            self._busy_since.pop(stream.node, None)
            self._have_a_turn()
            return True
        since = self._busy_since.setdefault(stream.node, self._ground.now)
        if self._ground.now - since > StreamLimits().busy_seconds:
            self._busy_since.pop(stream.node)
            stream.close(self, "the controller has been too busy")
            self.lost(stream, "the controller was too busy")
            return True
        return False

    def _send(self, action: wire.ToNode) -> bool:
        """The Messenger port: nothing but Welcome opens a conversation."""
        stream = self.sessions.get(action.node)
        if stream is None or not (stream.welcomed or isinstance(action, actions.Welcome)):
            return False
        stream.welcomed = True
        message = wire.order(action)
        if message.HasField("welcome"):
            message.welcome.copy_token = COPY_TOKEN
        stream.down.send(message)
        return True

    def _cause(self, kind: str) -> CauseId:
        self._causes += 1
        return CauseId(f"{self.place}-{kind}-{self._causes}")


def _first_line(error: Exception) -> str:
    return str(error).partition(". Remedy")[0].splitlines()[0]
