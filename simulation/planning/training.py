"""Steps between two failures, in bulk: how fast they go, what interrupts them, what is thrown away.

The members of a generation do one thing at a time: train, wait at a broken collective, regroup, restore, or wait for
nodes. Steps are a number with a fraction; nothing here happens once per step. Next: `play.py`, which owns the clock.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import Enum

from orchestrator.core.ids import Step
from orchestrator.core.spec import IntegritySpec
from orchestrator.core.state import Generation
from simulation.planning.costs import Costs
from simulation.planning.meter import NO_STALLS, Cause, Census, Meter, Speed, Stalls
from simulation.planning.scenario import Scenario

ROUNDING = 1e-6
"""Of a step: this near to a boundary is at it."""


class Doing(Enum):
    """What the members do."""

    WAITING = Cause.WAITING_FOR_NODES
    TRAINING = Cause.USEFUL
    STUCK = Cause.DETECTION
    REGROUPING = Cause.REGROUP
    RESTORING = Cause.RESTORE


@dataclass(slots=True, kw_only=True)
class _Pause:
    """Training stands still for a while."""

    cause: Cause
    seconds: float


class Training:
    """Progress of the job. Times are seconds since training began; before `metered` nothing is counted."""

    def __init__(self, scenario: Scenario, costs: Costs, meter: Meter) -> None:
        self.steps = 0.0
        self.doing = Doing.WAITING
        self.generation: Generation | None = None
        self.planned: Generation | None = None
        self.pauses: deque[_Pause] = deque()
        self.metered = False
        self.steps_lost = 0
        self.steps_redone = 0
        self._scenario = scenario
        self._costs = costs
        self._meter = meter
        self.speed = speed_of(scenario, costs, scenario.cluster.gpus)

    @property
    def committed(self) -> Step:
        """The last whole step."""
        return Step(int(self.steps + ROUNDING))

    def to_boundary(self) -> float:
        """Seconds until the step in flight is committed."""
        left = self.committed + 1 - self.steps
        return left * self.speed.step_seconds + sum(pause.seconds for pause in self.pauses)

    def at_boundary(self) -> bool:
        """A step has just been committed and nothing of the next is done."""
        return not self.pauses and abs(self.steps - self.committed) <= ROUNDING

    # ---- time ----

    def advance(self, at: float, seconds: float, census: Census) -> None:
        """Let time pass from `at` on."""
        while seconds > 0 and self.doing is Doing.TRAINING and self.pauses:
            pause = self.pauses[0]
            spent = min(seconds, pause.seconds)
            self._spend(pause.cause, census, spent, at)
            pause.seconds -= spent
            if pause.seconds <= 0:
                self.pauses.popleft()
            at, seconds = at + spent, seconds - spent
        if seconds <= 0:
            return
        if self.doing is Doing.TRAINING:
            self._train(at, seconds, census, NO_STALLS)
        else:
            self._spend(self.doing.value, census, seconds, at)

    def advance_over_saves(self, at: float, seconds: float, census: Census, stalls: Stalls) -> None:
        """Let a quiet stretch pass in which state was saved many times."""
        assert self.doing is Doing.TRAINING and not self.pauses, self.doing
        part = min(1.0, seconds / stalls.seconds) if stalls.seconds else 1.0
        within = Stalls(checkpoints=stalls.checkpoints * part, snapshots=stalls.snapshots * part)
        self._train(at, seconds, census, within)

    def _train(self, at: float, seconds: float, census: Census, stalls: Stalls) -> None:
        steps = (seconds - stalls.seconds) / self.speed.step_seconds
        self.steps += steps
        if self.metered:
            self._meter.train(census, self.speed, steps, seconds, at, stalls)
            self._count_short(census, seconds)

    def _spend(self, cause: Cause, census: Census, seconds: float, at: float) -> None:
        if self.metered:
            self._meter.spend(cause, census, seconds, at)
            self._count_short(census, seconds)

    def _count_short(self, census: Census, seconds: float) -> None:
        if census.members < self._scenario.cluster.gpus:
            self._meter.short_seconds += seconds

    # ---- what happens ----

    def stop(self, doing: Doing, census: Census, at: float) -> None:
        """Nobody trains any more; the step in flight will be computed again. `census` as it was in that step."""
        if self.doing is Doing.TRAINING:
            part = max(0.0, self.steps - self.committed)
            if part > ROUNDING:
                self.steps_redone += 1
                if self.metered:
                    self._meter.redo(census, self.speed, part, at)
            self.steps = float(self.committed)
        self.pauses.clear()
        self.doing = doing

    def pause(self, cause: Cause, seconds: float) -> None:
        """Training stands still from now on for so long."""
        self.pauses.append(_Pause(cause=cause, seconds=seconds))

    def go(self, generation: Generation) -> None:
        """All members of a generation are at work."""
        self.generation = generation
        self.doing = Doing.TRAINING
        most = max(len(share) for share in generation.deal)
        self.speed = speed_of(self._scenario, self._costs, len(generation.members), most)

    def roll_back(self, step: Step, at: float) -> None:
        """A restore gives up what was committed after `step`."""
        lost = max(0, self.committed - step)
        self.steps_lost += lost
        if lost and self.metered:
            self._meter.roll_back(self.speed, lost, at)
        self.steps = float(min(self.committed, step))


def speed_of(scenario: Scenario, costs: Costs, ranks: int, most: int = 0, *, votes: bool = True) -> Speed:
    """Everybody waits for who computes `most` microbatches: a step is as long as the largest share of the deal.

    Without `most`, shares are as even as they can be; `votes` False is for systems without our protection.
    """
    cluster, training = scenario.cluster, scenario.training
    largest = most or math.ceil(training.microbatches_per_gpu * cluster.gpus / ranks)
    state = training.dense_gigabytes + training.expert_gigabytes
    protection = costs.protection(ranks, state, IntegritySpec().interval_steps) if votes else 0.0
    return Speed(
        step_seconds=training.step_seconds * largest / training.microbatches_per_gpu + protection,
        protection_seconds=protection,
        useful_gpu_seconds=training.step_seconds * cluster.gpus,
    )
