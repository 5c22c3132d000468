"""Silent corruption: members have compared their replicas and found them different. What follows.

The step in flight is not committed, so nothing new was made with a wrong replica. Whoever is found wrong
(`testimony.py`) leaves like a lost trainer: its process is ended, the sound replicas play on, and it copies its parts
anew from them, or a spare does. Where nobody can say which replica is right, all go back to the newest checkpoint: it
was compared before it was written, so it is from before the error. A node that is found wrong again is cordoned.

A step that was not finite on one member and sound when it was computed again is the passing error of that member:
nothing is restored, but it counts. Next: `refusals.py`, for what is not finite twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.core import commands, generations, incidents, membership, recovery, roster
from orchestrator.core.decision import Decision
from orchestrator.core.events import DrainRequested, ReplicasDiffered, StepRedone
from orchestrator.core.ids import IncidentId, NodeId, Step, node_of
from orchestrator.core.recovery import Loss
from orchestrator.core.state import Generation, IncidentKind, Member
from orchestrator.core.testimony import Verdict, judge
from orchestrator.core.words import count, listed

OFFENCES = (IncidentKind.CORRUPTION, IncidentKind.NOT_FINITE)
BY = "the controller"
NAMED = " is wrong: "
"""Stands between the node and the reason in the cause of an incident that names it."""


def replicas_differed(decision: Decision, event: ReplicasDiffered) -> None:
    """The first member that says so is answered; the others say the same of a generation that is over then."""
    generations.observe(decision, event.trainer, event.generation)
    generation = decision.state.generation
    if generation is None or generation.number != event.generation:
        return
    if not roster.is_member(generation, event.trainer, event.start):
        return
    by_rank = {member.rank: member for member in generation.members}
    verdict = judge([finding for finding in event.findings if finding.rank in by_rank])
    losses = [
        _loss(decision, by_rank[rank], event.step, why, restart=not verdict.undecided)
        for rank, why in verdict.wrong.items()
    ]
    must_restore = ""
    if verdict.undecided or not losses:
        losses.append(_undecided_loss(decision, event, generation, verdict))
        must_restore = "nobody can say which replica is right"
    repeaters = _cordon_repeaters(decision, [node_of(by_rank[rank].trainer) for rank in verdict.wrong])
    recovery.answer(decision, losses, must_restore=must_restore)
    if not must_restore:
        _say_what_is_kept(decision, event)
    _explain_cordons(decision, event, repeaters)


def step_redone(decision: Decision, event: StepRedone) -> None:
    """All members report the same, and an agent reports again to a controller that was restarted; once is enough."""
    generation, memory = decision.state.generation, decision.state.memory
    if generation is None or generation.number != event.generation or memory.redone_step >= event.step:
        return
    if not roster.is_member(generation, event.trainer, event.start):
        return
    memory.redone_step = event.step
    culprit = next((each for each in generation.members if each.rank == event.rank), None)
    who = culprit.trainer if culprit else "more than one member, or the sum of all,"
    node = node_of(culprit.trainer if culprit else event.trainer)
    begun = event.happened_at - event.seconds
    cause = f"the numbers of {who} were not finite in step {event.step}"
    if culprit:
        cause = f"{node}{NAMED}{cause}, and those of all others were"
    if any(
        (record.kind, record.generation, record.cause) == (IncidentKind.NOT_FINITE, generation.number, cause)
        for record in decision.state.incidents.values()
    ):
        return
    repeaters = _cordon_repeaters(decision, [node] if culprit else [])
    record = incidents.open_incident(
        decision, kind=IncidentKind.NOT_FINITE, node=node, cause=cause, first_sign_at=begun
    )
    text = (
        f"step {event.step} was computed again from the same samples and was sound, so the error did not come from "
        "the state: nothing is restored, and no step is lost"
    )
    incidents.explain(decision, record.id, text)
    incidents.explain(
        decision, record.id, "instead: a restore would lose the steps since the last checkpoint"
    )
    incidents.decided(decision, record.id, action="compute the step again", number=generation.number)
    answered = replace(
        decision.state.incidents[record.id],
        regrouped_at=decision.at,
        first_commit_at=decision.at,
        steps_redone=1,
    )
    decision.put(answered)
    incidents.close(decision, record.id, "every replica is as it was")
    _explain_cordons(decision, event, repeaters)


def _loss(decision: Decision, member: Member, step: Step, why: str, *, restart: bool) -> Loss:
    """A member that is wrong. Its process is ended, unless all go back anyway and overwrite what it holds."""
    node = node_of(member.trainer)
    cause = f"{node}{NAMED}{member.trainer} was compared with the other replicas at step {step}: {why}"
    if restart:
        how = "holds a replica that is not sound, and starts afresh"
        membership.restart(decision, member.trainer, member.start, how)
    return Loss(
        kind=IncidentKind.CORRUPTION,
        node=node,
        trainers=(member.trainer,) if restart else (),
        cause=cause,
        first_sign_at=decision.at,
    )


def _undecided_loss(
    decision: Decision, event: ReplicasDiffered, generation: Generation, verdict: Verdict
) -> Loss:
    """Replicas of which one is wrong, whichever."""
    said = (
        "; ".join(f"{part}: {text}" for part, text in verdict.undecided.items()) or "the findings name nobody"
    )
    ranks = {finding.rank for finding in event.findings if finding.part in verdict.undecided}
    who = [member.trainer for member in generation.members if member.rank in ranks] or [event.trainer]
    return Loss(
        kind=IncidentKind.CORRUPTION,
        node=node_of(who[0]),
        trainers=(),
        cause=f"replicas of {listed(who)} differ at step {event.step}, and no majority says which is right: {said}",
        first_sign_at=decision.at,
    )


def _say_what_is_kept(decision: Decision, event: ReplicasDiffered) -> None:
    """Steps since the last comparison may have been computed with the wrong replica: a person should know."""
    interval = decision.job.spec.integrity.interval_steps
    before = {finding.part for finding in event.findings if not _changed_now(event, finding.part)}
    first = incidents.first_open(decision.state)
    if not before:
        text = "the replica changed within the step that was not committed: no committed step was computed with it"
    elif interval == 1:
        text = "replicas are compared in every step: no committed step was computed with it"
    else:
        text = (
            f"the replica may have been wrong for up to {count(interval, 'step')}, since the last comparison; those "
            "steps are kept, since every sound replica has taken part in them (integrity.interval_steps: 1 compares "
            "in every step)"
        )
    decision.say(text, first.id if first else None)


def _changed_now(event: ReplicasDiffered, part: str) -> bool:
    """Only holders that testify against themselves are different: the error is younger than the step."""
    others = {each.checksum for each in event.findings if each.part == part and not each.changed}
    return len(others) <= 1


def offences(decision: Decision, node: NodeId) -> list[IncidentId]:
    """Incidents that name a node as wrong in its own numbers."""
    return [
        record.id
        for record in incidents.in_order(decision.state)
        if record.kind in OFFENCES and record.node == node and record.cause.startswith(f"{node}{NAMED}")
    ]


def _cordon_repeaters(decision: Decision, wrong: Sequence[NodeId]) -> list[NodeId]:
    """Nodes that are wrong now and were so before get no seat from now on. Before the answer, which seats others."""
    limit = decision.policy.offences
    found = [
        node
        for node in dict.fromkeys(wrong)
        if len(offences(decision, node)) + 1 >= limit and not decision.state.nodes[node].cordoned
    ]
    for node in found:
        commands.set_cordon(decision, node, cordoned=True)
    return found


def _explain_cordons(
    decision: Decision, event: ReplicasDiffered | StepRedone, repeaters: Sequence[NodeId]
) -> None:
    """Once the incidents are there. A seat that such a node still has goes to others at a boundary."""
    for node in repeaters:
        names = offences(decision, node)
        text = (
            f"{node} was found wrong {len(names)} times ({listed(names)}): it is cordoned until somebody has looked "
            f"at it (understudy uncordon {node})"
        )
        incidents.explain(decision, names[-1], text)
        if roster.members_on(decision.state.generation, node):
            order = DrainRequested(at=decision.at, cause_id=event.cause_id, node=node, by=BY)
            commands.drain(decision, order)
