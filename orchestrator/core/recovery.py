"""From failures to generations: assess the situation, take the first rung of the ladder that fits, carry it out.

A `Loss` says what is gone and how we know. All losses of one event are answered by one generation, whose reason is
stored with their incidents. New replicas and seats come later, in the background (`repair.py`), and so does the end of
the incident. Next: `ladder.py`, the rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.core import (
    breaker,
    checkpoints,
    generations,
    incidents,
    jobs,
    placement,
    quarantine,
    restarts,
    restore,
    revival,
    roster,
    tiers,
)
from orchestrator.core.decision import Decision
from orchestrator.core.escalation import Effort
from orchestrator.core.generations import Plan
from orchestrator.core.ids import NodeId, Rank, TrainerId, node_of
from orchestrator.core.ladder import LADDER, Answer, Situation
from orchestrator.core.lifecycle import JobTrigger
from orchestrator.core.state import (
    ClusterState,
    Generation,
    GenerationKind,
    IncidentKind,
    NodeState,
    Rung,
)
from orchestrator.core.words import count


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What is gone: members (none for a failure that takes nobody), and how we know."""

    kind: IncidentKind
    node: NodeId
    trainers: tuple[TrainerId, ...]
    cause: str
    first_sign_at: float
    timed_out: bool = False
    """The generation in force ran into a limit: the answer that made it was in vain."""


def answer(decision: Decision, losses: Sequence[Loss], *, must_restore: str = "") -> None:
    """Record every loss and answer them all with one generation."""
    generation = decision.state.generation
    assert losses and generation is not None
    opened = [
        incidents.open_incident(
            decision, kind=loss.kind, node=loss.node, cause=loss.cause, first_sign_at=loss.first_sign_at
        ).id
        for loss in losses
    ]
    for loss in losses:
        if loss.kind is not IncidentKind.NODE_LOST:
            for member in generation.members:
                if member.trainer in loss.trainers:
                    quarantine.trainer_failed(decision, member.trainer, member.start)
    gone = {trainer for loss in losses for trainer in loss.trainers}
    situation = assess(decision, generation, gone, must_restore or _half_restored(decision, generation))
    situation = replace(situation, timed_out=any(loss.timed_out for loss in losses))
    chosen = next(found for rule in LADDER if (found := rule(situation)) is not None)
    for incident in opened:
        incidents.explain(decision, incident, f"{chosen.action}: {chosen.reason}")
        incidents.explain(decision, incident, f"instead: {chosen.alternative}")
    if chosen.kind is None:
        jobs.fail(decision, chosen.reason)
        return
    for incident in opened:
        incidents.decided(decision, incident, action=chosen.action, number=decision.next_number())
    cause = "; ".join(loss.cause for loss in losses)
    blamed = situation.lost or chosen.rung is Rung.ORDINARY
    effort = situation.effort if blamed else situation.effort.after(chosen.rung)
    _carry_out(decision, chosen, cause, effort)


def _half_restored(decision: Decision, generation: Generation) -> str:
    """A restore that not all members are known to have finished: some hold the old state, some the restored one."""
    from_storage = generation.kind in (GenerationKind.INITIAL, GenerationKind.RESTORE)
    has_committed = decision.state.committed > generation.restore_step
    if not from_storage or has_committed or roster.all_joined(decision.state):
        return ""
    return f"generation {generation.number} had not been entered by all, so its members may hold different states"


def overtake_planned(decision: Decision, why: str) -> None:
    """A planned generation will not come about as it is: the members that are in force go on without it."""
    generation = decision.state.generation
    assert generation is not None and decision.state.planned is not None
    decision.say(
        f"{why}: planned generation {decision.state.planned.number} is dropped, its members go on as before"
    )
    chosen = Answer(
        action="rebuild groups",
        kind=GenerationKind.IMMEDIATE,
        members=generation.members,
        placement=generation.placement,
        reason=why,
        alternative="",
    )
    _carry_out(decision, chosen, why, Effort(rung=generation.rung, tries=generation.tries))


def hasten_planned(decision: Decision, why: str) -> None:
    """A planned generation is not entered at a boundary: it takes over now, under a new number."""
    planned = decision.state.planned
    assert planned is not None
    decision.say(f"{why}: its members are seated at once")
    chosen = Answer(
        action="rebuild groups",
        kind=GenerationKind.IMMEDIATE,
        members=planned.members,
        placement=planned.placement,
        reason=why,
        alternative="",
    )
    _carry_out(decision, chosen, why, Effort(rung=planned.rung, tries=planned.tries))


