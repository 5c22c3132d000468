"""Waits that run out: leases, silence, blame, regrouping, stalls, copies, checkpoints. Called by the lease timer.

Losses come first and are answered together; everything else is looked at only when nobody was lost, since a new
generation starts all of these waits anew. After a restart of the controller every wait counts from then.
Next: `recovery.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from orchestrator.core import (
    checkpoints,
    generations,
    membership,
    patience,
    recovery,
    repair,
    roster,
    snapshots,
)
from orchestrator.core.decision import Decision, natural
from orchestrator.core.events import TrainerPhase
from orchestrator.core.ids import NodeId, TrainerId, node_of
from orchestrator.core.lifecycle import NodeTrigger
from orchestrator.core.membership import HEARD_OF, Departure
from orchestrator.core.recovery import Loss
from orchestrator.core.state import Generation, GenerationKind, IncidentKind, Member, NodeState
from orchestrator.core.words import count, lasting, listed


def sweep(decision: Decision) -> None:
    """Look at every wait once."""
    departures = [*_expired_leases(decision), *_cut_off_while_regrouping(decision)]
    losses, gone = membership.give_up_nodes(decision, departures)
    hung = _silent_members(decision, gone)
    losses += hung
    gone |= {trainer for loss in hung for trainer in loss.trainers}
    if gone:
        membership.settle(decision, losses, gone)
    if losses or not decision.works():
        return
    for look in (_blame, _regrouping, _stall):
        if look(decision):
            return
    _planned(decision)
    _acquisitions(decision)
    checkpoints.expire(decision)
    snapshots.look(decision)


def _expired_leases(decision: Decision) -> list[Departure]:
    """Nodes without a heartbeat for too long; the late ones become suspect."""
    state = decision.state
    expired: list[Departure] = []
    doubtful: dict[NodeId, float] = {}
    if decision.at < state.memory.leases_from:
        return expired
    lease = patience.lease_seconds(decision)
    suspect = min(decision.policy.suspect_seconds, lease / 2)
    limit = decision.at - suspect
    late = [node for node, view in state.views.items() if view.last_seen <= limit]
    earliest = min(
        (view.last_seen for view in state.views.values() if view.last_seen > limit), default=decision.at
    )
    waits = any(state.nodes[node].state in HEARD_OF for node in late)
    state.memory.leases_from = decision.at if waits else earliest + suspect
    for node in sorted(late, key=natural):
        entity = state.nodes[node]
        if entity.state not in HEARD_OF:
            continue
        seen = _last_sign(decision, node)
        silent = decision.at - seen
        if silent >= lease:
            cause = f"{node} is lost: no heartbeat for {silent:.1f} s (the lease is {lasting(lease)})"
            expired.append(Departure(node=node, cause=cause, first_sign_at=seen))
        elif silent >= suspect and entity.state is not NodeState.SUSPECT:
            doubtful[node] = silent
    _suspect(decision, doubtful)
    return expired


def _suspect(decision: Decision, silent: Mapping[NodeId, float]) -> None:
    """Nodes that are late, with how long nothing was heard of them; so many at once are nobody's own fault."""
    memory = decision.state.memory
    if len(silent) > decision.policy.suspects_at_once:
        if not memory.many_late:
            least = min(silent.values())
            decision.say(
                f"{len(silent)} nodes are late at once, by {least:.1f} s or more: this controller was held up, or its "
                "network. None is suspect for that; their leases run on"
            )
        memory.many_late = True
        return
    memory.many_late = False
    for node, seconds in silent.items():
        decision.move_node(node, NodeTrigger.SUSPECT, f"no heartbeat for {seconds:.1f} s")
        decision.say(f"{node} is suspect: no heartbeat for {seconds:.1f} s")


def _cut_off_while_regrouping(decision: Decision) -> list[Departure]:
    """Members whose stream is broken while the others wait for them to regroup: nobody can lose touch with them there.

    Only where regrouping is a matter of moments; a restore takes long enough to wait for the lease.
    """
    state, generation = decision.state, decision.state.generation
    if generation is None or generation.kind not in (GenerationKind.IMMEDIATE, GenerationKind.PLANNED):
        return []
    if roster.all_joined(state):
        return []
    departures = []
    for node in dict.fromkeys(roster.nodes_by_rank(generation)):
        entity, view = state.nodes[node], state.views[node]
        cut_off = entity.state is NodeState.SUSPECT and not view.connected
        silent = decision.at - view.last_seen
        if cut_off and decision.policy.blame_seconds <= silent < decision.policy.lease_seconds:
            cause = f"{node} is lost: its stream broke while generation {generation.number} waits for it"
            departures.append(Departure(node=node, cause=cause, first_sign_at=view.last_seen))
    return departures


