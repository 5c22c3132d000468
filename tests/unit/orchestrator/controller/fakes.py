"""Fakes of the controller's ports, and short events: they do what the real ones promise, in memory, and keep a diary.

Shared by the tests of this folder. Nothing here decides; a `Scripted` machine answers as it was told.
"""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.controller.controller import Controller, Ports
from orchestrator.controller.ports import StoreError
from orchestrator.core import actions
from orchestrator.core.actions import Action
from orchestrator.core.events import Event, HeartbeatReceived, NodeDisconnected, StepCommitted
from orchestrator.core.ids import ActionId, CauseId, GenerationNumber, NodeId, Step, TrainerId
from orchestrator.core.measurements import StepRecord, ValidationRecord
from orchestrator.core.outcome import Outcome
from orchestrator.core.state import ClusterState

NOTHING = Outcome()
CAUSE = CauseId("cause")


class Scripted:
    """A machine that answers every event by a function, and remembers what the state said at that moment."""

    def __init__(
        self, state: ClusterState, answer: Callable[[Event], Outcome] = lambda event: NOTHING
    ) -> None:
        self.state = state
        self.answer = answer
        self.seen: list[Event] = []
        self.reported: list[Step] = []

    def handle(self, event: Event) -> Outcome:
        self.seen.append(event)
        self.reported.append(self.state.reported_through)
        return self.answer(event)


class World:
    """All ports at once. `diary` lists what happened across them, in order; `broken` makes a verb raise."""

    def __init__(self) -> None:
        self.diary: list[str] = []
        self.broken: dict[str, BaseException] = {}
        self.connected: set[NodeId] = set()
        self.stored: dict[ActionId, Action] = {}
        self.done: list[ActionId] = []
        self.ended: list[tuple[bool, str]] = []
        self.end = Step(0)
        self.generation = GenerationNumber(0)

    def _do(self, verb: str, what: object = "") -> None:
        self.diary.append(f"{verb} {what}".rstrip())
        if verb in self.broken:
            raise self.broken[verb]

    # ---- Store ----

    def load(self) -> ClusterState:
        return ClusterState()

    def commit(self, event: Event, outcome: Outcome) -> None:
        self._do("commit", type(event).__name__)
        self.stored |= {each.id: each for each in outcome.actions}

    def mark_done(self, actions: tuple[ActionId, ...]) -> None:
        self.done.extend(actions)

    def unfinished(self) -> tuple[Action, ...]:
        return tuple(each for each in self.stored.values() if each.id not in self.done)

    # ---- Cluster ----

    def start_node(self, node: NodeId, in_place_of: int = 0) -> None:
        self._do("start", node)

    def stop_node(self, node: NodeId, reason: str) -> None:
        self._do("stop", node)

    # ---- Messenger ----

    def send(self, action: Action) -> bool:
        assert not isinstance(
            action, actions.StartNode | actions.StopNode | actions.RollBackLedger | actions.EndJob
        )
        self._do("send", f"{type(action).__name__} to {action.node}")
        return action.node in self.connected

    # ---- Ledger ----

    @property
    def reported_through(self) -> Step:
        return self.end

    @property
    def newest_generation(self) -> GenerationNumber:
        return self.generation

    def append(self, record: StepRecord) -> Step:
        self._do("append", record.step)
        self.end = max(self.end, record.step)
        return self.end

    def measured(self, record: ValidationRecord) -> None:
        self._do("measured", record.step)

    def roll_back(self, step: Step, generation: GenerationNumber) -> None:
        self._do("roll back to", f"{step} for generation {generation}")
        self.end = min(self.end, step)

    def sync(self) -> None:
        self._do("sync")

    # ---- Ending ----

    def job_ended(self, succeeded: bool, reason: str) -> None:
        self.ended.append((succeeded, reason))

    def ports(self) -> Ports:
        return Ports(store=self, cluster=self, messenger=self, ledger=self, ending=self)


class Stage:
    """A controller between a scripted machine and a world of fakes."""

    def __init__(self, answer: Callable[[Event], Outcome] = lambda event: NOTHING) -> None:
        self.world = World()
        self.state = ClusterState()
        self.machine = Scripted(self.state, answer)
        self.controller = Controller(machine=self.machine, state=self.state, ports=self.world.ports())


def disk_full() -> StoreError:
    return StoreError("cannot write to the database: the disk is full")


def disconnected(node: str = "node-1", at: float = 1.0) -> NodeDisconnected:
    return NodeDisconnected(at=at, cause_id=CAUSE, node=NodeId(node), incarnation="i", reason="broken")


def heartbeat(node: str = "node-1", at: float = 1.0) -> HeartbeatReceived:
    return HeartbeatReceived(at=at, cause_id=CAUSE, node=NodeId(node), incarnation="i", trainers=())


def record(step: int, generation: int = 1, samples: tuple[int, ...] = (0, 1, 2)) -> StepRecord:
    return StepRecord(
        step=Step(step),
        generation=GenerationNumber(generation),
        loss=5.0 / step,
        tokens=384,
        time=1000.0 + step,
        step_seconds=0.5,
        sample_ids=samples,
        expert_load=(3, 1),
        layer_load=((1, 1), (2, 0)),
        learning_rate=0.001 * step,
        gradient_norm=1.5,
    )


def committed(step: int, generation: int = 1) -> StepCommitted:
    trainer = TrainerId("node-1/0")
    return StepCommitted(
        at=1.0, cause_id=CAUSE, trainer=trainer, incarnation="i", start=1, record=record(step, generation)
    )


def start_node(number: int, node: str = "node-1") -> actions.StartNode:
    return actions.StartNode(id=ActionId(f"a-1-{number}"), generation=GenerationNumber(1), node=NodeId(node))


def stop_node(number: int, node: str = "node-1") -> actions.StopNode:
    action_id = ActionId(f"a-1-{number}")
    return actions.StopNode(id=action_id, generation=GenerationNumber(1), node=NodeId(node), reason="drained")


def fence(number: int, node: str = "node-1") -> actions.Fence:
    action_id = ActionId(f"a-1-{number}")
    return actions.Fence(id=action_id, generation=GenerationNumber(1), node=NodeId(node), reason="stale")


def roll_back(number: int, step: int, generation: int) -> actions.RollBackLedger:
    return actions.RollBackLedger(
        id=ActionId(f"a-1-{number}"), generation=GenerationNumber(generation), step=Step(step)
    )


def end_job(number: int) -> actions.EndJob:
    return actions.EndJob(
        id=ActionId(f"a-1-{number}"), generation=GenerationNumber(1), succeeded=True, reason="all steps done"
    )
