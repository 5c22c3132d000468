"""The action ladder: ordered rules over the facts of a failure, of which the first that fits gives the answer.

Pure: a `Situation` in, an `Answer` with its reason and what else was possible out. Nothing moves in an answer to a
loss: dead replicas leave the placement, backups lead, work is dealt anew. What comes after answers in vain is decided
by `escalation.py`, patience with many losses at once by `breaker.py`. Next: `recovery.py`, which assesses the situation
and carries the answer out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.core import placement
from orchestrator.core.breaker import Broken
from orchestrator.core.escalation import NOTHING_TRIED, Effort, Next, next_rung, spared
from orchestrator.core.ids import Rank, Step, TrainerId, node_of
from orchestrator.core.placement import Placement
from orchestrator.core.state import FIRST_STATE, Generation, GenerationKind, Member, Rung
from orchestrator.core.tiers import Saved, Tier
from orchestrator.core.words import count, experts, listed, trainers


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
    saved: Saved | None
    """What a restore would go back to; None for the seed state."""
    must_restore: str
    """Why the state that the members hold is of no use; empty if it is."""
    idle_generations: int
    idle_limit: int
    seats: int
    microbatches: int
    stages: int = 1
    effort: Effort = NOTHING_TRIED
    """What was tried since the last committed step."""
    timed_out: bool = False
    suspicion: tuple[Rank, ...] = ()
    """All ranks, the most suspect first; nobody is suspected where members are lost."""
    circuit: Broken | None = None
    circuit_seconds: float = 0.0
    """How long it stays broken at most."""

    @property
    def parted(self) -> tuple[Rank, ...]:
        """Ranks that can be started afresh while the others hold everything; none where their state is of no use."""
        if self.lost or self.must_restore:
            return ()
        nodes = [node_of(each.trainer) for each in self.generation.members]
        return spared(self.generation.placement, nodes, self.suspicion)

    @property
    def lost_experts(self) -> tuple[int, ...]:
        """Experts whose last replica is gone."""
        return placement.lost_experts(self.placement)

    @property
    def restore_step(self) -> Step:
        return self.saved.step if self.saved else FIRST_STATE

    @property
    def restore_text(self) -> str:
        """What a restore would go back to."""
        return str(self.saved) if self.saved else "the seed state (no checkpoint is sealed)"

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
    rung: Rung = Rung.ORDINARY
    afresh: tuple[Member, ...] = ()
    """Members whose processes are ended and started again."""
    wait_seconds: float | None = None
    """For an answer without members: how long nodes may take to come back; None for the limit of a start."""


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


_IN_WORDS = {
    Rung.ORDINARY: "nothing",
    Rung.REBUILD: "building groups anew",
    Rung.PART: "restarting a part of the trainers",
    Rung.ALL: "restarting all trainers",
}


def climb(situation: Situation) -> Answer | None:
    """Nobody is lost, and the answers so far were in vain."""
    if situation.lost:
        return None
    effort, parted = situation.effort, situation.parted
    vain = (
        f"{_IN_WORDS[effort.rung]} was tried {count(effort.tries, 'time')} and no step was committed since"
        f"{', the last time up to its limit' if situation.timed_out else ''}"
    )
    if situation.must_restore and not situation.timed_out:
        return None
    match next_rung(effort, timed_out=situation.timed_out, can_part=bool(parted)):
        case Next.REBUILD:
            return None
        case Next.PART:
            return _restart_part(situation, vain)
        case Next.ALL:
            return Answer(
                action="restart all trainers",
                kind=GenerationKind.IMMEDIATE,
                placement=tuple(() for _ in situation.placement),
                reason=f"{vain}: all {len(situation.survivors)} trainers are started afresh and go on from "
                f"{situation.restore_text}, {count(situation.steps_lost, 'committed step')} lost",
                alternative="the same processes have had their chances, and a restart in place cures most of what is "
                "stuck in one",
                rung=Rung.ALL,
                afresh=situation.survivors,
            )
        case Next.STOP:
            return Answer(
                action="stop with a reason",
                kind=None,
                reason=f"{vain}: there is no rung above it",
                alternative="every rung of the ladder was tried",
            )


def _restart_part(situation: Situation, vain: str) -> Answer:
    """Some of the trainers are started afresh, and nothing is lost by it."""
    parted = situation.parted
    others = tuple(each for each in situation.survivors if each.rank not in parted)
    new_rank = {each.rank: Rank(rank) for rank, each in enumerate(others)}
    afresh = tuple(each for each in situation.survivors if each.rank in parted)
    return Answer(
        action="restart a part of the trainers",
        kind=GenerationKind.IMMEDIATE,
        members=others,
        placement=placement.remove(situation.generation.placement, new_rank),
        reason=f"{vain}: {trainers(afresh)} {'are' if len(afresh) > 1 else 'is'} started afresh, since "
        f"{trainers(others)} hold every expert; no step is rolled back",
        alternative=f"a restart of all trainers would go back to {situation.restore_text}",
        rung=Rung.PART,
        afresh=afresh,
    )


def wait_out(situation: Situation) -> Answer | None:
    """The circuit is broken, and those who are left cannot go on without a loss that patience may save."""
    circuit, lost = situation.circuit, situation.lost_experts
    if circuit is None or not (lost or situation.must_restore):
        return None
    missing = f"{experts(lost)} lost the last replica" if lost else situation.must_restore
    return Answer(
        action="break the circuit: wait for nodes",
        kind=GenerationKind.IMMEDIATE,
        placement=tuple(() for _ in situation.placement),
        reason=f"{circuit}; {missing}: nodes have {situation.circuit_seconds:.0f} s to come back, then training goes "
        f"on from {situation.restore_text} with what is there",
        alternative=f"a restore at once would begin with {count(len(situation.survivors), 'trainer')} and move all",
        afresh=situation.survivors,
        wait_seconds=situation.circuit_seconds,
    )


_RESTORES = {Tier.MEMORY: "restore from host memory", Tier.STORAGE: "restore from checkpoint"}


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
    if len(members) < situation.stages:
        return Answer(
            action="wait for nodes",
            kind=GenerationKind.IMMEDIATE,
            placement=tuple(() for _ in situation.placement),
            reason=f"{why}, and {count(len(members), 'trainer')} cannot fill {situation.stages} stages: training goes "
            f"on from {situation.restore_text} as soon as enough are ready",
            alternative="nothing: a stage without a trainer computes nothing",
            afresh=situation.survivors,
        )
    return Answer(
        action=_RESTORES[situation.saved.tier] if situation.saved else "start again from the seed state",
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
        rung=Rung.REBUILD,
    )


def _takers(situation: Situation) -> str:
    """Who computes what the lost ones computed: in a pipeline the others of their stages."""
    if situation.stages == 1:
        return count(len(situation.survivors), "survivor")
    found = []
    for stage in sorted({each.stage for each in situation.lost}):
        left = [each for each in situation.survivors if each.stage == stage]
        found.append(f"{count(len(left), 'survivor')} of stage {stage}")
    return " and ".join(found)


def fail_over(situation: Situation) -> Answer | None:
    """Backups play on: the survivors hold everything."""
    old = situation.generation.placement
    ranks = {member.rank for member in situation.lost}
    held = [expert for expert, holders in enumerate(old) if ranks.intersection(holders)]
    thin = [expert for expert, holders in enumerate(situation.placement) if len(holders) == 1]
    if situation.circuit is not None:
        spare = (
            f"{situation.circuit}: the circuit is broken, no seat is given and nothing is copied for up to "
            f"{situation.circuit_seconds:.0f} s while nodes may come back"
        )
    elif situation.free:
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
        f"{_takers(situation)}, no step is rolled back; {spare}",
        alternative=f"a restore from {situation.restore_text} would lose "
        f"{count(situation.steps_lost, 'committed step')}",
    )


LADDER: tuple[Rule, ...] = (give_up, wait_for_nodes, climb, wait_out, go_back, rebuild, fail_over)
"""First match wins; the last one always fits."""
