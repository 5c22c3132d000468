"""From failures to generations: the action ladder, as ordered rules of which the first that fits is taken.

A `Loss` says what is gone and how we know. All losses of one event are answered by one generation. The rules read a
`Situation` and return an `Answer` with its reason and what else was possible; `answer` carries it out. Nothing moves
in an answer to a loss: dead replicas leave the placement, backups lead, work is dealt anew. New replicas and seats
come later, in the background (`repair.py`), and so does the end of the incident.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.core import checkpoints, generations, incidents, jobs, placement, restore, roster
from orchestrator.core.decision import Decision
from orchestrator.core.generations import Plan
from orchestrator.core.ids import NodeId, Rank, Step, TrainerId
from orchestrator.core.lifecycle import JobTrigger
from orchestrator.core.placement import Placement
from orchestrator.core.state import (
    FIRST_STATE,
    Checkpoint,
    Generation,
    GenerationKind,
    IncidentKind,
    Member,
    NodeState,
)
from orchestrator.core.words import count, experts, listed, trainers


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What is gone: members (none for a failure that takes nobody), and how we know."""

    kind: IncidentKind
    node: NodeId
    trainers: tuple[TrainerId, ...]
    cause: str
    first_sign_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What the rules look at."""

    generation: Generation
    survivors: tuple[Member, ...]
    lost: tuple[Member, ...]
    placement: Placement
    """Of the survivors, with their new ranks."""
    free: tuple[Member, ...]
    starting: tuple[TrainerId, ...]
    """Trainers that will be free soon."""
    committed: Step
    checkpoint: Checkpoint | None
    must_restore: str
    """Why the state that the members hold is of no use; empty if it is."""
    idle_generations: int
    idle_limit: int
    seats: int
    microbatches: int

    @property
    def lost_experts(self) -> tuple[int, ...]:
        """Experts whose last replica is gone."""
        return placement.lost_experts(self.placement)

    @property
    def restore_step(self) -> Step:
        return self.checkpoint.step if self.checkpoint else FIRST_STATE

    @property
    def restore_text(self) -> str:
        """What a restore would go back to."""
        return self.checkpoint.name if self.checkpoint else "the seed state (no checkpoint is sealed)"

    @property
    def steps_lost(self) -> int:
        """By a restore."""
        return max(0, self.committed - self.restore_step)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What to do; `kind` None ends the job."""

    action: str
    kind: GenerationKind | None
    members: tuple[Member, ...] = ()
    placement: Placement = ()
    reason: str
    alternative: str


Rule = Callable[[Situation], Answer | None]


def give_up(situation: Situation) -> Answer | None:
    """Break the circuit: generation after generation without a committed step."""
    if situation.idle_generations < situation.idle_limit:
        return None
    return Answer(
        action="stop with a reason",
        kind=None,
        reason=f"{situation.idle_generations} generations in a row committed no step (the limit for this job is "
        f"{situation.idle_limit})",
        alternative="another generation would be tried without a sign that it could do better",
    )


def wait_for_nodes(situation: Situation) -> Answer | None:
    """Nobody is left to train."""
    if situation.survivors or situation.free:
        return None
    return Answer(
        action="wait for nodes",
        kind=GenerationKind.IMMEDIATE,
        placement=tuple(() for _ in situation.placement),
        reason="no trainer is left: lost nodes are started again, and training goes on from "
        f"{situation.restore_text} as soon as trainers are ready",
        alternative="nothing: every seat is empty and no spare is ready",
    )


def go_back(situation: Situation) -> Answer | None:
    """The last replica of something is gone, or what the members hold is of no use."""
    lost = situation.lost_experts
    if situation.must_restore:
        why = situation.must_restore
        alternative = "going on would train on a state that is not sound"
    elif not situation.survivors:
        why = "every member is gone, and the weights with them"
        alternative = "nothing: no living trainer holds any part of the state"
    elif lost:
        why = f"{experts(lost)} lost the last replica"
        alternative = f"a failover is not possible without a living replica of {experts(lost)}"
    else:
        return None
    members = (*situation.survivors, *situation.free)[: situation.seats]
    return Answer(
        action="restore from checkpoint" if situation.checkpoint else "start again from the seed state",
        kind=GenerationKind.RESTORE,
        members=members,
        reason=f"{why}: back to {situation.restore_text} with {count(len(members), 'trainer')}, "
        f"{count(situation.steps_lost, 'committed step')} lost",
        alternative=alternative,
    )


def rebuild(situation: Situation) -> Answer | None:
    """Everybody is there, only the connections are broken."""
    if situation.lost:
        return None
    return Answer(
        action="rebuild groups",
        kind=GenerationKind.IMMEDIATE,
        members=situation.survivors,
        placement=situation.placement,
        reason=f"all members are there ({len(situation.survivors)}): they build their groups anew, nothing moves "
        "and no step is rolled back",
        alternative="to give a member up would cost its replicas, and none looks dead",
    )


