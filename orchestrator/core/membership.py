"""Who is alive: registrations, heartbeats, broken streams, trainers that come, go or fall silent.

Heartbeats only refresh the views; rows change when a node changes its state. What is done about a loss is decided in
`recovery.py`; time limits run out in `limits.py`.

A node is **fenced** when it comes back after it was given up: its trainers hold a state of the past, and are ended
before it can be a spare. A broken stream alone kills nobody: it becomes a loss together with a communication failure
(its peers noticed too), or when the lease runs out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.core import (
    generations,
    greeting,
    heartbeats,
    incidents,
    jobs,
    patience,
    quarantine,
    recovery,
    repair,
    restarts,
    revival,
    roster,
)
from orchestrator.core.decision import Decision
from orchestrator.core.events import (
    CommunicationFailed,
    HeartbeatReceived,
    NodeDisconnected,
    NodeEnded,
    NodeRegistered,
    NodeRemarked,
    TrainerBecameReady,
    TrainerExited,
    TrainerFellSilent,
    TrainerPhase,
    TrainerRefused,
    TrainerStatus,
)
from orchestrator.core.ids import NodeId, TrainerId, node_of, trainer_id
from orchestrator.core.lifecycle import NodeTrigger
from orchestrator.core.recovery import Loss
from orchestrator.core.state import Blame, IncidentKind, JobState, Member, Node, NodeState, NodeView

POD_LABEL = "pod"
"""The label by which an agent says which of the processes of its node it is, where a cluster numbers them."""
HEARD_OF = (NodeState.SPARE, NodeState.ACTIVE, NodeState.DRAINING, NodeState.SUSPECT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """A node that is given up."""

    node: NodeId
    cause: str
    first_sign_at: float


def registered(decision: Decision, event: NodeRegistered) -> None:
    """An agent opened its stream: for the first time, again, or as a new process on an old node."""
    state = decision.state
    known = state.nodes.get(event.node)
    anew = known is not None and known.incarnation not in ("", event.incarnation)
    departures = []
    if anew and known is not None and known.state in HEARD_OF:
        view = state.views.get(event.node)
        seen = min(view.last_seen, decision.at) if view is not None else decision.at
        cause = f"{event.node}: its agent was replaced by a new process"
        departures = [Departure(node=event.node, cause=cause, first_sign_at=seen)]
    losses, gone = give_up_nodes(decision, departures)
    fence = greeting.reason_to_fence(decision, event)
    _enter(decision, event, anew=anew)
    greeting.greet(decision, event, fence)
    settle(decision, losses, gone)
    if not fence:
        heartbeats.infer(decision, event.trainers, ())
        greeting.repeat_orders(decision, event.node)


def heartbeat(decision: Decision, event: HeartbeatReceived) -> None:
    """An agent is alive. Nothing is stored unless that is news."""
    state = decision.state
    node, view = state.nodes.get(event.node), state.views.get(event.node)
    decision.stirred = False
    if node is None or view is None or node.incarnation != event.incarnation:
        return
    before = tuple(view.trainers.values())
    if view.connected and node.state in HEARD_OF:
        state.memory.gaps.note(decision.at, decision.at - view.last_seen)
    view.last_seen = decision.at
    view.connected = True
    view.trainers = {status.trainer: status for status in event.trainers}
    if node.state in (NodeState.DEAD, NodeState.REQUESTED):
        reason = f"{event.node} was given up and is heard of again"
        decision.move_node(event.node, NodeTrigger.REGISTER, reason)
        greeting.fence(decision, event.node, reason)
        greeting.send_generations(decision, event.node)
        decision.stirred = True
        return
    if node.state is NodeState.SUSPECT:
        come_back(decision, event.node, "its heartbeat is back")
        # What it makes possible is seen by the next sweep: after a hiccup of ours thousands come back one by one.
        state.memory.resting = False
    heartbeats.infer(decision, event.trainers, before)
    replaced = _vanished(decision, event.node, event.trainers, before)
    if replaced:
        settle(decision, replaced, {trainer for loss in replaced for trainer in loss.trainers})
        decision.stirred = True


def disconnected(decision: Decision, event: NodeDisconnected) -> None:
    """A stream broke: a sign, and a loss if members have lost touch with a peer as well."""
    state = decision.state
    node = state.nodes.get(event.node)
    if node is None or node.incarnation != event.incarnation or node.state not in HEARD_OF:
        return
    state.views[event.node].connected = False
    # The next sweep sees what follows besides, once for the thousands of streams that a broken network may end.
    decision.stirred = state.memory.resting = False
    if node.state is not NodeState.SUSPECT:
        decision.move_node(event.node, NodeTrigger.SUSPECT, f"its stream broke: {event.reason}")
    decision.say(f"{event.node} is suspect: its stream broke ({event.reason})")
    if state.memory.blame is not None:
        decision.stirred = True
        lose_unreachable(decision)


def ended(decision: Decision, event: NodeEnded) -> None:
    """The cluster knows that the process of a node is gone: no lease has to run out, and no peer has to notice."""
    node = decision.state.nodes.get(event.node)
    if node is None:
        return
    if node.state is NodeState.REQUESTED:
        revival.give_up_start(decision, event.node, event.reason)
    elif node.state in HEARD_OF and dict(node.labels).get(POD_LABEL) == event.pod:
        view = decision.state.views[event.node]
        departure = Departure(
            node=event.node,
            cause=f"{event.node} is lost: {event.reason}",
            first_sign_at=min(view.last_seen, decision.at),
        )
        settle(decision, *give_up_nodes(decision, [departure]))


def remarked(decision: Decision, event: NodeRemarked) -> None:
    """Something to know about a node; where it is asked for, that is why it is not there yet."""
    node = decision.state.nodes.get(event.node)
    decision.stirred = False
    if node is None:
        return
    decision.say(f"{event.node}: {event.remark}")
    if node.state is NodeState.REQUESTED:
        decision.put(replace(node, reason=event.remark))


def communication_failed(decision: Decision, event: CommunicationFailed) -> None:
    """A member lost touch with a peer: look for one that is gone, or give the cause time to show itself."""
    generations.observe(decision, event.trainer, event.generation)
    state = decision.state
    generation = state.generation
    if generation is not None and event.generation < generation.number:
        incidents.known_since(decision, event.generation, event.happened_at)
    if (
        generation is None
        or event.generation != generation.number
        or not roster.is_member(generation, event.trainer, event.start)
    ):
        return
    if state.memory.blame is None:
        state.memory.blame = Blame(
            generation=generation.number,
            reporters=(),
            detail=event.detail,
            at=decision.at,
            since=event.happened_at,
        )
        decision.say(f"{event.trainer} lost touch with a peer after step {event.step}: {event.detail}")
    blame = state.memory.blame
    state.memory.blame = replace(blame, reporters=(*blame.reporters, event.trainer))
    lose_unreachable(decision)


def trainer_exited(decision: Decision, event: TrainerExited) -> None:
    """The process of a trainer ended."""
    if not _speaks_for_its_node(decision, event.trainer, event.incarnation):
        return
    view = decision.state.views[node_of(event.trainer)]
    status = view.trainers.get(event.trainer)
    if status is not None and status.start <= event.start:
        if event.will_restart:
            view.trainers[event.trainer] = replace(status, ready=False, phase=TrainerPhase.STARTING)
        else:
            del view.trainers[event.trainer]
    how = f"was ended by signal {event.signal}" if event.signal else f"exited with code {event.exit_code}"
    then = "is started again" if event.will_restart else "is not started again: its restarts are used up"
    cause = f"{how} and {then}"
    _lose_trainer(decision, event.trainer, event.start, IncidentKind.TRAINER_LOST, cause, event.happened_at)


def trainer_fell_silent(decision: Decision, event: TrainerFellSilent) -> None:
    """A trainer process is stopped or stuck: a fresh one takes its place, as a spare."""
    if not _speaks_for_its_node(decision, event.trainer, event.incarnation):
        return
    if event.start <= decision.state.memory.fenced_starts.get(event.trainer, 0):
        return
    limit = patience.hang_words(decision)
    how = f"gave no sign of life for {event.silent_seconds:.1f} s{limit} and is restarted"
    restart(decision, event.trainer, event.start, how)
    sign = event.happened_at - event.silent_seconds
    _lose_trainer(decision, event.trainer, event.start, IncidentKind.TRAINER_HUNG, how, sign)


def trainer_became_ready(decision: Decision, event: TrainerBecameReady) -> None:
    """A trainer waits for a seat."""
    if not _speaks_for_its_node(decision, event.trainer, event.incarnation):
        return
    node = node_of(event.trainer)
    trainers = decision.state.views[node].trainers
    trainers[event.trainer] = event.status
    heartbeats.heed_silence(decision, event.status)
    # An agent ends fenced processes before it says this, and keeps those that never had a seat.
    decision.state.memory.fenced_starts.pop(event.trainer, None)
    statuses = tuple(trainers.values())
    losses = _vanished(decision, node, statuses, statuses)
    settle(decision, losses, {trainer for loss in losses for trainer in loss.trainers})


def trainer_refused(decision: Decision, event: TrainerRefused) -> None:
    """A trainer cannot run this job, and trying again would not help."""
    if not _speaks_for_its_node(decision, event.trainer, event.incarnation):
        return
    decision.state.memory.refused[event.trainer] = event.reason
    if decision.job.state is JobState.PENDING:
        decision.say(f"{event.trainer} cannot run this job: {event.reason}")
        jobs.cannot_start(decision, event.trainer, event.reason)
        return
    how = f"cannot run this job: {event.reason}"
    _lose_trainer(decision, event.trainer, event.start, IncidentKind.TRAINER_LOST, how)


def come_back(decision: Decision, node: NodeId, reason: str) -> None:
    """A suspect node is heard of again; it is what it was before."""
    decision.move_node(node, NodeTrigger.RETURN, reason)
    if roster.members_on(decision.state.generation, node):
        decision.move_node(node, NodeTrigger.SEAT, reason)
        if incidents.open_drain(decision.state, node) is not None:
            decision.move_node(node, NodeTrigger.DRAIN, reason)
    decision.say(f"{node} is not suspect any more: {reason}")


def lose_unreachable(decision: Decision) -> None:
    """Members have lost touch with a peer: nodes with members whose stream is broken are the cause."""
    state, blame = decision.state, decision.state.memory.blame
    assert blame is not None and state.generation is not None
    cut_off = [
        node
        for node in dict.fromkeys(roster.nodes_by_rank(state.generation))
        if state.nodes[node].state is NodeState.SUSPECT
        and not state.views[node].connected
        and any(node_of(reporter) != node for reporter in blame.reporters)
    ]
    departures = [
        Departure(
            node=node,
            cause=f"{node} is lost: its stream broke and {_other(blame.reporters, node)} lost touch with a peer",
            first_sign_at=min(state.views[node].last_seen, blame.since),
        )
        for node in cut_off
    ]
    settle(decision, *give_up_nodes(decision, departures))


def give_up_nodes(decision: Decision, departures: Sequence[Departure]) -> tuple[list[Loss], set[TrainerId]]:
    """Declare nodes dead. What the members among their trainers mean is for `settle`."""
    state, losses, gone = decision.state, [], set()
    for departure in departures:
        view = state.views[departure.node]
        members = roster.members_on(state.generation, departure.node)
        # Also those that a restarted controller knows from a generation alone, because their agent has not spoken yet.
        newcomers = roster.members_on(state.planned, departure.node)
        gone |= {*view.trainers, *(member.trainer for member in (*members, *newcomers))}
        view.connected = False
        view.trainers = {}
        decision.move_node(departure.node, NodeTrigger.LOSE, departure.cause)
        if members and decision.works():
            losses.append(
                Loss(
                    kind=IncidentKind.NODE_LOST,
                    node=departure.node,
                    trainers=tuple(member.trainer for member in members),
                    cause=departure.cause,
                    first_sign_at=departure.first_sign_at,
                )
            )
        else:
            decision.say(f"{departure.cause}; it had no seat")
        quarantine.failed(decision, departure.node)
    return losses, gone


def settle(decision: Decision, losses: Sequence[Loss], gone: set[TrainerId]) -> None:
    """Answer the losses of members; what else is gone may end a planned generation or the copies under way."""
    state = decision.state
    if losses:
        recovery.answer(decision, losses)
    elif state.planned is not None and gone.intersection(each.trainer for each in state.planned.members):
        recovery.overtake_planned(decision, "a newcomer is gone before it was seated")
    elif gone.intersection(each.trainer for each in state.acquisitions.values()):
        repair.drop(decision, "a trainer that was copying state is gone")


def restart(decision: Decision, trainer: TrainerId, start: int, reason: str) -> None:
    """Have a process of a trainer ended, and let nothing that it still says make it ready. It has failed."""
    quarantine.trainer_failed(decision, trainer, start)
    restarts.order(decision, trainer, start, reason)


def _other(reporters: Sequence[TrainerId], node: NodeId) -> TrainerId:
    """A witness from another node."""
    return next(reporter for reporter in reporters if node_of(reporter) != node)


def _enter(decision: Decision, event: NodeRegistered, *, anew: bool) -> None:
    """Write down who has registered."""
    state = decision.state
    node = state.nodes.get(event.node) or Node(
        id=event.node,
        state=NodeState.REQUESTED,
        cordoned=False,
        incarnation="",
        labels=(),
        agent_pid=0,
        reason="",
        changed_at=decision.at,
    )
    if node.labels != event.labels:
        state.memory.domains = None
    written = replace(node, incarnation=event.incarnation, labels=event.labels, agent_pid=event.agent_pid)
    if written != state.nodes.get(event.node):
        decision.put(written)
    statuses = {status.trainer: status for status in event.trainers}
    view = state.views.get(event.node)
    if not anew and (view is None or not view.trainers):
        _count_from_here(decision, event.trainers)
    state.views[event.node] = NodeView(
        connected=True,
        last_seen=decision.at,
        trainers=statuses,
        memory_address=event.memory_address,
        held=event.held,
    )
    generations.take_note(decision, event.generation)
    if anew:
        memory = state.memory
        for book in (memory.fenced_starts, memory.failed_starts, memory.refused, memory.acquire_failures):
            for trainer in [each for each in book if node_of(each) == event.node]:
                del book[trainer]
    if node.state in (NodeState.REQUESTED, NodeState.DEAD):
        decision.move_node(event.node, NodeTrigger.REGISTER, "its agent registered")
        decision.say(f"{event.node} registered (agent {event.agent_pid})")
    elif node.state is NodeState.SUSPECT:
        come_back(decision, event.node, "its agent registered again")


def _count_from_here(decision: Decision, statuses: Sequence[TrainerStatus]) -> None:
    """Ends of processes that an agent tells again to a new controller: those without a seat were counted before.

    A member's was not: the generation would be another one.
    """
    for status in statuses:
        seat = roster.seat(decision.state, status.trainer)
        first = min(seat.start, status.start) if seat is not None else status.start
        decision.state.memory.failed_starts.setdefault(status.trainer, first - 1)


def _lose_trainer(
    decision: Decision,
    trainer: TrainerId,
    start: int,
    kind: IncidentKind,
    how: str,
    first_sign_at: float | None = None,
) -> None:
    """One process of a trainer is gone, member or not."""
    sign = decision.at if first_sign_at is None else first_sign_at
    cause = f"{trainer} {how}"
    if roster.is_member(decision.state.generation, trainer, start):
        node = node_of(trainer)
        loss = Loss(kind=kind, node=node, trainers=(trainer,), cause=cause, first_sign_at=sign)
        settle(decision, [loss], {trainer})
        return
    decision.say(f"{cause}; it had no seat")
    quarantine.trainer_failed(decision, trainer, start)
    seated = roster.is_member(decision.state.planned, trainer, start)
    copying = any(
        (each.trainer, each.start) == (trainer, start) for each in decision.state.acquisitions.values()
    )
    settle(decision, (), {trainer} if seated or copying else set())


def _vanished(
    decision: Decision, node: NodeId, statuses: Sequence[TrainerStatus], before: Sequence[TrainerStatus]
) -> list[Loss]:
    """Members whose process is not there any more, though its end was not reported, or the report was lost."""
    now = {status.trainer: status for status in statuses}
    last = {status.trainer: status for status in before}
    losses = []
    for device in range(decision.job.spec.cluster.devices_per_node):
        trainer = trainer_id(node, device)
        seat = roster.seat(decision.state, trainer)
        if seat is None:
            continue
        status, previous = now.get(trainer), last.get(trainer)
        if status is not None and status.start > seat.start:
            how = f"was replaced by a new process (start {status.start})"
        elif not _stands(seat, status) and not _stands(seat, previous):
            how = "has no process any more, as its agent shows"
        else:
            continue
        losses.append(
            Loss(
                kind=IncidentKind.TRAINER_LOST,
                node=node,
                trainers=(trainer,),
                cause=f"{trainer} {how}",
                first_sign_at=decision.at,
            )
        )
    return losses


def _stands(seat: Member, status: TrainerStatus | None) -> bool:
    """The process that has the seat is there and can work."""
    return status is not None and status.ready and status.start == seat.start


def _speaks_for_its_node(decision: Decision, trainer: TrainerId, incarnation: str) -> bool:
    """The agent that says so is the one that we know, and was not given up."""
    node = decision.state.nodes.get(node_of(trainer))
    return node is not None and node.incarnation == incarnation and node.state in HEARD_OF
