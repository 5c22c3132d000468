"""What a line of the ledger, a validation and an incident become: named numbers, counts and texts. Pure.

Everything follows from the lines alone, so the same lines give the same points on any day. Next: `tensorboard.py`,
`wandb_logger.py`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.core.exposure import window_seconds
from orchestrator.core.ids import GenerationNumber
from orchestrator.core.measurements import StepRecord
from orchestrator.core.state import Incident
from orchestrator.loggers.events import Point

GOODPUT_STEPS = 100
"""Goodput is that of so many last steps: an outage is seen, and is over when it is over."""
HISTOGRAM_STEPS = 10
"""Every so many steps the load of all experts is put down, not only how even it is."""


class StepPoints:
    """Points of committed steps, in order from the first one."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, float]] = deque(maxlen=GOODPUT_STEPS)
        self._first: list[tuple[GenerationNumber, int]] = []
        self.last_step = 0

    def point(self, record: StepRecord) -> Point:
        """What one step says."""
        self._recent.append((record.time - record.step_seconds, record.step_seconds))
        self.last_step = record.step
        if not self._first or record.generation > self._first[-1][0]:
            self._first.append((record.generation, record.step))
        scalars: dict[str, float] = {
            "loss": record.loss,
            "step_seconds": record.step_seconds,
            "goodput": self._goodput(record.time),
            "generation": record.generation,
        }
        if record.step_seconds > 0:
            scalars["tokens_per_second"] = record.tokens / record.step_seconds
        for name, value in (
            ("learning_rate", record.learning_rate),
            ("gradient_norm", record.gradient_norm),
        ):
            if value is not None:
                scalars[name] = value
        scalars.update(_evenness(record.layer_load))
        counts = {}
        if record.step % HISTOGRAM_STEPS == 0:
            counts = {
                f"expert_tokens/{_layer(number)}": load for number, load in enumerate(record.layer_load)
            }
        return Point(step=record.step, at=record.time, scalars=scalars, counts=counts)

    def first_step_of(self, generation: GenerationNumber) -> int:
        """The first step that this generation or a later one has committed; the last step where there is none."""
        place = bisect_left(self._first, (generation, 0))
        return self._first[place][1] if place < len(self._first) else self.last_step

    def _goodput(self, now: float) -> float:
        elapsed = now - self._recent[0][0]
        return min(1.0, sum(seconds for _, seconds in self._recent) / elapsed) if elapsed > 0 else 1.0


def validation_point(line: Mapping[str, Any]) -> Point:
    """What one measurement of held-out windows says."""
    scalars = {
        name: math.nan if line[name] is None else float(line[name])
        for name in ("loss", "perplexity", "bits_per_byte")
    }
    return Point(step=int(line["step"]), at=float(line["time"]), scalars=scalars)


def incident_point(incident: Incident, step: int) -> Point:
    """What a closed incident says: what it was in words, and what it cost in numbers."""
    assert incident.restored_at is not None, "only closed incidents are told"
    scalars: dict[str, float] = {
        "incident/steps_lost": incident.steps_lost,
        "incident/steps_redone": incident.steps_redone,
        "incident/restored_seconds": incident.restored_at - incident.first_sign_at,
    }
    if incident.first_commit_at is not None:
        scalars["incident/outage_seconds"] = incident.first_commit_at - incident.first_sign_at
    window = window_seconds(incident, incident.restored_at)
    if window is not None:
        scalars["incident/vulnerability_seconds"] = window
        scalars["incident/experts_exposed"] = incident.experts_exposed
    return Point(
        step=step,
        at=incident.restored_at,
        scalars=scalars,
        texts={"incidents": words_of(incident)},
    )


def words_of(incident: Incident) -> str:
    """An incident in Markdown."""
    reasons = "\n".join(f"- {reason}" for reason in incident.reasons)
    return (
        f"**{incident.id}** {incident.kind.value}, {incident.node}, generation {incident.generation}\n\n"
        f"{incident.cause}\n\n**{incident.action}**\n\n{reasons}"
    )


def _evenness(layers: Sequence[Sequence[int]]) -> dict[str, float]:
    """How evenly experts are used, in each layer and on average.

    `expert_load` is the largest load over the mean one. `expert_utilisation` is the share of tokens that would fit if
    each expert took no more than the mean: sum of min(n, C) over E * C, for C the mean.
    """
    found: dict[str, float] = {}
    utilisations = []
    for number, load in enumerate(layers):
        total = sum(load)
        if not total:
            continue
        mean = total / len(load)
        utilisations.append(sum(min(count, mean) for count in load) / total)
        found[f"expert_load/{_layer(number)}"] = max(load) / mean
        found[f"expert_utilisation/{_layer(number)}"] = utilisations[-1]
    if utilisations:
        found["expert_utilisation/mean"] = sum(utilisations) / len(utilisations)
    return found


def _layer(number: int) -> str:
    return f"layer_{number:02d}"
