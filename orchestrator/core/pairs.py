"""Pair checks: who must prove himself, with whom, and what follows.

A candidate is a node in quarantine whose time is over, or a member that looks slow. Its partner is a trainer that is
known to be good: a spare if there is one, else a member, which takes part at its next step boundary and nowhere else.
Both do the same small work against each other (`worker/training/pair_check.py`); the verdict is in `pair_verdict.py`.
A check that proves nothing is made again, a bounded number of times.

Level-triggered: a restarted controller knows who is in quarantine, and begins the checks anew.
"""

from __future__ import annotations

from orchestrator.core import health, quarantine, roster, stragglers
from orchestrator.core.actions import CheckPair
from orchestrator.core.decision import Decision, in_order, natural
from orchestrator.core.events import PairChecked, TrainerStatus
from orchestrator.core.ids import NodeId, TrainerId, node_of
from orchestrator.core.pair_verdict import Finding, Verdict, judge
from orchestrator.core.state import ClusterState, JobState, PairCheck, PairPurpose


def advance(decision: Decision) -> None:
    """End checks that take too long, and begin those that are due and can be made now."""
    state = decision.state
    for check in tuple(state.memory.checks.values()):
        if (
            decision.at - check.begun_at
            >= decision.policy.check_seconds + decision.policy.check_margin_seconds
        ):
            _conclude(decision, check)
    if decision.job.state not in (JobState.RUNNING, JobState.RECOVERING):
        return
    for node, purpose in _candidates(decision):
        if node not in {node_of(each.candidate) for each in state.memory.checks.values()}:
            _begin(decision, node, purpose)


def reported(decision: Decision, event: PairChecked) -> None:
    """One of a pair tells how it went."""
    check = decision.state.memory.checks.get(event.check)
    if check is None or (event.trainer, event.start) not in check.starts:
        return
    check.reports[event.trainer] = event
    if len(check.reports) == len(check.starts):
        _conclude(decision, check)


def _candidates(decision: Decision) -> list[tuple[NodeId, PairPurpose]]:
    """Nodes that are to prove themselves, in order, each with the reason."""
    state = decision.state
    due = [
        (node, PairPurpose.READMIT)
        for node in sorted(state.health, key=natural)
        if (until := state.health[node].quarantined_until) is not None
        and node in state.views
        and state.views[node].connected
        and decision.at >= until
        and not state.nodes[node].cordoned
    ]
    due += [
        (node_of(trainer), PairPurpose.CONFIRM_SLOW)
        for trainer in stragglers.persistent(decision)
        if not health.kept_out(state, node_of(trainer))
    ]
    waits = state.memory.check_not_before
    return [(node, purpose) for node, purpose in due if decision.at >= waits.get(node, 0.0)]


def _begin(decision: Decision, node: NodeId, purpose: PairPurpose) -> None:
    """Have a pair checked, if both can be now."""
    state, memory = decision.state, decision.state.memory
    candidate = _candidate_on(decision, node, purpose)
    if candidate is None:
        return
    partner = _partner_of(decision, node, purpose)
    if partner is None:
        if node not in memory.check_without_partner:
            memory.check_without_partner |= {node}
            decision.say(
                f"{node} waits for its pair check: no known-good trainer on another node is free for it"
            )
        return
    memory.check_without_partner -= {node}
    memory.checks_made += 1
    check = PairCheck(
        id=f"chk-{decision.job.starts}-{memory.checks_made}",
        candidate=candidate.trainer,
        partner=partner.trainer,
        starts=((candidate.trainer, candidate.start), (partner.trainer, partner.start)),
        purpose=purpose,
        begun_at=decision.at,
        same_kind=candidate.device_name == partner.device_name,
    )
    memory.checks[check.id] = check
    if purpose is PairPurpose.CONFIRM_SLOW:
        stragglers.check_begins(decision, node)
    seated = roster.seat(state, partner.trainer) is not None
    how = ", which takes part at a step boundary" if seated else ""
    decision.say(f"pair check {check.id} of {candidate.trainer} with {partner.trainer}{how}: {purpose.value}")
    for rank, status in enumerate((partner, candidate)):
        decision.act(
            CheckPair(
                id=decision.action_id(),
                generation=decision.number,
                node=node_of(status.trainer),
                trainer=status.trainer,
                check=check.id,
                rank=rank,
                store_address=partner.store_address,
                limit_seconds=decision.policy.check_seconds,
            )
        )


def _candidate_on(decision: Decision, node: NodeId, purpose: PairPurpose) -> TrainerStatus | None:
    """The trainer that stands for its node: one without a seat, though others of the node may still have theirs."""
    if purpose is PairPurpose.READMIT:
        return next(iter(_ready_on(decision, node)), None)
    slow = [each for each in stragglers.persistent(decision) if node_of(each) == node]
    return roster.status_of(decision.state, slow[0]) if slow else None


