"""The nodes of a simulated cluster: which are up, which processes run on them, what their agents say.

A coarse model of agents and trainers: no messages are lost here and nothing takes time by itself (`play.py` owns the
clock). Next: `play.py`; the faults that this model leaves out are played in the fault simulation of `simulation/`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from orchestrator.core.events import TrainerPhase, TrainerStatus
from orchestrator.core.held import HeldShard
from orchestrator.core.ids import GenerationNumber, NodeId, Step, TrainerId, node_of, trainer_id
from orchestrator.core.spec import ClusterSpec
from orchestrator.core.spec_rules import node_ids
from orchestrator.core.state import NO_GENERATION, Generation, Member
from simulation.planning.meter import Census


@dataclass(slots=True, kw_only=True)
class Trainer:
    """A trainer process."""

    id: TrainerId
    start: int = 1
    ready: bool = False
    stuck: bool = False
    joined: GenerationNumber = NO_GENERATION
    """The newest generation that it has regrouped in."""
    copying: bool = False


@dataclass(slots=True, kw_only=True)
class Node:
    """A host with its agent."""

    id: NodeId
    up: bool = False
    registered: bool = False
    away: bool = False
    """Failed, and not repaired yet."""
    starts: int = 0
    trainers: list[Trainer] = field(default_factory=list)
    held: tuple[HeldShard, ...] = ()
    """Of snapshots, in the memory of its agent."""

    @property
    def incarnation(self) -> str:
        return f"{self.id}#{self.starts}"

    def boot(self, devices: int) -> None:
        """A fresh agent with fresh processes."""
        self.up, self.registered, self.away = True, False, False
        self.starts += 1
        self.trainers = [Trainer(id=trainer_id(self.id, device)) for device in range(devices)]

    def fail(self) -> None:
        """Everything on it is gone."""
        self.up = self.registered = False
        self.away = True
        self.trainers = []
        self.held = ()


class Fleet:
    """All nodes by number and by name."""

    def __init__(self, cluster: ClusterSpec) -> None:
        self.devices = cluster.devices_per_node
        self.nodes = [Node(id=node) for node in node_ids(cluster)]
        self._by_id = {node.id: node for node in self.nodes}

    def node(self, node: NodeId) -> Node:
        return self._by_id[node]

    def trainer(self, trainer: TrainerId) -> Trainer | None:
        """The process of a trainer; None where its node is down."""
        node = self._by_id[node_of(trainer)]
        index = int(trainer.rpartition("/")[2])
        return node.trainers[index] if node.up else None

    def lives(self, member: Member) -> bool:
        """The very process that has the seat is there and can work."""
        process = self.trainer(member.trainer)
        return process is not None and process.start == member.start and process.ready and not process.stuck

    def listening(self) -> Iterator[Node]:
        """Nodes with an agent that has registered."""
        return (node for node in self.nodes if node.up and node.registered)

    def census(self, generation: Generation | None) -> Census:
        """Who does what."""
        members = 0
        for member in generation.members if generation else ():
            process = self.trainer(member.trainer)
            members += process is not None and process.start == member.start
        away = sum(self.devices for node in self.nodes if not node.up)
        seated = {member.trainer: member.start for member in generation.members} if generation else {}
        seating = sum(
            1
            for node in self.nodes
            for each in node.trainers
            if seated.get(each.id) != each.start and (each.copying or not each.ready)
        )
        idle = len(self.nodes) * self.devices - members - away - seating
        return Census(members=members, seating=seating, idle=idle, away=away)

    def statuses(self, node: Node, committed: Step, at_work: GenerationNumber) -> tuple[TrainerStatus, ...]:
        """What the agent of a node says of its trainers; members of generation `at_work` are in a step."""
        return tuple(self._status(each, committed, at_work) for each in node.trainers)

    def _status(self, process: Trainer, committed: Step, at_work: GenerationNumber) -> TrainerStatus:
        phase = TrainerPhase.READY if process.ready else TrainerPhase.STARTING
        if process.joined:
            phase = TrainerPhase.FORWARD if process.joined == at_work else TrainerPhase.REGROUPING
        return TrainerStatus(
            trainer=process.id,
            start=process.start,
            pid=process.start,
            ready=process.ready,
            store_address=process.id,
            peer_address=process.id,
            device_name="gpu",
            generation=process.joined,
            step=committed if process.joined else Step(0),
            phase=phase,
            operation=committed,
            waiting=not process.stuck,
            silent_seconds=0.0,
        )
