"""Who makes the others wait: scored by robust statistics, named when it lasts, replaced when a pair check agrees.

In a synchronous step everybody is as slow as the slowest, so step times say nothing. Each trainer measures its own
work: the time of a step that it did not spend waiting for others. The work of a step is not dealt evenly, so what
counts is the time per fair share of it. Members of a pipeline are compared within their stage: another stage has other
layers, and may take longer for good reasons. A member's **score** is the median member's time over its own, at most 1:
half as fast is 0.5. A straggler is below `recovery.straggler_score` and stands out by the median absolute deviation
(Iglewicz and Hoaglin 1993), which one slow trainer cannot distort.

Of the two members of a stage one is always the slower. How much slower tells something where several stages have two:
the ratios of all pairs are compared like times, and a pair that stands out names its slower member. A pair that has no
other beside it names its slower one where a pair check would call such a difference slow. Either is a suspicion and no
more: of two the other one may be fast. The check with a spare, the third opinion, comes before anything else.

One that stays a straggler for `recovery.straggler_seconds` is checked against the spare that would take its seat
(`pairs.py`). If it is slow there too, its node is put into quarantine and `repair.py` seats the spare at a boundary, as
in a drain: nothing is lost, and nothing happens where no spare could take the seat. Next: `heartbeats.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from orchestrator.core import health, incidents, placement, quarantine, roster
from orchestrator.core.decision import Decision, in_order
from orchestrator.core.ids import NodeId, TrainerId, node_of
from orchestrator.core.pair_verdict import Finding, Verdict
from orchestrator.core.state import ClusterState, Generation, IncidentKind, Member, NodeState
from orchestrator.core.words import listed

MEMBERS_TO_COMPARE = 3
"""Of a stage. With fewer there is no telling who of them is the odd one."""
PAIR = 2
"""Members of a stage whose difference is compared with that of other pairs."""
DEVIATION_OF_MAD = 1.4826
"""The standard deviation of a normal distribution over its median absolute deviation."""
LEAST_DEVIATION = 0.02
"""Times closer than this share of the median are the same."""
LEAST_SHARE = 0.25
"""Of a fair share of work: who has less than this is not called fast for it."""
STEPS_TO_JUDGE = 5
"""Steps of a generation before its members are compared."""
REST_FACTOR = 10.0
"""A straggler that a pair check found sound is left alone for so many times `straggler_seconds`."""
CHECKS_AT_MOST = 6
"""Pair checks of the stragglers of a node within `recovery.window_seconds`, whatever they find."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What makes a straggler."""

    limit: float
    """A score below it."""
    deviations: float
    """So many robust standard deviations above the median."""
    ratio: float
    """How many times as long a pair check lets somebody take; less is no reason for a check where there is one pair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A member among the members. Seconds are of its own work in a step, per fair share."""

    trainer: TrainerId
    seconds: float
    score: float
    straggles: bool
    usual_seconds: float
    """Of the one that it is compared with."""
    usual: str = "the median member"
    """Who that is."""
    doubt: str = ""
    """What the comparison cannot tell."""

    def __str__(self) -> str:
        return (
            f"{self.trainer} has score {self.score:.2f}: it works {self.seconds:.3f} s in a step, {self.usual} "
            f"{self.usual_seconds:.3f} s for as much, and the others wait for it{self.doubt}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The two members of a stage."""

    slower: TrainerId
    faster: TrainerId
    slower_seconds: float
    """Per fair share, as `faster_seconds`."""
    faster_seconds: float
    ratio: float
    """How many times as long the slower one works, at least 1."""


def beyond(values: Sequence[float], deviations: float) -> tuple[float, float]:
    """The median, and the value above which one stands out."""
    middle = median(values)
    spread = DEVIATION_OF_MAD * median(abs(each - middle) for each in values)
    return middle, middle + deviations * max(spread, LEAST_DEVIATION * middle)


def score(work_seconds: Mapping[TrainerId, float], rules: Rules) -> tuple[Standing, ...]:
    """The members by name, from the seconds that each works per fair share; empty where there are too few."""
    if len(work_seconds) < MEMBERS_TO_COMPARE:
        return ()
    middle, limit = beyond(tuple(work_seconds.values()), rules.deviations)
    found = []
    for trainer in sorted(work_seconds, key=in_order):
        seconds = work_seconds[trainer]
        speed = min(1.0, middle / seconds) if seconds > 0.0 else 1.0
        found.append(
            Standing(
                trainer=trainer,
                seconds=seconds,
                score=speed,
                straggles=speed < rules.limit and seconds > limit,
                usual_seconds=middle,
            )
        )
    return tuple(found)


def pair_of(
    peers: Sequence[Member], work_seconds: Mapping[TrainerId, float], portions: Mapping[TrainerId, float]
) -> Pair:
    """Two members, by what each works per fair share.

    Work has a fixed part, so that who has less to do needs longer per share. Who is slow takes longer both ways: for
    as much, and in all; the ratio is the smaller one of these two.
    """
    faster, slower = sorted(
        (each.trainer for each in peers),
        key=lambda each: (work_seconds[each] / portions[each], in_order(each)),
    )
    per_share = {each: work_seconds[each] / portions[each] for each in (slower, faster)}
    ways = [times[slower] / times[faster] for times in (per_share, work_seconds) if times[faster] > 0.0] or [
        1.0
    ]
    return Pair(
        slower=slower,
        faster=faster,
        slower_seconds=per_share[slower],
        faster_seconds=per_share[faster],
        ratio=max(1.0, min(ways)),
    )


def score_pairs(pairs: Sequence[Pair], rules: Rules) -> tuple[Standing, ...]:
    """The members of all stages of two, from how much the slower one of each differs from the faster one.

    The ratios of all pairs are compared, and with them once the 1 of two that are alike, so that two pairs are enough.
    (With a 1 for every faster member the slower ones could never be usual, though they were most of the pairs.)
    """
    if not pairs:
        return ()
    usual, limit = beyond([1.0, *(each.ratio for each in pairs)], rules.deviations)
    if len(pairs) == 1:
        usual, limit = 1.0, rules.ratio
    found = []
    for pair in pairs:
        speed = min(1.0, usual / pair.ratio)
        doubt = f" (or {pair.faster} is fast: of two, only a pair check with a spare can tell)"
        faster = Standing(
            trainer=pair.faster,
            seconds=pair.faster_seconds,
            score=1.0,
            straggles=False,
            usual_seconds=pair.slower_seconds,
            usual=f"{pair.slower} beside it",
        )
        slower = Standing(
            trainer=pair.slower,
            seconds=pair.slower_seconds,
            score=speed,
            straggles=speed < rules.limit and pair.ratio > limit,
            usual_seconds=pair.faster_seconds,
            usual=f"{pair.faster} beside it",
            doubt=doubt if len(pairs) == 1 else f"; the usual ratio in {len(pairs)} pairs is {usual:.2f}",
        )
        found += [faster, slower]
    return tuple(sorted(found, key=lambda each: in_order(each.trainer)))


def compared(
    generation: Generation,
    work_seconds: Mapping[TrainerId, float],
    portions: Mapping[TrainerId, float],
    rules: Rules,
) -> tuple[Standing, ...]:
    """The members of each stage beside each other: `score`, stage by stage, and `score_pairs` for those of two.

    `work_seconds` of all members in a step, `portions` their shares of their stage's work.
    """
    found: list[Standing] = []
    pairs: list[Pair] = []
    for peers in _stages(generation):
        if len(peers) == PAIR:
            pairs.append(pair_of(peers, work_seconds, portions))
        else:
            found += score(
                {each.trainer: work_seconds[each.trainer] / portions[each.trainer] for each in peers}, rules
            )
    return (*found, *score_pairs(pairs, rules))


def shares(generation: Generation, expert_load: Sequence[int]) -> dict[TrainerId, float]:
    """Each member's share of its stage's work in a step, 1.0 being fair: of microbatches or of tokens, whichever is
    more."""
    world = len(generation.members)
    microbatches = [float(len(indices)) for indices in generation.deal]
    tokens = [0.0] * world
    if len(expert_load) == len(generation.placement) and any(expert_load):
        tokens = list(placement.load_by_rank(generation.placement, world, expert_load))
    found = {}
    for peers in _stages(generation):
        a_microbatch, a_token = _fair(microbatches, peers), _fair(tokens, peers)
        for member in peers:
            dealt, routed = microbatches[member.rank] * a_microbatch, tokens[member.rank] * a_token
            found[member.trainer] = max(dealt, routed, LEAST_SHARE)
    return found


def _stages(generation: Generation) -> list[list[Member]]:
    """The members by stage; one list where there is no pipeline."""
    numbers = sorted({member.stage for member in generation.members})
    return [[member for member in generation.members if member.stage == number] for number in numbers]


def _fair(amounts: Sequence[float], peers: Sequence[Member]) -> float:
    """What makes shares out of amounts: 1.0 is what each of the peers would have of an even total."""
    total = sum(amounts[each.rank] for each in peers)
    return len(peers) / total if total else 0.0


def look(decision: Decision) -> None:
    """Score the members, and name stragglers when they change. Called by a timer."""
    state, memory = decision.state, decision.state.memory
    generation = state.generation
    if generation is None or not roster.all_joined(state):
        return
    found = _standings(decision, generation)
    memory.scores = {each.trainer: each.score for each in found}
    if not found:
        return  # too few members, or too few steps since they changed: what was known stands
    slow = {each.trainer: each for each in found if each.straggles}
    names = tuple(slow)
    for trainer in names:
        if trainer not in memory.stragglers:
            memory.straggling_since[trainer] = decision.at
            decision.say(str(slow[trainer]))
    recovered = [trainer for trainer in memory.stragglers if trainer not in names]
    for trainer in recovered:
        memory.straggling_since.pop(trainer, None)
        memory.slow_checks.pop(node_of(trainer), None)
    if recovered:
        decision.say(f"{listed(recovered)} does not make the others wait any more")
    memory.stragglers = names
    memory.straggler_words = {trainer: str(standing) for trainer, standing in slow.items()}


def _standings(decision: Decision, generation: Generation) -> tuple[Standing, ...]:
    """All members, once there are enough steps of each to judge by."""
    samples, recovery = decision.state.memory.work_seconds, decision.job.spec.recovery
    members = [each.trainer for each in generation.members]
    if any(len(samples.get(each, ())) < STEPS_TO_JUDGE for each in members):
        return ()
    return compared(
        generation,
        {each: median(samples[each]) for each in members},
        shares(generation, decision.state.memory.expert_load),
        Rules(
            limit=recovery.straggler_score,
            deviations=decision.policy.straggler_deviations,
            ratio=recovery.pair_check_ratio,
        ),
    )


def persistent(decision: Decision) -> tuple[TrainerId, ...]:
    """Stragglers that have been slow for long enough, and that a spare could replace."""
    state, memory = decision.state, decision.state.memory
    if not memory.stragglers or not roster.all_joined(state) or state.planned is not None:
        return ()
    if memory.repair is not None or not roster.free(state, decision.policy):
        return ()
    patience = decision.job.spec.recovery.straggler_seconds
    return tuple(
        trainer
        for trainer in memory.stragglers
        if decision.at - memory.straggling_since.get(trainer, decision.at) >= patience
        and decision.at >= memory.straggler_rest.get(trainer, 0.0)
        and len(_checks(decision, node_of(trainer))) < CHECKS_AT_MOST
        and state.nodes[node_of(trainer)].state is NodeState.ACTIVE
    )


def confirmed(decision: Decision, trainer: TrainerId, verdict: Verdict) -> None:
    """A pair check of a straggler has ended with a verdict on it."""
    node = node_of(trainer)
    if verdict.finding not in (Finding.SLOW, Finding.UNSOUND):
        left_alone(decision, trainer, "a pair check found nothing wrong with it")
        return
    if not roster.members_on(decision.state.generation, node) or health.kept_out(decision.state, node):
        return
    words = decision.state.memory.straggler_words.get(trainer, f"{trainer} makes the others wait")
    cause = f"{words}; pair checks confirm it: {verdict.text}"
    incident = incidents.open_incident(
        decision, kind=IncidentKind.STRAGGLER, node=node, cause=cause, first_sign_at=decision.at
    )
    incidents.explain(
        decision,
        incident.id,
        "instead: going on as it is would keep every step at the pace of the slowest; giving the node up at once would "
        "redo a step and leave its experts with one replica less",
    )
    quarantine.begin(decision, node, "it is slow", incident.id)


def check_begins(decision: Decision, node: NodeId) -> None:
    """A pair check of a straggler of this node: it counts, whatever comes of it."""
    decision.state.memory.straggler_checks[node] = (*_checks(decision, node), decision.at)


def _checks(decision: Decision, node: NodeId) -> tuple[float, ...]:
    """When stragglers of this node were checked within the window."""
    moments = decision.state.memory.straggler_checks.get(node, ())
    return health.recent(moments, decision.at, decision.job.spec.recovery.window_seconds)


def left_alone(decision: Decision, trainer: TrainerId, why: str) -> None:
    """It is slow where it sits, and not for a reason that another seat would cure."""
    recovery, checks = decision.job.spec.recovery, _checks(decision, node_of(trainer))
    rest = REST_FACTOR * recovery.straggler_seconds
    if len(checks) >= CHECKS_AT_MOST:
        rest = max(rest, checks[0] + recovery.window_seconds - decision.at)
        why = f"{why}, and {len(checks)} checks within {recovery.window_seconds:g} s are enough"
    decision.state.memory.straggler_rest[trainer] = decision.at + rest
    decision.say(f"{trainer} keeps its seat: {why}; it is not checked again for {rest:g} s")


def swapped(state: ClusterState, free: int, vacant: int) -> frozenset[NodeId]:
    """Nodes in quarantine that still have seats, as far as spares are left for them beyond the empty seats."""
    spare = free - max(0, vacant)
    leaving: set[NodeId] = set()
    generation = state.generation
    kept_out = {node for node in state.health if health.kept_out(state, node)}
    if generation is None or not kept_out:
        return frozenset()
    for node in dict.fromkeys(each for each in roster.nodes_by_rank(generation) if each in kept_out):
        seats = len(roster.members_on(generation, node))
        if seats <= spare:
            leaving.add(node)
            spare -= seats
    return frozenset(leaving)