def fail_over(situation: Situation) -> Answer | None:
    """Backups play on: the survivors hold everything."""
    old = situation.generation.placement
    ranks = {member.rank for member in situation.lost}
    held = [expert for expert, holders in enumerate(old) if ranks.intersection(holders)]
    thin = [expert for expert, holders in enumerate(situation.placement) if len(holders) == 1]
    if situation.free:
        spare = f"spare {situation.free[0].trainer} is ready and takes a seat once it has copied its state"
    elif situation.starting:
        spare = f"{listed(situation.starting)} will be seated once ready"
    else:
        spare = "no spare is ready: the survivors share the work, and copy replicas from each other where they can"
    return Answer(
        action="fail over to backups",
        kind=GenerationKind.IMMEDIATE,
        members=situation.survivors,
        placement=situation.placement,
        reason=f"every expert has a living replica ({len(held)} had one on {trainers(situation.lost)}; "
        f"{len(thin)} are down to one): {count(situation.microbatches, 'microbatch')} are dealt to "
        f"{count(len(situation.survivors), 'survivor')}, no step is rolled back; {spare}",
        alternative=f"a restore from {situation.restore_text} would lose "
        f"{count(situation.steps_lost, 'committed step')}",
    )


LADDER: tuple[Rule, ...] = (give_up, wait_for_nodes, go_back, rebuild, fail_over)
"""First match wins; the last one always fits."""


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
    gone = {trainer for loss in losses for trainer in loss.trainers}
    situation = assess(decision, generation, gone, must_restore or _half_restored(decision, generation))
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
    _carry_out(decision, chosen, cause)


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
    _carry_out(decision, chosen, why)


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
    _carry_out(decision, chosen, why)


def end_waiting(decision: Decision) -> None:
    """Nobody was left to train: begin again once trainers are ready, or stop after `start_seconds`."""
    state, policy = decision.state, decision.policy
    since = state.memory.waiting_since
    assert since is not None
    waited = decision.at - since
    free, seats = roster.free(state, policy), roster.seats(decision.job.spec.cluster)
    late = waited >= policy.start_seconds
    if free and (late or len(free) >= seats or (not roster.starting(state) and not _requested(decision))):
        first = incidents.first_open(state)
        reason = f"ready after a wait of {waited:.1f} s: {len(free[:seats])} of {count(seats, 'trainer')}"
        decision.say(reason, first.id if first else None)
        restore.from_storage(decision, free[:seats], reason, incident=first.id if first else None)
    elif not late:
        jobs.revive_nodes(decision, "is started again, since nobody is left to train")
    else:
        jobs.fail(
            decision, f"no trainer came back within {policy.start_seconds:g} s after the last one was lost"
        )


def assess(
    decision: Decision, generation: Generation, gone: set[TrainerId], must_restore: str = ""
) -> Situation:
    """The facts that the ladder looks at."""
    state, spec = decision.state, decision.job.spec
    survivors = tuple(each for each in generation.members if each.trainer not in gone)
    new_rank = {each.rank: Rank(rank) for rank, each in enumerate(survivors)}
    return Situation(
        generation=generation,
        survivors=survivors,
        lost=tuple(each for each in generation.members if each.trainer in gone),
        placement=placement.remove(generation.placement, new_rank),
        free=tuple(each for each in roster.free(state, decision.policy) if each.trainer not in gone),
        starting=roster.starting(state, gone),
        committed=state.committed,
        checkpoint=checkpoints.newest(state),
        must_restore=must_restore,
        idle_generations=state.memory.generations_without_commit,
        idle_limit=decision.policy.idle_generations_of(spec.cluster.nodes),
        seats=roster.seats(spec.cluster),
        microbatches=spec.batch.microbatches,
    )


def _carry_out(decision: Decision, chosen: Answer, cause: str) -> None:
    """Send the generation of an answer, and what goes with it."""
    assert chosen.kind is not None
    reason = f"{chosen.action}: {cause}"
    decision.move_job(JobTrigger.BREAK, reason)
    first = incidents.first_open(decision.state)
    incident = first.id if first else None
    if chosen.kind is GenerationKind.RESTORE:
        restore.from_storage(decision, chosen.members, reason, incident=incident)
    else:
        plan = Plan(
            kind=chosen.kind,
            members=chosen.members,
            placement=chosen.placement,
            reason=reason,
            incident=incident,
        )
        generations.begin(decision, plan)
    checkpoints.interrupt(decision, "its generation ended before all shards were written")


def _requested(decision: Decision) -> bool:
    """Nodes have been asked for and have not been heard of yet."""
    return any(node.state is NodeState.REQUESTED for node in decision.state.nodes.values())
