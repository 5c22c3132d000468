"""How often to save, from what was measured: how long a save stops training, and how often saved state was needed.

One rule for every tier of saved state: `choose` takes what is known of a tier and gives an interval with its reason.
What is known comes from rows that are stored (of snapshots, from what agents hold), so a restarted controller arrives
at the same interval. A save that was never measured, and a job that never went back, are assumed to be as `policy.py`
says, and the reason says so. Next: `intervals.py`, the arithmetic; `checkpoints.py` and `snapshots.py`, which save.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from orchestrator.core.held import SaveCost
from orchestrator.core.ids import IncidentId
from orchestrator.core.intervals import young_daly_seconds
from orchestrator.core.policy import Policy
from orchestrator.core.spec import CheckpointMode
from orchestrator.core.state import NO_GENERATION, Checkpoint, CheckpointState, Incident, Job
from orchestrator.core.words import count, lasting

MEASURED = (CheckpointState.SEALED, CheckpointState.WRITING)
"""Checkpoints whose figures count: those that a restarted controller loads as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """One place for saved state, and what is known of saving to it."""

    what: str
    """One save, in words: `a checkpoint`."""
    stalls: tuple[float, ...]
    """How many seconds training stood still for each of the last saves; empty before the first."""
    works: tuple[float, ...]
    """How many seconds each of them took until it could be used."""
    uses: int
    """How often a failure went back to saved state within `observed_seconds`."""
    observed_seconds: float
    shortest_seconds: float
    longest_seconds: float
    """The upper bound that the job sets, and its name."""
    bound: str
    others: str = "storage"
    """Whom saving more often would disturb, where it costs training next to nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cadence:
    """An interval from the beginning of one save to that of the next, and why it is what it is."""

    interval_seconds: float
    stall_seconds: float
    mean_seconds: float
    """Between two failures that need saved state."""
    why: str


def choose(tier: Tier, policy: Policy) -> Cadence:
    """The interval that loses least (Young/Daly), within the bounds of the tier.

    It is never shorter than two saves take, since a save that is under way can not be begun again.
    """
    stall = median(tier.stalls) if tier.stalls else policy.assumed_stall_seconds
    work = median(tier.works) if tier.works else 0.0
    mean = (tier.observed_seconds + policy.assumed_mean_seconds) / (tier.uses + 1)
    best = young_daly_seconds(stall, mean)
    shortest = max(tier.shortest_seconds, 2 * work)
    interval = min(tier.longest_seconds, max(best, shortest))
    bounded = ""
    if interval < max(best, shortest):
        bounded = f"; {lasting(max(best, shortest))} would be better, and {tier.bound} allows no more"
    elif interval > best:
        busy = (
            f"one takes {lasting(work)}"
            if 2 * work > tier.shortest_seconds
            else f"{tier.others} has others to serve"
        )
        bounded = f"; {lasting(best)} would lose least, but {busy}"
    how = (
        f"the median of {count(len(tier.stalls), 'save')}" if tier.stalls else "assumed until one is measured"
    )
    times = count(tier.uses, "time") if tier.uses else "not once"
    why = (
        f"{tier.what} every {lasting(interval)}: one stops training for {lasting(stall)} ({how}), and saved state is "
        f"needed every {lasting(mean)} ({times} in {lasting(tier.observed_seconds)}, and once in "
        f"{lasting(policy.assumed_mean_seconds)} assumed before){bounded}"
    )
    return Cadence(interval_seconds=interval, stall_seconds=stall, mean_seconds=mean, why=why)


def of_checkpoints(
    job: Job,
    checkpoints: Mapping[str, Checkpoint],
    incidents: Mapping[IncidentId, Incident],
    policy: Policy,
    at: float,
) -> Cadence:
    """The cadence of a job's checkpoints at the moment `at`."""
    spec = job.spec.checkpoint
    measured = [each for each in checkpoints.values() if each.state in MEASURED][-policy.saves_remembered :]
    stalls = tuple(each.stall_seconds for each in measured if each.stall_seconds is not None)
    if spec.interval is CheckpointMode.FIXED:
        stall = median(stalls) if stalls else policy.assumed_stall_seconds
        why = f"a checkpoint every {lasting(spec.interval_seconds)}, as checkpoint.interval_seconds says"
        return Cadence(interval_seconds=spec.interval_seconds, stall_seconds=stall, mean_seconds=0.0, why=why)
    began = at if job.started_at is None else job.started_at
    tier = Tier(
        what="a checkpoint",
        stalls=stalls,
        works=tuple(each.sealed_at - each.requested_at for each in measured if each.sealed_at is not None),
        uses=times_gone_back(incidents.values(), began),
        observed_seconds=_trained_seconds(job, at),
        shortest_seconds=policy.shortest_interval_seconds,
        longest_seconds=spec.interval_seconds,
        bound="checkpoint.interval_seconds",
    )
    return choose(tier, policy)


def of_snapshots(
    job: Job,
    costs: Sequence[SaveCost],
    incidents: Mapping[IncidentId, Incident],
    policy: Policy,
    at: float,
) -> Cadence:
    """The cadence of a job's snapshots in host memory at the moment `at`; `costs` are those of the last ones."""
    spec = job.spec.snapshot
    stalls = tuple(each.stall_seconds for each in costs)
    if spec.interval is CheckpointMode.FIXED:
        stall = median(stalls) if stalls else policy.assumed_stall_seconds
        why = f"a snapshot every {lasting(spec.interval_seconds)}, as snapshot.interval_seconds says"
        return Cadence(interval_seconds=spec.interval_seconds, stall_seconds=stall, mean_seconds=0.0, why=why)
    if not stalls:
        interval = min(policy.first_snapshot_seconds, spec.interval_seconds)
        why = (
            f"the first snapshot after {lasting(interval)}: how often one is taken follows from what it costs"
        )
        return Cadence(
            interval_seconds=interval,
            stall_seconds=policy.assumed_stall_seconds,
            mean_seconds=policy.assumed_mean_seconds,
            why=why,
        )
    began = at if job.started_at is None else job.started_at
    tier = Tier(
        what="a snapshot",
        stalls=stalls,
        works=tuple(each.work_seconds for each in costs if each.work_seconds is not None),
        uses=times_gone_back(incidents.values(), began),
        observed_seconds=_trained_seconds(job, at),
        shortest_seconds=policy.shortest_interval_seconds,
        longest_seconds=spec.interval_seconds,
        bound="snapshot.interval_seconds",
        others="the network",
    )
    return choose(tier, policy)


def _trained_seconds(job: Job, at: float) -> float:
    """Since the job began, as long as it has lasted."""
    if job.started_at is None:
        return 0.0
    return max(0.0, (at if job.ended_at is None else job.ended_at) - job.started_at)


def next_at(job: Job, checkpoints: Mapping[str, Checkpoint], cadence: Cadence) -> float | None:
    """When the next checkpoint is due; None before training begins. Whoever asked for the last one: it counts."""
    if job.started_at is None:
        return None
    last = max((each.requested_at for each in checkpoints.values()), default=job.started_at)
    return max(last, job.started_at) + cadence.interval_seconds


def times_gone_back(incidents: Iterable[Incident], since: float) -> int:
    """How often failures went back to saved state. What one generation answers was one time."""
    generations = {each.rolled_back_by for each in incidents if each.first_sign_at >= since}
    return len(generations - {NO_GENERATION})