def _last_sign(decision: Decision, node: NodeId) -> float:
    """A heartbeat, or the beginning of a step that needed the node's members to be committed.

    So a node that only the controller cannot reach is not given up while training goes on with it.
    """
    state = decision.state
    seen = state.views[node].last_seen
    if roster.members_on(state.generation, node):
        return max(seen, state.memory.step_began_at)
    return seen


def _silent_members(decision: Decision, gone: set[TrainerId]) -> list[Loss]:
    """Members that their agents have not heard of, in case the report of it was lost."""
    losses = []
    silent = decision.state.memory.silent
    members = [found for trainer in silent if (found := roster.seat(decision.state, trainer)) is not None]
    for member in sorted(members, key=lambda each: each.rank):
        status = roster.status_of(decision.state, member.trainer)
        if member.trainer in gone or status is None or status.start != member.start:
            continue
        if status.silent_seconds >= decision.policy.hang_seconds:
            how = f"gave no sign of life for {status.silent_seconds:.1f} s and is restarted"
            losses.append(_hung(decision, member, how, decision.at - status.silent_seconds))
    return losses


def _blame(decision: Decision) -> bool:
    """Members lost touch with a peer, and no cause has shown itself."""
    state, policy = decision.state, decision.policy
    blame = state.memory.blame
    if blame is None or decision.at - blame.at < policy.blame_seconds or state.generation is None:
        return False
    late = 3 * policy.heartbeat_seconds
    for node in dict.fromkeys(roster.nodes_by_rank(state.generation)):
        view = state.views[node]
        if not view.connected or decision.at - view.last_seen > late:
            return False
    first = blame.reporters[0]
    cause = f"{first} lost touch with a peer ({blame.detail}) and nobody is missing"
    _answer_nobody_lost(decision, first, cause, blame.since)
    return True


def _regrouping(decision: Decision) -> bool:
    """Not all members have joined in time."""
    state = decision.state
    generation = state.generation
    if generation is None or not generation.members or roster.all_joined(state):
        return False
    since = max(generation.began_at or generation.created_at, state.memory.started_at)
    limit = decision.policy.join_seconds(generation.kind)
    absent = [each for each in generation.members if each.trainer not in state.joined]
    if decision.at - since < limit:
        _remind(decision, generation, absent)
        return False
    what = f"did not join generation {generation.number} within {limit:g} s"
    if len(absent) == len(generation.members):
        absent = _not_waiting(decision, generation)
    _break_up(decision, generation, absent, what, since)
    return True


def _remind(decision: Decision, generation: Generation, absent: list[Member]) -> None:
    """Tell the generation once more to those who have not joined it; to be told twice does no harm."""
    memory, began = decision.state.memory, generation.began_at or generation.created_at
    if decision.at - max(memory.reminded_at, began, memory.started_at) < decision.policy.remind_seconds:
        return
    memory.reminded_at = decision.at
    for node in dict.fromkeys(node_of(each.trainer) for each in absent):
        if decision.state.views[node].connected:
            generations.assign(decision, node, generation)