def _ready_on(decision: Decision, node: NodeId) -> list[TrainerStatus]:
    """Trainers of a node that wait for a seat."""
    ready = {each.trainer for each in roster.free(decision.state, decision.policy, doubtful=True)}
    trainers = decision.state.views[node].trainers
    return [trainers[each] for each in sorted(trainers, key=in_order) if each in ready]


def _partner_of(decision: Decision, node: NodeId, purpose: PairPurpose) -> TrainerStatus | None:
    """A known-good trainer: an idle one, or a member that has failed least. A slow member needs the spare itself."""
    state = decision.state
    busy = {name for check in state.memory.checks.values() for name, _ in check.starts}
    busy |= {each.trainer for each in state.acquisitions.values()}
    idle = [
        each.trainer
        for each in roster.free(state, decision.policy)
        if node_of(each.trainer) != node and each.trainer not in busy
    ]
    if idle:
        return roster.status_of(state, idle[0])
    generation = state.generation
    if purpose is PairPurpose.CONFIRM_SLOW or generation is None or not _quiet(state):
        return None
    doubted = set(state.memory.stragglers) | busy
    members = [
        each.trainer
        for each in generation.members
        if node_of(each.trainer) != node
        and each.trainer not in doubted
        and state.views[node_of(each.trainer)].connected
    ]
    members.sort(
        key=lambda each: (
            health.kept_out(state, node_of(each)),
            len(health.of(state, node_of(each)).losses),
        )
    )
    return roster.status_of(state, members[0]) if members else None


def _quiet(state: ClusterState) -> bool:
    """Members are at work and nothing changes: one of them can be asked for a moment at its boundary."""
    return roster.all_joined(state) and state.planned is None and not state.memory.ended


def _conclude(decision: Decision, check: PairCheck) -> None:
    """Judge a check, and do what follows."""
    memory, node = decision.state.memory, node_of(check.candidate)
    del memory.checks[check.id]
    verdict = judge(
        check.reports.get(check.candidate),
        check.reports.get(check.partner),
        ratio=decision.job.spec.recovery.pair_check_ratio,
        same_kind=check.same_kind,
    )
    decision.say(f"pair check {check.id} of {check.candidate} with {check.partner}: {verdict.text}")
    if verdict.finding is Finding.PARTNER_UNSOUND:
        quarantine.begin(decision, node_of(check.partner), f"in a pair check, {verdict.text}")
    if verdict.finding in (Finding.UNKNOWN, Finding.PARTNER_UNSOUND):
        _again(decision, check, verdict)
        return
    memory.check_attempts.pop(node, None)
    if check.purpose is PairPurpose.CONFIRM_SLOW and _once_more(decision, check, verdict):
        return
    if check.purpose is PairPurpose.CONFIRM_SLOW:
        stragglers.confirmed(decision, check.candidate, verdict)
    elif verdict.finding is Finding.SOUND:
        quarantine.end(decision, node, f"its pair check with {check.partner} has passed")
    else:
        quarantine.begin(decision, node, f"its pair check with {check.partner} has failed: {verdict.text}")


def _once_more(decision: Decision, check: PairCheck, verdict: Verdict) -> bool:
    """A member that works is called slow when a second check says so; a wrong answer needs none."""
    memory, node = decision.state.memory, node_of(check.candidate)
    found = memory.slow_checks.pop(node, 0) + 1
    if verdict.finding is not Finding.SLOW or found >= decision.policy.slow_checks:
        return False
    memory.slow_checks[node] = found
    memory.check_not_before[node] = decision.at + decision.policy.check_pause_seconds
    decision.say(f"{check.candidate} is checked once more, since one measurement may have met a busy moment")
    return True


def _again(decision: Decision, check: PairCheck, verdict: Verdict) -> None:
    """A check that proved nothing is made again after a pause, up to a limit."""
    memory, policy, node = decision.state.memory, decision.policy, node_of(check.candidate)
    attempts = memory.check_attempts.get(node, 0) + 1
    memory.check_attempts[node] = attempts
    memory.check_not_before[node] = decision.at + policy.check_pause_seconds
    if attempts >= policy.check_attempts:
        del memory.check_attempts[node]
        if check.purpose is PairPurpose.READMIT:
            quarantine.begin(decision, node, f"{attempts} pair checks in a row proved nothing")
        else:
            stragglers.left_alone(
                decision, check.candidate, f"{attempts} pair checks in a row proved nothing"
            )


def forget(decision: Decision, trainer: TrainerId) -> None:
    """A process of a pair is gone: its check cannot end any more."""
    for check in tuple(decision.state.memory.checks.values()):
        if trainer in (check.candidate, check.partner):
            _conclude(decision, check)
