"""Who makes the others wait, by robust statistics: a sentence for people, and no decision.

In a synchronous step everybody is as slow as the slowest, so step times say nothing. What tells is waiting: the
slow one is busy while the others wait for it. Each heartbeat says whether a trainer waits; the moving average of not
waiting is its busy share. A straggler stands out by the median absolute deviation (Iglewicz and Hoaglin 1993, which
one slow trainer cannot distort) and by a ratio that matters. Next: `heartbeats.py`, which keeps the shares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from orchestrator.core.decision import Decision, in_order
from orchestrator.core.ids import TrainerId
from orchestrator.core.policy import Policy
from orchestrator.core.words import listed

MEMBERS_TO_COMPARE = 3
"""With fewer there is no telling who of them is the odd one."""
DEVIATION_OF_MAD = 1.4826
"""The standard deviation of a normal distribution over its median absolute deviation."""
LEAST_DEVIATION = 0.02
"""Shares closer than this are the same: heartbeats are a coarse measure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Straggler:
    """A member that is busy for much longer than the others."""

    trainer: TrainerId
    busy_share: float
    median_share: float

    def __str__(self) -> str:
        return (
            f"{self.trainer} works in {self.busy_share:.0%} of its time, the median member in "
            f"{self.median_share:.0%}: the others wait for it"
        )


def find(busy_share: Mapping[TrainerId, float], policy: Policy) -> tuple[Straggler, ...]:
    """Members that stand out, in order."""
    if len(busy_share) < MEMBERS_TO_COMPARE:
        return ()
    middle = median(busy_share.values())
    spread = median(abs(share - middle) for share in busy_share.values())
    deviation = max(DEVIATION_OF_MAD * spread, LEAST_DEVIATION)
    limit = max(middle * policy.straggler_ratio, middle + policy.straggler_deviations * deviation)
    return tuple(
        Straggler(trainer=trainer, busy_share=busy_share[trainer], median_share=middle)
        for trainer in sorted(busy_share, key=in_order)
        if busy_share[trainer] > limit
    )


def look(decision: Decision) -> None:
    """Name stragglers when they change."""
    memory = decision.state.memory
    found = find(memory.busy_share, decision.policy)
    names = tuple(straggler.trainer for straggler in found)
    if names == memory.stragglers:
        return
    for straggler in found:
        if straggler.trainer not in memory.stragglers:
            decision.say(str(straggler))
    recovered = [trainer for trainer in memory.stragglers if trainer not in names]
    if recovered:
        decision.say(f"{listed(recovered)} does not make the others wait any more")
    memory.stragglers = names