def _stall(decision: Decision) -> bool:
    """Everybody looks alive and nothing goes on.

    Who waits for nobody is stuck, or computes a step that is longer than any before. It is given up for it where that
    costs no committed step, and the next time twice as long is waited: a long step is committed in the end.
    """
    state, policy = decision.state, decision.policy
    generation = state.generation
    if generation is None or not roster.all_joined(state) or state.memory.ended:
        return False
    usual = median(state.memory.step_seconds) if state.memory.step_seconds else 0.0
    limit = max(patience.stall_seconds(decision), policy.usual_steps_of_a_stall * usual)
    limit *= 2.0 ** min(state.memory.stalls, policy.stall_doublings)
    since = max(state.memory.progress_at, state.memory.started_at)
    if decision.at - since < limit:
        return False
    statuses = [roster.status_of(state, each.trainer) for each in generation.members]
    if any(status is not None and status.phase is TrainerPhase.FINISHED for status in statuses):
        return False
    what, busy = f"made no progress for {decision.at - since:.1f} s", _not_waiting(decision, generation)
    if not busy:
        _break_up(decision, generation, busy, what, since)
        return True
    state.memory.stalls += 1
    culprits = _dispensable(generation, busy) if len(busy) < len(generation.members) else []
    if culprits:
        _break_up(decision, generation, culprits, what, since)
        return True
    names = listed(each.trainer for each in busy)
    why = f"{names}, for whom the others wait, cannot be restarted: the last replica of something would go"
    if len(busy) == len(generation.members):
        why = "all of them compute"
    members, first = listed(each.trainer for each in generation.members), generation.members[0].trainer
    # Not `timed_out`: the next limit is twice as long, so the same answer is worth another try.
    _answer_nobody_lost(decision, first, f"{members} {what}, and {why}", since)
    return True


def _not_waiting(decision: Decision, generation: Generation) -> list[Member]:
    """Those whom the others wait for: a stuck member is the one that does not wait itself."""
    busy = []
    for member in generation.members:
        status = roster.status_of(decision.state, member.trainer)
        if status is not None and not status.waiting:
            busy.append(member)
    return busy


def _break_up(
    decision: Decision,
    generation: Generation,
    culprits: list[Member],
    what: str,
    since: float,
) -> None:
    """End a generation that does not get on: without its culprits, or with the same members if it has none."""
    if 0 < len(culprits) < len(generation.members):
        how = f"{what} while the others wait for it, and is restarted"
        losses = [_hung(decision, member, how, since) for member in culprits]
        membership.settle(decision, losses, {member.trainer for member in culprits})
        return
    names = listed(member.trainer for member in generation.members)
    first = generation.members[0].trainer
    cause = f"{names} {what}, and nobody stands out"
    _answer_nobody_lost(decision, first, cause, since, timed_out=True)


def _dispensable(generation: Generation, culprits: list[Member]) -> list[Member]:
    """Those of them, by rank, without whom every expert has a replica and every stage a member: a restart of others
    would cost committed steps, where to wait for them again costs time."""
    numbers = {member.stage for member in generation.members}
    needed = {frozenset(ranks) for ranks in generation.placement}
    needed |= {
        frozenset(each.rank for each in generation.members if each.stage == stage) for stage in numbers
    }
    chosen: list[Member] = []
    gone: set[int] = set()
    for member in culprits:
        if all(each - gone - {member.rank} for each in needed):
            chosen.append(member)
            gone.add(member.rank)
    return chosen


def _hung(decision: Decision, member: Member, how: str, since: float) -> Loss:
    membership.restart(decision, member.trainer, member.start, how)
    return Loss(
        kind=IncidentKind.TRAINER_HUNG,
        node=node_of(member.trainer),
        trainers=(member.trainer,),
        cause=f"{member.trainer} {how}",
        first_sign_at=since,
    )


def _answer_nobody_lost(
    decision: Decision, by: TrainerId, cause: str, since: float, *, timed_out: bool = False
) -> None:
    loss = Loss(
        kind=IncidentKind.COMMUNICATION,
        node=node_of(by),
        trainers=(),
        cause=cause,
        first_sign_at=since,
        timed_out=timed_out,
    )
    recovery.answer(decision, [loss])


def _planned(decision: Decision) -> None:
    """A planned generation that nobody enters takes over at once."""
    state = decision.state
    if state.planned is None:
        return
    waited = decision.at - max(state.planned.created_at, state.memory.started_at)
    if waited >= decision.policy.planned_seconds:
        recovery.hasten_planned(decision, f"no boundary was reached within {waited:.0f} s")


def _acquisitions(decision: Decision) -> None:
    """Copies that take too long count as failed."""
    limit = decision.policy.acquire_seconds
    slow = [
        each
        for each in decision.state.acquisitions.values()
        if not each.caught_up and decision.at - each.begun_at >= limit
    ]
    for acquisition in slow:
        repair.count_failure(decision, acquisition.trainer)
    if slow:
        names = listed(each.trainer for each in slow)
        repair.drop(decision, f"{names} did not catch up within {limit:g} s ({count(len(slow), 'copy')})")
