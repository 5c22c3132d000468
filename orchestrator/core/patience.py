"""How long to wait before somebody is given up: time-outs from what was observed, shorter than the job's, and nested.

With `timeouts.mode: auto` three limits follow the job. A trainer may be silent for a few times the longest silence of
any trainer of late, a node for a few times the longest gap between heartbeats, and without progress go as many usual
steps as are plainly too many (median and median absolute deviation, which one slow step does not move), or a few times
the longest pause. What the job
gives in `timeouts` stands until enough steps of a generation are committed, and is never exceeded, so the derived ones
are at most as long; floors keep them apart in the order in which the given ones must nest (`spec_rules.py`). The hang
limit is told to the agents, for this generation only. Next: `limits.py`, which waits; `observed.py`, what is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from orchestrator.core import roster
from orchestrator.core.actions import SetTimeouts
from orchestrator.core.decision import Decision
from orchestrator.core.ids import GenerationNumber, NodeId
from orchestrator.core.observed import Limits
from orchestrator.core.policy import Policy
from orchestrator.core.spec import TimeoutMode, TimeoutSpec
from orchestrator.core.state import ClusterState, JobState
from orchestrator.core.words import lasting

DEVIATION_OF_MAD = 1.4826
"""The standard deviation of a normal distribution over its median absolute deviation."""


def usual_step_seconds(steps: Sequence[float], deviations: float) -> float:
    """What a step may take and still be a usual one: the median, and so many robust standard deviations."""
    if not steps:
        return 0.0
    middle = median(steps)
    return middle + deviations * DEVIATION_OF_MAD * median(abs(each - middle) for each in steps)


def choose(
    given: TimeoutSpec,
    policy: Policy,
    *,
    generation: GenerationNumber,
    silence_seconds: float,
    gap_seconds: float,
    pause_seconds: float,
    steps: Sequence[float],
) -> Limits:
    """The limits of a generation, from the longest silence of a trainer, the longest gap between the heartbeats of a
    node, the longest pause of all members together, and the seconds of its last steps."""
    factor = policy.patience_factor
    silence = silence_seconds + given.heartbeat_seconds  # heard of only in the next heartbeat
    gap = max(gap_seconds, given.heartbeat_seconds)
    hang = min(given.hang_seconds, max(policy.shortest_hang_seconds, factor * silence))
    lease = min(given.lease_seconds, max(policy.shortest_lease_seconds, factor * gap))
    step = usual_step_seconds(steps, policy.step_deviations)
    apart = factor * max(hang, lease, pause_seconds)
    stall = min(
        given.stall_seconds,
        max(policy.shortest_stall_seconds, policy.usual_steps_of_a_stall * step, apart),
    )
    why = (
        f"time-outs of generation {generation} follow what was observed: a trainer is hung after {lasting(hang)} "
        f"without a sign of life (the longest silence of late was {lasting(silence)}), a node is lost after "
        f"{lasting(lease)} without a heartbeat (the longest gap was {lasting(gap)}), and nothing goes on after "
        f"{lasting(stall)} without progress (a step takes up to {lasting(step)}, the longest pause was "
        f"{lasting(pause_seconds)}); the job allows {lasting(given.hang_seconds)}, {lasting(given.lease_seconds)} and "
        f"{lasting(given.stall_seconds)}"
    )
    return Limits(generation=generation, hang_seconds=hang, lease_seconds=lease, stall_seconds=stall, why=why)


# ---- in force ----


def in_force(state: ClusterState) -> Limits | None:
    """Derived limits that count now: in their own generation, while it commits steps."""
    limits, generation, job = state.memory.limits, state.generation, state.job
    if limits is None or generation is None or job is None or job.state is not JobState.RUNNING:
        return None
    return limits if limits.generation == generation.number else None


def lease_seconds(decision: Decision) -> float:
    limits = in_force(decision.state)
    return decision.policy.lease_seconds if limits is None else limits.lease_seconds


def stall_seconds(decision: Decision) -> float:
    limits = in_force(decision.state)
    return decision.policy.stall_seconds if limits is None else limits.stall_seconds


def hang_words(decision: Decision) -> str:
    """The limit that a silent trainer has passed, where it is not the job's."""
    limits = in_force(decision.state)
    if limits is None or limits.hang_seconds >= decision.policy.hang_seconds:
        return ""
    return f" (the limit is {lasting(limits.hang_seconds)}, from what was observed)"


# ---- deciding ----


def look(decision: Decision) -> None:
    """Derive the limits once there is enough to go by, and again where they have changed. Called by a timer."""
    state, memory, policy = decision.state, decision.state.memory, decision.policy
    generation, given = state.generation, decision.job.spec.timeouts
    if generation is None or not roster.all_joined(state):
        return
    _warn_of_long_steps(decision)
    if given.mode is TimeoutMode.FIXED:
        return
    most = max(map(len, memory.work_seconds.values()), default=0)
    if min(most, len(memory.step_seconds)) < policy.steps_to_go_by:
        return
    limits = choose(
        given,
        policy,
        generation=generation.number,
        silence_seconds=memory.silences.seconds,
        gap_seconds=memory.gaps.seconds,
        pause_seconds=memory.pauses.seconds,
        steps=memory.step_seconds,
    )
    last = memory.limits
    if last is not None and last.generation == limits.generation and not _differ(last, limits, policy):
        return
    if last is None or _differ(last, limits, policy):
        decision.say(limits.why)
    memory.limits = limits
    memory.leases_from = 0.0  # worked out with the lease of before
    for node in roster.connected(state):
        tell(decision, node)


def _warn_of_long_steps(decision: Decision) -> None:
    """A job nests when it is submitted; whether its collectives outlast its steps only the steps tell."""
    memory, policy, given = decision.state.memory, decision.policy, decision.job.spec.timeouts
    step = usual_step_seconds(memory.step_seconds, policy.step_deviations)
    needed = policy.collective_steps * step
    if len(memory.step_seconds) < policy.steps_to_go_by:
        return
    if needed <= given.collective_seconds or step < policy.noticeable_change * memory.long_step_said:
        return
    memory.long_step_said = step
    decision.say(
        f"a step takes up to {lasting(step)}, and timeouts.collective_seconds is {given.collective_seconds:g}: it "
        f"should be {needed:.0f} or more, or the others may give a collective up while a member computes the share of "
        "two, again and again; go on with that, and with timeouts.regroup_seconds above it"
    )


def _differ(last: Limits, new: Limits, policy: Policy) -> bool:
    """Enough to say it and to tell it; a limit that must grow grows as soon."""
    pairs = (
        (last.hang_seconds, new.hang_seconds),
        (last.lease_seconds, new.lease_seconds),
        (last.stall_seconds, new.stall_seconds),
    )
    factor = policy.noticeable_change
    return any(not before / factor < after < before * factor for before, after in pairs)


def tell(decision: Decision, node: NodeId) -> None:
    """Tell an agent the hang limit of the generation in force; without one it goes by the job's."""
    limits = in_force(decision.state)
    if limits is not None:
        decision.act(
            SetTimeouts(
                id=decision.action_id(),
                generation=limits.generation,
                node=node,
                hang_seconds=limits.hang_seconds,
            )
        )
