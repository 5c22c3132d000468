"""The downtime that incidents claim, against the one that the ledger shows.

An incident's first four phases follow one another from the first sign to the first commit after it, by the
controller's clock. The ledger is written with the trainers' clocks and knows nothing of incidents; it shows the gap
between the last commit before a failure and the first one after it. The two must agree within `SHARE`, beyond a floor
that has two parts, because the two intervals do not begin and end at the same moments:
- a failure comes somewhere inside a step, and the gap counts that step from its beginning: one step, as long as the
  run's slow ones (the 95th percentile) or its neighbours (a machine that is busy with other work makes slow steps);
- the first sign of a node that falls silent is its last heartbeat, which may be older than the last commit: one
  heartbeat period; and a commit is known to the controller a report later than to its trainer, another one.

Each incident is laid beside the gap that it shares the most time with; those of one gap are one outage. Pure.
Next: `laws.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

from chaos.ledger import Committed
from orchestrator.cli import rows

SHARE = 0.05
HEARTBEAT_SECONDS = 0.2
SLOW_SHARE = 0.95
NEIGHBOURS = 5
Gap: TypeAlias = tuple[float, float]
"""Two commits that follow each other: when they were."""
PHASES = ("detect_seconds", "decide_seconds", "regroup_seconds", "first_commit_seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """From a first sign to the first commit after it, as the incidents say."""

    incidents: tuple[str, ...]
    began_at: float
    ended_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Seconds without a commit, by both clocks."""

    outage: Outage
    claimed: float
    seen: float
    allowed: float

    @property
    def agrees(self) -> bool:
        return abs(self.claimed - self.seen) <= self.allowed

    def __str__(self) -> str:
        return (
            f"{', '.join(self.outage.incidents)}: phases add up to {self.claimed:.3f} s, the ledger shows "
            f"{self.seen:.3f} s without a commit (they may differ by {self.allowed:.3f} s)"
        )


def compare(incidents: Sequence[dict[str, Any]], commits: Sequence[Committed]) -> list[Comparison]:
    """One comparison for each outage. `commits` are all that ever happened, those set aside by a restore too."""
    by_time = sorted(commits, key=lambda each: each.time)
    times = [each.time for each in by_time]
    by_gap: dict[Gap, list[Outage]] = {}
    for outage in outages(incidents):
        gap = _gap_of(outage, times)
        if gap is not None:  # else nothing was committed before the failure: there is no gap to look at
            by_gap.setdefault(gap, []).append(outage)
    found = []
    for gap, together in sorted(by_gap.items()):
        whole = Outage(
            incidents=tuple(name for each in together for name in each.incidents),
            began_at=min(each.began_at for each in together),
            ended_at=max(each.ended_at for each in together),
        )
        seen = gap[1] - gap[0]
        claimed = whole.ended_at - whole.began_at
        allowed = SHARE * seen + _a_step(by_time, gap) + 2 * HEARTBEAT_SECONDS
        found.append(Comparison(outage=whole, claimed=claimed, seen=seen, allowed=allowed))
    return found


def outages(incidents: Sequence[dict[str, Any]]) -> list[Outage]:
    """Of the incidents that stopped training."""
    found = []
    for incident in incidents:
        phases = [incident["phases"][name] for name in PHASES]
        if rows.went_on(incident) or None in phases:
            continue
        began = float(incident["first_sign_at"])
        found.append(Outage(incidents=(incident["id"],), began_at=began, ended_at=began + sum(phases)))
    return found


def _gap_of(outage: Outage, times: Sequence[float]) -> Gap | None:
    """The time between two commits that the outage shares the most with; the first such for one that took no time."""
    gaps = [gap for gap in pairwise(times) if gap[0] <= outage.ended_at and gap[1] >= outage.began_at]
    return max(gaps, key=lambda gap: _shared(outage, gap), default=None)


def _a_step(by_time: Sequence[Committed], gap: Gap) -> float:
    """What a step takes in this run, and about this time."""
    all_of_them = sorted(each.step_seconds for each in by_time)
    slow = all_of_them[int(SLOW_SHARE * len(all_of_them))]
    before = [each.step_seconds for each in by_time if each.time <= gap[0]][-NEIGHBOURS:]
    after = [each.step_seconds for each in by_time if each.time >= gap[1]][:1]
    return max(slow, *before, *after)


def _shared(outage: Outage, gap: Gap) -> float:
    return min(outage.ended_at, gap[1]) - max(outage.began_at, gap[0])
