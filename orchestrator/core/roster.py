"""Who is there: questions about members and trainers that several topics ask. Reads the state, changes nothing.

Next: `membership.py`, which keeps the views current; `generations.py`, which seats people.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from orchestrator.core import domains, health
from orchestrator.core.decision import in_order, natural
from orchestrator.core.domains import Domains
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Seating:
    """The members of a generation as they are asked for."""

    generation: Generation
    by_trainer: dict[TrainerId, Member]
    by_node: dict[NodeId, tuple[Member, ...]]
    nodes: tuple[NodeId, ...]
    """By rank."""


SEATINGS_LIMIT = 4
"""Generations whose seating is remembered: the one in force, the planned one, and their predecessors."""
_seatings: list[Seating] = []
"""Newest first. A generation never changes, so neither does its seating; this only spares making it again."""


def seating(generation: Generation) -> Seating:
    """Who sits where. Made once for a generation, since with thousands of members it is asked for at every event."""
    for known in _seatings:
        if known.generation is generation:
            return known
    by_trainer = {each.trainer: each for each in generation.members}
    nodes = tuple([node_of(each.trainer) for each in generation.members])
    by_node: dict[NodeId, tuple[Member, ...]] = {}
    for node, each in zip(nodes, generation.members, strict=True):
        by_node[node] = (*by_node.get(node, ()), each)
    made = Seating(generation=generation, by_trainer=by_trainer, by_node=by_node, nodes=nodes)
    _seatings.insert(0, made)
    del _seatings[SEATINGS_LIMIT:]
    return made


def member(generation: Generation | None, trainer: TrainerId) -> Member | None:
    """The seat of a trainer, whichever process of it has it."""
    return None if generation is None else seating(generation).by_trainer.get(trainer)


def seats_by_trainer(generation: Generation) -> dict[TrainerId, Member]:
    """All seats of a generation by name, for those who ask for many."""
    return seating(generation).by_trainer


def seat(state: ClusterState, trainer: TrainerId) -> Member | None:
    """The seat of a trainer in the generation in force."""
    return member(state.generation, trainer)


def is_member(generation: Generation | None, trainer: TrainerId, start: int) -> bool:
    """This very process has a seat."""
    seat = member(generation, trainer)
    return seat is not None and seat.start == start


def members_on(generation: Generation | None, node: NodeId) -> tuple[Member, ...]:
    """Members on a node, by rank."""
    if generation is None:
        return ()
    return seating(generation).by_node.get(node, ())


def nodes_by_rank(generation: Generation) -> tuple[NodeId, ...]:
    """The failure domain of every rank."""
    return seating(generation).nodes


def all_joined(state: ClusterState) -> bool:
    """The generation in force has members, and all of them have regrouped. Nobody else ever joins (`invariants`)."""
    generation = state.generation
    return (
        generation is not None and bool(generation.members) and len(state.joined) == len(generation.members)
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
    return _free(state, policy, _candidates(state, doubtful=doubtful))


def starting(state: ClusterState, leaving: Collection[TrainerId] = ()) -> tuple[TrainerId, ...]:
    """Trainers that will be free once they have started, in order; `leaving` are members that lose their seat."""
    return _starting(state, _candidates(state, leaving))


def unseated(
    state: ClusterState, policy: Policy, leaving: Collection[TrainerId] = ()
) -> tuple[tuple[Member, ...], tuple[TrainerId, ...]]:
    """Who is `free` and who is `starting`, with one look at all nodes. Who is leaving is not free before it has been
    started afresh."""
    candidates = tuple(_candidates(state, leaving))
    staying = [status for status in candidates if status.trainer not in leaving]
    return _free(state, policy, staying), _starting(state, candidates)


def _free(state: ClusterState, policy: Policy, statuses: Iterable[TrainerStatus]) -> tuple[Member, ...]:
    return tuple(
        Member(
            trainer=status.trainer,
            start=status.start,
            rank=Rank(0),
            store_address=status.store_address,
            peer_address=status.peer_address,
        )
        for status in statuses
        if status.ready and status.silent_seconds < policy.hang_seconds and not _fenced(state, status)
    )


def _starting(state: ClusterState, statuses: Iterable[TrainerStatus]) -> tuple[TrainerId, ...]:
    return tuple(status.trainer for status in statuses if not status.ready or _fenced(state, status))


def _fenced(state: ClusterState, status: TrainerStatus) -> bool:
    """This process is to be ended, so it is not the one that may have a seat."""
    return status.start <= state.memory.fenced_starts.get(status.trainer, 0)


def _candidates(
    state: ClusterState, leaving: Collection[TrainerId] = (), *, doubtful: bool = False
) -> Iterator[TrainerStatus]:
    """Trainers without a seat on nodes that may give one, in order. Most have a seat: only the others are sorted."""
    in_force = seating(state.generation).by_trainer if state.generation else {}
    planned = seating(state.planned).by_trainer if state.planned else {}
    without: dict[NodeId, list[TrainerId]] = {}
    for node, view in state.views.items():
        if not view.connected:
            continue
        for trainer in view.trainers:
            if (trainer not in in_force and trainer not in planned) or trainer in leaving:
                without.setdefault(node, []).append(trainer)
    nodes = sorted(without, key=natural)
    if state.health:
        kept_out = {node for node in nodes if health.kept_out(state, node)}
        nodes = [node for node in nodes if node not in kept_out]
        nodes += sorted(kept_out, key=natural) if doubtful else []
    for node in nodes:
        entity = state.nodes[node]
        if entity.cordoned or entity.state not in (NodeState.SPARE, NodeState.ACTIVE):
            continue
        for trainer in sorted(without[node], key=in_order):
            if trainer not in state.memory.refused:
                yield state.views[node].trainers[trainer]


# ---- where nodes stand ----


def domains_of(state: ClusterState) -> Domains:
    """Failure domains larger than a node, as the job asks for them and the labels say."""
    if state.memory.domains is None:
        assert state.job is not None
        labels = {node: dict(entity.labels) for node, entity in state.nodes.items()}
        state.memory.domains = domains.known(labels, state.job.spec.cluster.spread_over)
    return state.memory.domains


def spread(
    state: ClusterState, candidates: Sequence[Member], beside: Iterable[Member] = ()
) -> tuple[Member, ...]:
    """Trainers that could take a seat, so that any number of the first ones keeps failure domains even, beside the
    members that there are; trainers of one node follow one another."""
    where = domains_of(state)
    if not where or not candidates:
        return tuple(candidates)
    by_node: dict[NodeId, list[Member]] = {}
    for each in candidates:
        by_node.setdefault(node_of(each.trainer), []).append(each)
    order = where.spread(list(by_node), [node_of(each.trainer) for each in beside])
    return tuple(each for node in order for each in by_node[node])
