"""What must be true after each failure, whatever it was; and what it cost, in numbers.

Training went on: the ledger has every step once, with every sample once, and the losses of an undisturbed run.
Redundancy is back, the status says so, and an Event told of the incident.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from tests.e2e import cluster
from tests.e2e.cluster import Job, Object

LOSS_TOLERANCE = 1e-8
"""Relative, in float64: summation order changes with membership."""


@dataclass(slots=True)
class Figures:
    """A line for each failure."""

    lines: list[str] = field(default_factory=list)

    def add(self, what: str, incident: Object | None, gap_seconds: float, step_seconds: float) -> None:
        phases = incident or {}
        self.lines.append(
            f"{what:34} detect {_number(phases, 'detectSeconds')} regroup {_number(phases, 'regroupSeconds')} "
            f"first commit {_number(phases, 'firstCommitSeconds')} redundancy {_number(phases, 'redundancySeconds')} "
            f"longest gap {gap_seconds:6.2f} usual step {step_seconds:5.2f}"
        )
        print(f"\n{self.lines[-1]}")

    def table(self) -> str:
        return "\n" + "\n".join(["failure and seconds", *self.lines])


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """How the job stood before something befell it."""

    step: int
    incidents: int


def before(job: Job) -> Before:
    status = job.status
    return Before(step=int(status["step"]), incidents=int(status.get("incidents", 0)))


def judge(job: Job, began: Before, reference: dict[int, float], figures: Figures, what: str) -> Object:
    """All claims that hold after every failure. Gives the status; waits until the job has gone on for a while."""
    status = job.until_whole()
    job.until_step(int(status["step"]) + 5)
    ledger = job.read_ledger()
    assert max(ledger) > began.step, "training went on"
    samples = [sample for line in ledger.values() for sample in line["sample_ids"]]
    per_step = len(ledger[1]["sample_ids"])
    assert len(samples) == len(set(samples)) == per_step * len(ledger), "every sample counts once"
    both = sorted(set(reference) & set(ledger))
    for step in both:
        expected, found = reference[step], float(ledger[step]["loss"])
        assert abs(found - expected) <= LOSS_TOLERANCE * abs(expected), (
            f"the loss of step {step} is another one"
        )
    incident = job.status.get("lastIncident")
    new = int(job.status.get("incidents", 0)) - began.incidents
    steps = sorted(ledger)
    times = [float(ledger[step]["time"]) for step in steps]
    pauses = sorted(b - a for a, b in itertools.pairwise(times))
    ends = [float(ledger[step]["time"]) for step in steps if step >= began.step]
    since = [b - a for a, b in itertools.pairwise(ends)]
    figures.add(what, incident if new else None, max(since, default=0.0), pauses[len(pauses) // 2])
    compared = max(both, default=0)
    print(
        f"steps {began.step} to {max(ledger)}; losses are those of the undisturbed run through step {compared}"
    )
    if new and incident is not None:
        told = [each for each in cluster.events_of(job.name) if incident["id"] in each["message"]]
        assert any(each["reason"] == "Recovered" for each in told), "an Event says that it is over"
        assert any(each["reason"] != "Recovered" for each in told), "an Event says what happened"
        assert not incident["stepsLost"], "no committed step was lost"
    return job.status


def _number(phases: Object, key: str) -> str:
    return f"{phases[key]:6.2f}" if key in phases else "     -"