def end_waiting(decision: Decision) -> None:
    """Nobody was left to train: begin again once trainers are ready, or stop after `start_seconds`."""
    state, policy = decision.state, decision.policy
    since = state.memory.waiting_since
    assert since is not None
    waited = decision.at - since
    patience = state.memory.wait_seconds
    overdue, late = waited >= policy.start_seconds, waited >= (patience or policy.start_seconds)
    seats = roster.seats(decision.job.spec.cluster)
    nobody_else = patience is None and not roster.starting(state) and not _requested(decision)
    free = roster.free(state, policy)
    if not free and (overdue or nobody_else):
        free = roster.free(state, policy, doubtful=True)
    free = roster.spread(state, free)
    enough = len(free) >= decision.job.spec.pipeline.stages
    if free and enough and (late or len(free) >= seats or nobody_else):
        first = incidents.first_open(state)
        reason = f"ready after a wait of {waited:.1f} s: {len(free[:seats])} of {count(seats, 'trainer')}"
        decision.say(reason, first.id if first else None)
        for node in dict.fromkeys(node_of(each.trainer) for each in free[:seats]):
            quarantine.end(decision, node, "nobody else is left, and a doubtful node is better than none")
        generation = state.generation
        assert generation is not None
        effort = Effort(rung=generation.rung, tries=generation.tries)
        restore.from_storage(
            decision, free[:seats], reason, incident=first.id if first else None, effort=effort
        )
    elif not overdue:
        revival.revive(decision, "is started again, since nobody is left to train")
    else:
        jobs.fail(
            decision, f"no trainer came back within {policy.start_seconds:g} s after the last one was lost"
        )


def assess(
    decision: Decision, generation: Generation, gone: set[TrainerId], must_restore: str = ""
) -> Situation:
    """The facts that the ladder looks at."""
    state, spec = decision.state, decision.job.spec
    circuit = breaker.broken(state, decision.at)
    survivors = tuple(each for each in generation.members if each.trainer not in gone)
    lost = tuple(each for each in generation.members if each.trainer in gone)
    new_rank = {each.rank: Rank(rank) for rank, each in enumerate(survivors)}
    free, starting = roster.unseated(state, decision.policy, gone)
    return Situation(
        generation=generation,
        survivors=survivors,
        lost=lost,
        placement=placement.remove(generation.placement, new_rank),
        free=roster.spread(state, free, survivors),
        starting=starting,
        committed=state.committed,
        saved=tiers.newest(state),
        must_restore=must_restore,
        idle_generations=state.memory.generations_without_commit,
        idle_limit=decision.policy.idle_generations_of(spec.cluster.nodes),
        seats=roster.seats(spec.cluster),
        microbatches=spec.batch.microbatches,
        stages=spec.pipeline.stages,
        effort=_effort(decision, generation),
        suspicion=() if lost else _suspicion(state, generation),
        circuit=circuit,
        circuit_seconds=circuit.until - decision.at if circuit else 0.0,
    )


def _effort(decision: Decision, generation: Generation) -> Effort:
    """What was tried since the last committed step: stored with the generation that tried it."""
    if not decision.state.memory.generations_without_commit:
        return Effort()
    return Effort(rung=generation.rung, tries=generation.tries)


def _suspicion(state: ClusterState, generation: Generation) -> tuple[Rank, ...]:
    """All ranks: those whose node has failed most often of late first, then the ones that joined last."""
    failures = {node: len(record.losses) for node, record in state.health.items() if record.losses}
    nodes = roster.nodes_by_rank(generation)
    blamed = [Rank(rank) for rank, node in enumerate(nodes) if node in failures]
    blamed.sort(key=lambda rank: (-failures[nodes[rank]], -rank))
    others = (Rank(rank) for rank in range(len(nodes) - 1, -1, -1) if nodes[rank] not in failures)
    return (*blamed, *others)


def _carry_out(decision: Decision, chosen: Answer, cause: str, effort: Effort) -> None:
    """Send the generation of an answer, and what goes with it."""
    assert chosen.kind is not None
    reason = f"{chosen.action}: {cause}"
    decision.move_job(JobTrigger.BREAK, reason)
    first = incidents.first_open(decision.state)
    incident = first.id if first else None
    if chosen.kind is GenerationKind.RESTORE:
        restore.from_storage(decision, chosen.members, reason, incident=incident, effort=effort)
    else:
        plan = Plan(
            kind=chosen.kind,
            members=chosen.members,
            placement=chosen.placement,
            reason=reason,
            incident=incident,
            effort=effort,
        )
        generations.begin(decision, plan)
        decision.state.memory.wait_seconds = chosen.wait_seconds
    for member in chosen.afresh:
        # After the generation, which ends most of them already: who has no seat in it makes way for a fresh process.
        restarts.order(decision, member.trainer, member.start, "has no seat any more and is started afresh")
    checkpoints.interrupt(decision, "its generation ended before all shards were written")


def _requested(decision: Decision) -> bool:
    """Nodes have been asked for and have not been heard of yet."""
    return any(node.state is NodeState.REQUESTED for node in decision.state.nodes.values())
