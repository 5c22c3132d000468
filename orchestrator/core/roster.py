"""Who is there: questions about members and trainers that several topics ask. Reads the state, changes nothing.

Next: `membership.py`, which keeps the views current; `generations.py`, which seats people.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from orchestrator.core import health
from orchestrator.core.decision import in_order, natural
from orchestrator.core.events import TrainerPhase, TrainerStatus
from orchestrator.core.ids import NodeId, Rank, TrainerId, node_of
from orchestrator.core.policy import Policy
from orchestrator.core.spec import ClusterSpec
from orchestrator.core.state import ClusterState, Generation, Member, NodeState

LIVE = (NodeState.SPARE, NodeState.ACTIVE, NodeState.DRAINING)

AT_WORK = (
    TrainerPhase.FORWARD,
    TrainerPhase.BACKWARD,
    TrainerPhase.REDUCE,
    TrainerPhase.VOTE,
    TrainerPhase.OPTIMIZER,
    TrainerPhase.BOUNDARY,
    TrainerPhase.FINISHED,
)
"""Phases that only a trainer that has joined its generation can be in."""

SEATED = (*AT_WORK, TrainerPhase.REGROUPING, TrainerPhase.RESTORING)


def seats(cluster: ClusterSpec) -> int:
    """How many trainers the job wants."""
    return cluster.nodes * cluster.devices_per_node


def member(generation: Generation | None, trainer: TrainerId) -> Member | None:
    """The seat of a trainer, whichever process of it has it."""
    if generation is None:
        return None
    return next((each for each in generation.members if each.trainer == trainer), None)


def seats_by_trainer(generation: Generation) -> dict[TrainerId, Member]:
    """All seats of a generation by name, for those who ask for many."""
    return {each.trainer: each for each in generation.members}


def seat(state: ClusterState, trainer: TrainerId) -> Member | None:
    """The seat of a trainer in the generation in force. Cheap: asked for every heartbeat."""
    generation, memory = state.generation, state.memory
    if generation is None:
        return None
    if memory.seats_of != generation.number:
        memory.seats = seats_by_trainer(generation)
        memory.seats_of = generation.number
    return memory.seats.get(trainer)


def is_member(generation: Generation | None, trainer: TrainerId, start: int) -> bool:
    """This very process has a seat."""
    seat = member(generation, trainer)
    return seat is not None and seat.start == start


def members_on(generation: Generation | None, node: NodeId) -> tuple[Member, ...]:
    """Members on a node, by rank."""
    if generation is None:
        return ()
    return tuple(each for each in generation.members if node_of(each.trainer) == node)


def nodes_by_rank(generation: Generation) -> tuple[NodeId, ...]:
    """The failure domain of every rank."""
    return tuple(node_of(each.trainer) for each in generation.members)


def all_joined(state: ClusterState) -> bool:
    """The generation in force has members, and all of them have regrouped. Cheap: only members ever join."""
    generation = state.generation
    return (
        generation is not None and bool(generation.members) and len(state.joined) >= len(generation.members)
    )


def status_of(state: ClusterState, trainer: TrainerId) -> TrainerStatus | None:
    """What was last heard of a trainer."""
    view = state.views.get(node_of(trainer))
    return view.trainers.get(trainer) if view else None


def nodes_in_order(state: ClusterState) -> tuple[NodeId, ...]:
    """All nodes, `node-2` before `node-10`."""
    return tuple(sorted(state.nodes, key=natural))


def connected(state: ClusterState) -> tuple[NodeId, ...]:
    """Nodes that messages reach, in order."""
    return tuple(sorted((node for node, view in state.views.items() if view.connected), key=natural))


def free(state: ClusterState, policy: Policy, *, doubtful: bool = False) -> tuple[Member, ...]:
    """Trainers that could take a seat now, in order; as members without a rank yet (0).

    `doubtful` adds those on nodes in quarantine, last.
    """
    return tuple(
        Member(
            trainer=status.trainer,
            start=status.start,
            rank=Rank(0),
            store_address=status.store_address,
            peer_address=status.peer_address,
        )
        for status in _candidates(state, doubtful=doubtful)
        if status.ready
        and status.silent_seconds < policy.hang_seconds
        and status.start > state.memory.fenced_starts.get(status.trainer, 0)
    )


def starting(state: ClusterState, leaving: Collection[TrainerId] = ()) -> tuple[TrainerId, ...]:
    """Trainers that will be free once they have started, in order; `leaving` are members that lose their seat."""
    return tuple(
        status.trainer
        for status in _candidates(state, leaving)
        if not status.ready or status.start <= state.memory.fenced_starts.get(status.trainer, 0)
    )


def _candidates(
    state: ClusterState, leaving: Collection[TrainerId] = (), *, doubtful: bool = False
) -> Iterator[TrainerStatus]:
    """Trainers without a seat on nodes that may give one, in order."""
    memory = state.memory
    nodes = connected(state)
    if state.health:
        kept_out = [node for node in nodes if health.kept_out(state, node)]
        nodes = tuple(node for node in nodes if node not in kept_out)
        nodes = (*nodes, *kept_out) if doubtful else nodes
    for node in nodes:
        entity = state.nodes[node]
        if entity.cordoned or entity.state not in (NodeState.SPARE, NodeState.ACTIVE):
            continue
        view = state.views[node]
        without = [each for each in view.trainers if each in leaving or seat(state, each) is None]
        for trainer in sorted(without, key=in_order):
            if (
                trainer in leaving or member(state.planned, trainer) is None
            ) and trainer not in memory.refused:
                yield view.trainers[trainer]
