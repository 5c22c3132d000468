"""The downtime that incidents claim, against the one that the ledger shows.

An incident's first four phases follow one another from the first sign to the first commit after it, by the
controller's clock. The ledger is written with the trainers' clocks and knows nothing of incidents; it shows the gap
between the last commit before the answering generation and the first one of it. The two must agree within `SHARE`,
beyond a floor that has two parts, because the two intervals do not begin and end at the same moments:
- a failure comes somewhere inside a step, and the gap counts that step from its beginning: one step, as long as the
  run's slow ones are (the 95th percentile);
- the first sign of a node that falls silent is its last heartbeat, which may be older than the last commit: one
  heartbeat period; and a commit is known to the controller a report later than to its trainer, another one.

Incidents that overlap, or with no commit between them, are one outage. Pure. Next: `laws.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chaos.ledger import Committed

SHARE = 0.05
HEARTBEAT_SECONDS = 0.2
SLOW_STEP = 0.95
PHASES = ("detect_seconds", "decide_seconds", "regroup_seconds", "first_commit_seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """From a first sign to the first commit after it, as the incidents say."""

    incidents: tuple[str, ...]
    began_at: float
    ended_at: float
    generation: int
    """The first that answers any of them."""


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
    floor = slow_step(by_time) + 2 * HEARTBEAT_SECONDS
    found = []
    for outage in outages(incidents, by_time):
        before = [each.time for each in by_time if each.generation < outage.generation]
        # A step of the old generation may be reported late; it was committed before the new one all the same.
        after = [each.time for each in by_time if each.generation >= outage.generation]
        if not before or not after:
            continue  # nothing was committed before the failure: there is no gap to look at
        seen = min(after) - max(each for each in before if each <= min(after))
        claimed = outage.ended_at - outage.began_at
        found.append(Comparison(outage=outage, claimed=claimed, seen=seen, allowed=SHARE * seen + floor))
    return found


def outages(incidents: Sequence[dict[str, Any]], by_time: Sequence[Committed]) -> list[Outage]:
    """Incidents that stopped training, those with no commit between them together."""
    single = []
    for incident in incidents:
        phases = [incident["phases"][name] for name in PHASES]
        if incident["kind"] == "drain" or None in phases:
            continue
        began = float(incident["first_sign_at"])
        single.append(
            Outage(
                incidents=(incident["id"],),
                began_at=began,
                ended_at=began + sum(phases),
                generation=int(incident["generation"]),
            )
        )
    merged: list[Outage] = []
    for outage in sorted(single, key=lambda each: each.generation):
        last = merged[-1] if merged else None
        if last is not None and not _commit_between(by_time, last.generation, outage.generation):
            merged[-1] = Outage(
                incidents=(*last.incidents, *outage.incidents),
                began_at=min(last.began_at, outage.began_at),
                ended_at=max(last.ended_at, outage.ended_at),
                generation=last.generation,
            )
        else:
            merged.append(outage)
    return merged


def slow_step(by_time: Sequence[Committed]) -> float:
    """What a slow step of the run takes."""
    taken = sorted(each.step_seconds for each in by_time)
    return taken[min(len(taken) - 1, int(SLOW_STEP * len(taken)))] if taken else 0.0


def _commit_between(by_time: Sequence[Committed], first: int, second: int) -> bool:
    """Whether the generations from `first` up to, not including, `second` committed anything."""
    return any(first <= each.generation < second for each in by_time)
