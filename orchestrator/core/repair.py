"""Redundancy and seats come back: planned from the state as it is, copied in the background, seated at a boundary.

`plan_repair` is level-triggered: it compares the members and the placement with what they should be and does not ask
what happened. It seats newcomers first, has survivors copy what is missing where no newcomer comes, and empties
draining nodes. The copies (`Acquire`) run while the others train; when all have caught up, a planned generation takes
the newcomers in. What is too much to be copied meanwhile is sent when that generation begins. With nothing left to do
incidents close, or say why redundancy cannot come back for now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.core import (
    breaker,
    checkpoints,
    generations,
    health,
    incidents,
    placement,
    roster,
    stages,
    stragglers,
)
from orchestrator.core.actions import Acquire, Donor
from orchestrator.core.decision import Decision
from orchestrator.core.events import AcquisitionFailed, PartsAcquired
from orchestrator.core.generations import Plan
from orchestrator.core.ids import NodeId, Rank, TrainerId, node_of
from orchestrator.core.parts import dense_part, expert_part
from orchestrator.core.placement import Placement
from orchestrator.core.policy import Policy
from orchestrator.core.state import (
    Acquisition,
    CheckpointState,
    ClusterState,
    Generation,
    GenerationKind,
    Job,
    JobState,
    Member,
    NodeState,
    Repair,
)
from orchestrator.core.words import count, experts, listed


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Members and placement as they should be, and why."""

    members: tuple[Member, ...]
    placement: Placement
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Something could be done, but it is better to wait a little."""

    reason: str


def advance(decision: Decision) -> None:
    """Take the next step towards full redundancy, if one can be taken now."""
    state = decision.state
    if not roster.all_joined(state) or state.planned is not None or _ending(decision.job, state):
        return
    if state.memory.repair is not None:
        if all(each.caught_up for each in state.acquisitions.values()):
            _seat(decision)
        return
    circuit = breaker.broken(state, decision.at)
    if circuit is not None:
        _wait(decision, Waiting(reason=f"the circuit is broken: {circuit}"))
        return
    target = plan_repair(state, decision.policy, decision.at)
    if isinstance(target, Target):
        _start(decision, target)
    elif isinstance(target, Waiting):
        _wait(decision, target)
    else:
        _settle(decision)


def drop(decision: Decision, why: str) -> None:
    """The copies under way are of no use any more; what is needed is planned again from the state as it is."""
    if decision.state.memory.repair is not None:
        first = incidents.first_open(decision.state)
        decision.say(f"{why}: the copies under way are dropped", first.id if first else None)
    decision.state.memory.repair = None
    decision.state.acquisitions.clear()


def parts_acquired(decision: Decision, event: PartsAcquired) -> None:
    """A copy has caught up and follows the commits of its donors."""
    acquisition = decision.state.acquisitions.get(event.acquisition)
    if acquisition is None or (acquisition.trainer, acquisition.start) != (event.trainer, event.start):
        return
    if not acquisition.caught_up:
        acquisition.caught_up = True
        text = f"{event.trainer} holds {count(len(acquisition.parts), 'part')} as of step {event.version}"
        first = incidents.first_open(decision.state)
        decision.say(text, first.id if first else None)


def acquisition_failed(decision: Decision, event: AcquisitionFailed) -> None:
    """A copy has ended early. Planned again, unless this trainer has failed too often; one that cannot be made while
    training goes on is made when the planned generation begins: its members send each other what one of them lacks."""
    acquisition = decision.state.acquisitions.get(event.acquisition)
    if acquisition is None or (acquisition.trainer, acquisition.start) != (event.trainer, event.start):
        return
    if event.standing_only:
        acquisition.caught_up = True
        first = incidents.first_open(decision.state)
        text = (
            f"{event.trainer} cannot copy {count(len(acquisition.parts), 'part')} while training goes on "
            f"({event.reason}): training stands still for them at the next boundary"
        )
        decision.say(text, first.id if first else None)
        return
    count_failure(decision, event.trainer)
    drop(decision, f"{event.trainer} could not copy: {event.reason}")


def count_failure(decision: Decision, trainer: TrainerId) -> None:
    """Count a failed copy; a trainer with too many is left alone for a while."""
    failures, policy = decision.state.memory.acquire_failures, decision.policy
    failures[trainer] = (*failures.get(trainer, ()), decision.at)[-policy.acquire_attempts :]
    if _given_up(decision.state, policy, decision.at, trainer):
        times, limit = policy.acquire_attempts, policy.forgive_seconds
        decision.say(
            f"{trainer} has failed to copy {times} times within {limit:g} s and is left alone for a while"
        )


def repeat_orders(decision: Decision, node: NodeId) -> None:
    """A node that was copying has come back: its order may be lost, so the copies are planned again."""
    copying = [each for each in decision.state.acquisitions.values() if node_of(each.trainer) == node]
    if any(not each.caught_up for each in copying):
        drop(decision, f"{node} registered again while it was copying")


def plan_repair(state: ClusterState, policy: Policy, at: float) -> Target | Waiting | None:
    """What should be different; None when everything is as well as it can be."""
    generation, job = state.generation, state.job
    assert generation is not None and job is not None
    spares = roster.free(state, policy)
    empty = roster.seats(job.spec.cluster) - len(generation.members)
    leaving = _leaving(state, generation) | stragglers.swapped(state, len(spares), empty)
    if not leaving and not empty and state.memory.whole is generation:
        return None
    kept = tuple(each for each in generation.members if node_of(each.trainer) not in leaving)
    vacant = roster.seats(job.spec.cluster) - len(kept)
    able = [each for each in spares if not _given_up(state, policy, at, each.trainer)]
    newcomers = roster.spread(state, able, kept)[:vacant] if vacant > 0 else ()
    depth, domains = job.spec.pipeline.stages, roster.domains_of(state)
    joined = stages.joined(kept, newcomers, depth, domains)
    even = stages.evened(joined, depth)
    if not all(stages.widths(even, depth)):
        return None
    failing = {trainer for trainer in state.memory.acquire_failures if _given_up(state, policy, at, trainer)}
    members = stages.exchanged(even, depth, job.spec.cluster.replicas, failing)
    moved = tuple(each for each, was in zip(members, joined, strict=True) if each.stage != was.stage)
    new_rank = {each.rank: Rank(rank) for rank, each in enumerate(kept)}
    before = placement.remove(generation.placement, new_rank)
    gaps = stages.missing(before, joined, depth, job.spec.cluster.replicas)
    if (gaps or moved) and not newcomers and (awaited := _awaited(state, policy, at, vacant)):
        return Waiting(reason=f"{listed(awaited)} will be seated once ready")
    full = [Rank(rank) for rank, each in enumerate(kept) if each.trainer in failing]
    arrivals = [Rank(rank) for rank, each in enumerate(members) if rank >= len(kept) or each in moved]
    after = stages.repaired(
        before, members, depth, job.spec.cluster.replicas, arrivals, state.memory.expert_load, full, domains
    )
    if not newcomers and not leaving and not moved and after == before:
        if (
            not gaps and not vacant and not failing
        ):  # who fails is forgiven in time, and may change places then
            state.memory.whole = generation
        return None
    if placement.lost_experts(after):
        return None
    changed = tuple(each for each, was in zip(members, even, strict=True) if each.stage != was.stage)
    reason = _why(
        generation, newcomers, leaving, gaps, [each for each in moved if each not in changed], changed
    )
    if newcomers != tuple(able[: len(newcomers)]):
        reason += f"; of {count(len(able), 'spare')} chosen so that no {' or '.join(domains.keys)} has too many members"
    return Target(members=members, placement=after, reason=reason)


def acquisitions_of(generation: Generation, target: Target) -> tuple[tuple[Member, tuple[Donor, ...]], ...]:
    """Who has to copy what from whom: the load of giving is spread over the replicas that there are."""
    given = dict.fromkeys((each.trainer for each in generation.members), 0)
    seats = roster.seats_by_trainer(generation)
    lacking = _lacking(generation, target)
    result = []
    for rank, receiver in enumerate(target.members):
        old = seats.get(receiver.trainer)
        parts: dict[TrainerId, list[str]] = {}
        if old is None or old.stage != receiver.stage:
            first = next(each for each in generation.members if each.stage == receiver.stage)
            parts[first.trainer] = [dense_part(receiver.stage)]
        for expert in lacking.get(rank, ()):
            candidates = [generation.members[each].trainer for each in generation.placement[expert]]
            donor = min(candidates, key=lambda trainer: given[trainer])
            given[donor] += 1
            parts.setdefault(donor, []).append(expert_part(expert))
        if parts:
            result.append((receiver, _donors(generation, parts)))
    return tuple(result)


def _lacking(generation: Generation, target: Target) -> dict[int, list[int]]:
    """Rank of the target -> experts that it is to hold and does not hold now."""
    seats = roster.seats_by_trainer(generation)
    lacking: dict[int, list[int]] = {}
    for expert, holders in enumerate(target.placement):
        held = set(generation.placement[expert])
        for rank in holders:
            old = seats.get(target.members[rank].trainer)
            if old is None or old.rank not in held:
                lacking.setdefault(rank, []).append(expert)
    return lacking


def _donors(generation: Generation, parts: dict[TrainerId, list[str]]) -> tuple[Donor, ...]:
    seats = roster.seats_by_trainer(generation)
    giving = sorted((seats[trainer] for trainer in parts), key=lambda each: each.rank)
    return tuple(
        Donor(trainer=each.trainer, peer_address=each.peer_address, parts=tuple(parts[each.trainer]))
        for each in giving
    )


def _wait(decision: Decision, waiting: Waiting) -> None:
    """Say once what is waited for."""
    memory = decision.state.memory
    if memory.repair_awaits != waiting.reason:
        memory.repair_awaits = waiting.reason
        first = incidents.first_open(decision.state)
        decision.say(f"missing replicas are not copied yet: {waiting.reason}", first.id if first else None)


def _start(decision: Decision, target: Target) -> None:
    """Have everybody copy what the target asks of them."""
    state = decision.state
    generation = state.generation
    assert generation is not None
    state.memory.repair = Repair(
        members=tuple((each.trainer, each.start, each.stage) for each in target.members),
        placement=target.placement,
        reason=target.reason,
    )
    orders = acquisitions_of(generation, target)
    first = incidents.first_open(state)
    names = listed(receiver.trainer for receiver, _ in orders)
    how = (
        f"{names} copy while training goes on"
        if len(orders) > 1
        else f"{names} copies while training goes on"
    )
    how = how if orders else "nothing has to be copied"
    decision.say(f"{target.reason}: {how}", first.id if first else None)
    for receiver, donors in orders:
        state.memory.acquisitions_made += 1
        acquisition = Acquisition(
            id=f"acq-{decision.job.starts}-{state.memory.acquisitions_made}",
            trainer=receiver.trainer,
            start=receiver.start,
            parts=tuple(part for donor in donors for part in donor.parts),
            generation=generation.number,
            begun_at=decision.at,
        )
        state.acquisitions[acquisition.id] = acquisition
        decision.act(
            Acquire(
                id=decision.action_id(),
                generation=generation.number,
                node=node_of(receiver.trainer),
                trainer=receiver.trainer,
                acquisition=acquisition.id,
                donors=donors,
            )
        )
    if not orders:
        _seat(decision)


def _seat(decision: Decision) -> None:
    """All copies have caught up: send the planned generation, a moment later if a checkpoint waits for its boundary.

    That may take long where memory for its copy has to be made first, and a seat is worth more.
    """
    state = decision.state
    repair, generation = state.memory.repair, state.generation
    assert repair is not None and generation is not None
    busy = checkpoints.unfinished(state)
    if busy is not None and busy.state is CheckpointState.REQUESTED:
        since = max(busy.requested_at, state.memory.started_at)
        if decision.at - since < decision.policy.checkpoint_boundary_seconds:
            return
    members = []
    seats = roster.seats_by_trainer(generation)
    free = {each.trainer: each for each in roster.free(state, decision.policy)}
    for trainer, start, stage in repair.members:
        seated = seats.get(trainer) or free.get(trainer)
        if seated is None or seated.start != start:
            drop(decision, f"{trainer} is not what it was")
            return
        members.append(seated if seated.stage == stage else replace(seated, stage=stage))
    first = incidents.first_open(state)
    number = decision.next_number()
    for record in tuple(incidents.open_incidents(state)):
        if record.kind in incidents.PLANNED and record.decided_at is None:
            incidents.decided(decision, record.id, action="seat others, then leave", number=number)
    decision.say(f"generation {number} takes over at the next boundary", first.id if first else None)
    plan = Plan(
        kind=GenerationKind.PLANNED,
        members=tuple(members),
        placement=repair.placement,
        reason=repair.reason,
        incident=first.id if first else None,
    )
    generations.begin(decision, plan)


def _settle(decision: Decision) -> None:
    """Nothing more can be done: close the incidents, or say why redundancy cannot come back for now."""
    state, job = decision.state, decision.job
    generation = state.generation
    assert generation is not None
    opened = [
        each
        for each in incidents.open_incidents(state)
        if each.kind not in incidents.PLANNED or _left(state, each.node)
    ]
    if not opened:
        return
    cluster = job.spec.cluster
    nodes = roster.nodes_by_rank(generation)
    thin = stages.thin(generation.placement, nodes, min(cluster.replicas, cluster.nodes))
    apart = stages.apart(generation.placement, generation.members, roster.domains_of(state))
    again = f"every expert has {count(cluster.replicas, 'replica')} again{f', {apart}' if apart else ''}"
    seats, taken, depth = roster.seats(cluster), len(generation.members), job.spec.pipeline.stages
    for record in opened:
        if thin:
            where = f"{count(len(set(nodes)), 'node')}{', divided over stages' if depth > 1 else ''}"
            why = f"{experts(thin)} cannot have {cluster.replicas} replicas on {where}"
            incidents.degrade(decision, record.id, f"{why}: redundancy comes back when a trainer is free")
        elif taken >= seats:
            text = f"{again}, and all {seats} seats are taken"
            incidents.close(decision, record.id, text)
        else:
            text = f"{again}; {taken} of {seats} seats are taken, no spare is ready, and the work stays shared out"
            incidents.close(decision, record.id, text)


def _left(state: ClusterState, node: NodeId) -> bool:
    """The seats of a node that was to be emptied are gone; or it is not to leave any more, and has seats again."""
    if not roster.members_on(state.generation, node):
        return True
    entity = state.nodes[node]
    return entity.state is NodeState.ACTIVE and not entity.cordoned and not health.kept_out(state, node)


def _ending(job: Job, state: ClusterState) -> bool:
    """The members are about to leave, or have left the loop: nobody would reach another boundary."""
    return job.state not in (JobState.RUNNING, JobState.RECOVERING) or bool(state.memory.ended)


def _leaving(state: ClusterState, generation: Generation) -> frozenset[NodeId]:
    """Nodes that are to be emptied, as long as somebody stays."""
    nodes = dict.fromkeys(roster.nodes_by_rank(generation))
    draining = frozenset(node for node in nodes if state.nodes[node].state is NodeState.DRAINING)
    return draining if len(draining) < len(nodes) else frozenset()


def _given_up(state: ClusterState, policy: Policy, at: float, trainer: TrainerId) -> bool:
    """A trainer whose copies have failed too often of late."""
    failures = state.memory.acquire_failures.get(trainer, ())
    recent = [failed_at for failed_at in failures if at - failed_at < policy.forgive_seconds]
    return len(recent) >= policy.acquire_attempts


def _awaited(state: ClusterState, policy: Policy, at: float, vacant: int) -> Sequence[TrainerId | NodeId]:
    """Trainers that are starting and would take an empty seat, while there is still time to wait for them."""
    last = max((each.detected_at for each in incidents.open_incidents(state)), default=0.0)
    since = max(last, state.memory.started_at)
    if vacant <= 0 or at - since >= policy.newcomer_seconds:
        return ()
    coming: list[TrainerId | NodeId] = [
        trainer for trainer in roster.starting(state) if not _given_up(state, policy, at, trainer)
    ]
    return [*coming, *_unheard(state, policy, at)][:vacant]


def _unheard(state: ClusterState, policy: Policy, at: float) -> list[NodeId]:
    """Spares that have not registered with this controller yet, while their fresh lease lasts."""
    if at - state.memory.started_at >= policy.takeover_seconds:
        return []
    spares = (node for node in roster.nodes_in_order(state) if state.nodes[node].state is NodeState.SPARE)
    return [node for node in spares if not state.views[node].connected and not state.nodes[node].cordoned]


def _why(
    generation: Generation,
    newcomers: Sequence[Member],
    leaving: frozenset[NodeId],
    gaps: Sequence[int],
    moved: Sequence[Member],
    changed: Sequence[Member],
) -> str:
    reasons = []
    if newcomers:
        seats = "an empty seat goes" if len(newcomers) == 1 else f"{len(newcomers)} empty seats go"
        reasons.append(f"{seats} to {listed(each.trainer for each in newcomers)}")
    reasons += [f"{each.trainer} goes over to stage {each.stage}, which has fewer trainers" for each in moved]
    if changed:
        places = listed(f"{each.trainer} goes to stage {each.stage}" for each in changed)
        reasons.append(f"{places}, so that each stage has a node for every replica")
    if leaving:
        emptied = [each for each in dict.fromkeys(roster.nodes_by_rank(generation)) if each in leaving]
        reasons.append(f"others take over from {listed(emptied)}")
    if gaps:
        reasons.append(f"missing replicas of {count(len(gaps), 'expert')} are made")
    return "; ".join(reasons) or "the load is evened out"
