"""The same failures, answered as others do: everybody restarts from the last checkpoint.

A model of torchrun with a distributed checkpoint, in its favour where there is a choice: checkpoints stall training no
longer than ours, spares take seats at the next restart, a node that comes back costs a restart but no step. No core is
needed, since there is one rule. Next: `report.py`; the closed form is `orchestrator/core/intervals.py`.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from orchestrator.core.ids import Step
from orchestrator.core.intervals import efficiency, young_daly_seconds
from orchestrator.core.spec import CheckpointMode
from simulation.planning.costs import Costs
from simulation.planning.failures import Failure
from simulation.planning.meter import Cause, Census, Meter, Stalls
from simulation.planning.scenario import Scenario
from simulation.planning.training import Doing, Training, speed_of

NAME = "restart everybody from the last checkpoint (torchrun)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What came out."""

    name: str
    meter: Meter
    steps: int
    steps_lost: int
    restarts: int
    interval_seconds: float
    closed_form: float
    """Daly's efficiency for the same means: failures exponential, all seats always taken, every failure the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """A checkpoint as the baseline takes it: every GPU holds the dense part; experts are shared out as ours are."""

    stall_seconds: float
    durable_seconds: float
    read_seconds: float

    @classmethod
    def of(cls, scenario: Scenario, costs: Costs) -> Saving:
        """Its cost in a scenario."""
        cluster, training = scenario.cluster, scenario.training
        experts_of_gpu = -(-cluster.experts // cluster.gpus)
        experts_of_node = min(cluster.experts, experts_of_gpu * cluster.gpus_per_node)
        share = training.dense_gigabytes / cluster.gpus
        on_node = experts_of_node * training.expert_gigabytes
        return cls(
            stall_seconds=costs.stage(share + experts_of_gpu * training.expert_gigabytes / cluster.replicas),
            durable_seconds=costs.write(share * cluster.gpus_per_node + on_node),
            read_seconds=costs.read(training.dense_gigabytes * cluster.gpus_per_node + on_node),
        )


def restart_everybody(scenario: Scenario, costs: Costs, failures: tuple[Failure, ...], bins: int) -> Baseline:
    """Play it."""
    return _Restarting(scenario, costs, failures, bins).play()


class _Restarting:
    """One run of the baseline. Times are seconds since training began."""

    def __init__(self, scenario: Scenario, costs: Costs, failures: tuple[Failure, ...], bins: int) -> None:
        self._scenario, self._costs, self._failures = scenario, costs, failures
        self._meter = Meter(scenario.seconds, bins)
        self._training = Training(scenario, costs, self._meter)
        self._training.metered = True
        self._training.doing = Doing.TRAINING
        self._training.speed = speed_of(scenario, costs, scenario.cluster.gpus, votes=False)
        self._saving = Saving.of(scenario, costs)
        self._interval = self._best_interval()
        self._away: set[int] = set()
        self._seated = set(range(scenario.cluster.nodes))
        self._now = 0.0
        self._due = self._interval
        self._saved = Step(0)
        self._pending: tuple[float, Step] | None = None
        """A checkpoint on its way to the disk: when it is durable, and its step."""
        self._noticed_at = 0.0
        self._resume_at = 0.0
        self._restarts = 0
        self._hits = 0
        """Failures of somebody with a seat."""

    def play(self) -> Baseline:
        """From the first step to the end."""
        queue: list[tuple[float, int, Failure | int]] = []
        for number, failure in enumerate(self._failures):
            heapq.heappush(queue, (failure.at, number, failure))
        numbers = len(self._failures)
        while queue:
            at, _, what = heapq.heappop(queue)
            if at >= self._scenario.seconds:
                break
            self._pass_time(at)
            if isinstance(what, Failure):
                for node, back_at in zip(what.nodes, what.back_at, strict=False):
                    numbers += 1
                    heapq.heappush(queue, (back_at, numbers, node))
                self._fail(what)
            else:
                self._away.discard(what)
                if (
                    self._training.doing is Doing.TRAINING
                    and len(self._seated) < self._scenario.cluster.nodes
                ):
                    self._grow()
        self._pass_time(self._scenario.seconds)
        return Baseline(
            name=NAME,
            meter=self._meter,
            steps=self._training.committed,
            steps_lost=self._training.steps_lost,
            restarts=self._restarts,
            interval_seconds=self._interval,
            closed_form=self._closed_form(),
        )

    # ---- time ----

    def _pass_time(self, until: float) -> None:
        while self._now < until:
            if self._training.doing is not Doing.TRAINING:
                self._spend(min(until, self._noticed_at))
                if self._now >= self._noticed_at and self._training.doing is Doing.STUCK:
                    self._training.doing = Doing.RESTORING
                self._spend(min(until, self._resume_at))
                if self._now >= self._resume_at:
                    self._resume()
            else:
                self._train(until)

    def _spend(self, until: float) -> None:
        if until > self._now:
            self._training.advance(self._now, until - self._now, self._census())
            self._now = until

    def _train(self, until: float) -> None:
        """Train to `until` or to the next checkpoint; of many in a stretch only the last two matter."""
        if self._due > until:
            self._spend(until)
        else:
            whole = int((until - self._due) / self._interval) - 1
            if whole >= 1:
                target = self._due + whole * self._interval
                stalled = whole * self._saving.stall_seconds
                if not self._training.pauses:
                    span = target - self._now
                    self._training.advance_over_saves(
                        self._now, span, self._census(), Stalls(checkpoints=stalled)
                    )
                    self._now = target
                    self._due = target
            self._spend(self._due)
            self._save()
        self._settle_pending()

    def _save(self) -> None:
        self._settle_pending()
        self._training.pause(Cause.CHECKPOINT_STALL, self._saving.stall_seconds)
        durable = self._now + self._saving.stall_seconds + self._saving.durable_seconds
        self._pending = (durable, self._training.committed)
        self._due = self._now + self._interval

    def _settle_pending(self) -> None:
        if self._pending is not None and self._pending[0] <= self._now:
            self._saved = self._pending[1]
            self._pending = None

    # ---- failures ----

    def _fail(self, failure: Failure) -> None:
        """A node or process fails: if it has a seat, everybody is stopped, and goes back."""
        self._settle_pending()
        census = self._census()
        self._away.update(failure.nodes if failure.kind.takes_node else ())
        if not self._seated.intersection(failure.nodes):
            return
        self._hits += 1
        training = self._training
        if training.doing is Doing.TRAINING:
            training.stop(Doing.STUCK, census, self._now)
            training.roll_back(self._saved, self._now)
            self._pending = None
        costs, silent = self._costs, self._scenario.baseline.collective_timeout_seconds
        notice = silent if failure.kind.silent else costs.crash_notice_seconds.value
        training.doing = Doing.STUCK
        self._noticed_at = self._now + notice
        self._resume_at = self._noticed_at + self._restart_seconds()
        self._restarts += 1

    def _grow(self) -> None:
        """A node is back while seats are empty: save, then restart with it."""
        training = self._training
        training.stop(Doing.RESTORING, self._census(), self._now)
        self._saved = training.committed
        self._pending = None
        self._resume_at = self._now + self._saving.stall_seconds + self._restart_seconds()
        self._restarts += 1

    def _restart_seconds(self) -> float:
        """Processes, rendezvous and groups, reading the checkpoint."""
        costs = self._costs
        ranks = self._scenario.cluster.gpus
        return costs.restart_all_seconds.value + costs.regroup(ranks) + self._saving.read_seconds

    def _resume(self) -> None:
        """Who is up trains on; without anybody, wait for the first to come back."""
        cluster = self._scenario.cluster
        up = [node for node in range(cluster.all_nodes) if node not in self._away]
        self._seated = set(up[: cluster.nodes])
        if not self._seated:
            self._training.doing = Doing.WAITING
            self._resume_at = self._now + self._restart_seconds()
            return
        self._training.doing = Doing.TRAINING
        self._training.speed = speed_of(
            self._scenario, self._costs, len(self._seated) * cluster.gpus_per_node, votes=False
        )
        self._due = self._now + self._interval

    def _census(self) -> Census:
        cluster = self._scenario.cluster
        members = len(self._seated - self._away) * cluster.gpus_per_node
        away = len(self._away) * cluster.gpus_per_node
        return Census(members=members, seating=0, idle=cluster.all_gpus - members - away, away=away)

    # ---- arithmetic ----

    def _mean_between_failures(self) -> float:
        return self._scenario.seconds / max(1, len(self._failures))

    def _best_interval(self) -> float:
        """Its own best interval where the scenario says `auto`: every failure is a restore here."""
        plan = self._scenario.checkpoint
        if plan.interval is CheckpointMode.FIXED:
            return plan.interval_seconds
        best = young_daly_seconds(self._saving.stall_seconds, self._mean_between_failures())
        return max(best, self._saving.stall_seconds + self._saving.durable_seconds)

    def _closed_form(self) -> float:
        """What the formula says for the same means."""
        if not self._hits:
            return self._interval / (self._interval + self._saving.stall_seconds)
        silent = sum(failure.kind.silent for failure in self._failures) / len(self._failures)
        notice = (
            silent * self._scenario.baseline.collective_timeout_seconds
            + (1 - silent) * self._costs.crash_notice_seconds.value
        )
        restart = notice + self._restart_seconds() + self._saving.durable_seconds
        mean = self._scenario.seconds / self._hits
        return efficiency(self._interval, self._saving.stall_seconds, restart, mean)
