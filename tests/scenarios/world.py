"""A world for the core to run in: time is a number, agents and trainers are small models, nothing is random.

The machine is the real one. Its outcomes are stored and performed as the controller does it: durable first, one event
after the other. Messages to nobody are dropped, and a controller can be stopped and started at any moment. After every
event the invariants are checked, and while the core decides, clocks and dice raise. Next: `agents.py`, `training.py`;
`play.py` reads stories, `walk.py` makes them up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from orchestrator.core import actions, events
from orchestrator.core.events import Event
from orchestrator.core.ids import CauseId, NodeId, TrainerId, node_of
from orchestrator.core.invariants import check, check_growth
from orchestrator.core.machine import Machine
from orchestrator.core.outcome import Outcome
from orchestrator.core.spec import CheckpointMode, JobSpec
from orchestrator.core.state import NO_GENERATION, ClusterState
from tests.scenarios.agents import Agents
from tests.scenarios.models import TICK_SECONDS, Disk
from tests.scenarios.purity import no_hidden_inputs
from tests.scenarios.training import Training

SCAN_TICKS = 20
"""Between two looks at the speed of the members."""

LOOK_TICKS = 2
"""Between two looks whether a checkpoint is due, where that is for the core to say."""

Listener = Callable[[Event, Outcome], None]


class World:
    """Machine, disk, agents and training under one clock. `listen` hears every outcome."""

    def __init__(self, spec: JobSpec, listen: Listener = lambda event, outcome: None) -> None:
        self.spec = spec
        self.at = 0.0
        self.disk = Disk()
        self.machine: Machine | None = Machine(ClusterState())
        self.agents = Agents(self)
        self.training = Training(self, self.agents)
        self.ended: actions.EndJob | None = None
        self.barren: set[NodeId] = set()
        """Nodes whose starts lead nowhere."""
        self.actions: list[actions.Action] = []
        """All that were performed, in order; orders only when they arrived."""
        self._listen = listen
        self._queue: deque[Event] = deque()
        self._handling = False
        self._generation = NO_GENERATION
        self._causes = 0
        self._ticks = 0

    # ---- the controller ----

    @property
    def listens(self) -> bool:
        """A controller runs."""
        return self.machine is not None

    @property
    def state(self) -> ClusterState:
        assert self.machine is not None, "no controller runs"
        return self.machine.state

    def stamp(self) -> tuple[float, CauseId]:
        """Time and cause of a new event."""
        self._causes += 1
        return self.at, CauseId(f"cause-{self._causes}")

    def submit(self, event: Event) -> None:
        """Hand an event to the controller, one after the other; lost while there is none."""
        self._queue.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._queue:
                self._handle(self._queue.popleft())
        finally:
            self._handling = False

    def say(self, kind: Callable[..., Event], **fields: object) -> None:
        """An event with the time and a cause filled in."""
        at, cause = self.stamp()
        self.submit(kind(at=at, cause_id=cause, **fields))

    def start_job(self, *, resume: bool = False) -> None:
        self.say(events.JobSubmitted, spec=self.spec, resume=resume)

    def stop_controller(self) -> None:
        """SIGKILL of the controller: what it had not handled is lost."""
        self.machine = None
        self._queue.clear()
        for agent in self.agents.alive.values():
            agent.connected = False

    def start_controller(self, *, resume: bool = False) -> None:
        """A new controller on the stored state; it takes over, or begins a new run of the job."""
        self.machine = Machine(self.disk.load())
        if resume:
            self.start_job(resume=True)
        else:
            self.say(events.ControllerStarted)

    def _handle(self, event: Event) -> None:
        if self.machine is None:
            return
        state = self.machine.state
        if isinstance(event, events.StepCommitted):
            self.disk.append(event.record)
        state.reported_through = self.disk.reported_through
        with no_hidden_inputs():
            outcome = self.machine.handle(event)
        self.disk.store(outcome)
        check(state)
        self._generation = check_growth(self._generation, state)
        self._listen(event, outcome)
        for action in outcome.actions:
            self._perform(action)

    def _perform(self, action: actions.Action) -> None:
        match action:
            case actions.StartNode():
                if action.in_place_of:
                    self.agents.end(action.node)
                if action.node not in self.barren:
                    self.agents.start(action.node)
            case actions.StopNode():
                self.agents.alive.pop(action.node, None)
            case actions.RollBackLedger():
                self.disk.roll_back(action)
                self.state.reported_through = self.disk.reported_through
            case actions.EndJob():
                self.ended = action
            case _:
                if not self.agents.obey(action, action.node):
                    return
        self.actions.append(action)

    # ---- failures ----

    def kill_node(self, node: NodeId) -> None:
        """SIGKILL of an agent and its trainers: the stream breaks, peers notice."""
        self.agents.end(node)

    def kill_trainer(self, trainer: TrainerId, *, again: bool = True) -> None:
        """SIGKILL of one trainer: its agent notices."""
        self.agents.end_trainer(trainer, again=again)

    def stop_node(self, node: NodeId) -> None:
        """SIGSTOP of an agent and its trainers: nobody notices."""
        self.agents.alive[node].stopped = True

    def wake_node(self, node: NodeId) -> None:
        """SIGCONT."""
        self.agents.alive[node].stopped = False

    def stop_trainer(self, trainer: TrainerId) -> None:
        """SIGSTOP of one trainer."""
        self.agents.alive[node_of(trainer)].trainers[trainer].stopped = True

    def cut(self, node: NodeId) -> None:
        """The stream of an agent breaks and stays broken; its trainers are fine."""
        agent = self.agents.alive[node]
        agent.cut = True
        self.agents.disconnect(agent, "connection timed out")

    def heal(self, node: NodeId) -> None:
        """The agent of a cut node reaches the controller again."""
        self.agents.alive[node].cut = False

    def break_communication(self, by: TrainerId) -> None:
        """A collective of one member raises, though everybody is alive."""
        agent = self.agents.alive[node_of(by)]
        self.agents.lost_touch(agent, agent.trainers[by])

    def damage(self, name: str) -> None:
        """Bits of a checkpoint rot."""
        self.disk.damaged.add(name)

    # ---- time ----

    def run(self, seconds: float) -> None:
        """Let time pass."""
        for _ in range(round(seconds / TICK_SECONDS)):
            self.tick()

    def run_until(self, done: Callable[[], bool], within_seconds: float = 60.0) -> None:
        """Let time pass until something is true. Fails after the limit."""
        limit = self.at + within_seconds
        while not done():
            assert self.at < limit, f"not within {within_seconds} s"
            self.tick()

    def tick(self) -> None:
        """A quarter of a second: agents register and beat, trainers work, the lease timer fires."""
        self._ticks += 1
        self.at = self._ticks * TICK_SECONDS
        for node in sorted(self.agents.alive):
            if node in self.agents.alive:
                self.agents.tick(self.agents.alive[node])
        self.training.tick(self._ticks)
        if self.machine is not None:
            self.say(events.LeasesDue)
            if self._ticks % SCAN_TICKS == 0:
                self.say(events.RedundancyScanDue)
            if self._ticks % LOOK_TICKS == 0 and self.spec.checkpoint.interval is CheckpointMode.AUTO:
                self.say(events.CheckpointDue)
