"""The same failures, answered as torchft does: the replica group of what failed is left out, the others go on.

A model in its favour: groups are as small as the experts allow (every group holds the whole model, an expert for each
GPU), only the step in flight is lost, and a group that returns is healed while the others train. What it does not do is
compute the samples of the missing group: they are dropped, and that is counted as capacity. Next: `baselines.py`.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

from simulation.planning.costs import Costs
from simulation.planning.failures import Failure
from simulation.planning.meter import Cause, Census, Meter, Speed
from simulation.planning.scenario import Scenario
from simulation.planning.training import Doing, Training

NAME = "leave out the replica group, drop its samples (torchft)"
HEARTBEAT_TIMEOUT_SECONDS = 5.0
"""Of torchft's lighthouse, by default: how long a silent group is waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaGroups:
    """What came out. Steps go on with fewer samples, so goodput is counted in samples."""

    name: str
    meter: Meter
    goodput: float
    groups: int
    dropped_share: float
    """Of all samples of committed steps."""


def leave_out_groups(
    scenario: Scenario, costs: Costs, failures: tuple[Failure, ...], bins: int
) -> ReplicaGroups:
    """Play it."""
    return _Groups(scenario, costs, failures, bins).play()


class _Groups:
    """One run. A group is a number of neighbouring seats; a spare node takes the seat of one that is away."""

    def __init__(self, scenario: Scenario, costs: Costs, failures: tuple[Failure, ...], bins: int) -> None:
        cluster = scenario.cluster
        self._scenario, self._costs, self._failures = scenario, costs, failures
        self._nodes_per_group = min(cluster.nodes, max(1, -(-cluster.experts // cluster.gpus_per_node)))
        self._groups = max(1, cluster.nodes // self._nodes_per_group)
        self._meter = Meter(scenario.seconds, bins)
        self._training = Training(scenario, costs, self._meter)
        self._training.metered = True
        self._training.doing = Doing.TRAINING
        self._holder = dict(enumerate(range(cluster.nodes)))
        """Seat -> node."""
        self._away: set[int] = set()
        self._out_until: dict[int, float] = {}
        """Groups that are left out, and when they are healed; infinity while a node is missing."""
        self._now = 0.0
        self._resume_at = 0.0
        self._dropped = 0.0
        self._queue: list[tuple[float, int, Failure | int | None]] = []
        self._numbers = 0

    def play(self) -> ReplicaGroups:
        """From the first step to the end."""
        self._adapt()
        for failure in self._failures:
            self._at(failure.at, failure)
        while self._queue and self._queue[0][0] < self._scenario.seconds:
            at, _, what = heapq.heappop(self._queue)
            self._pass_time(at)
            if isinstance(what, Failure):
                self._fail(what)
            elif isinstance(what, int):
                self._away.discard(what)
                self._fill_seats()
            self._adapt()
        self._pass_time(self._scenario.seconds)
        cluster = self._scenario.cluster
        useful = self._meter.gpu_seconds[Cause.USEFUL]
        return ReplicaGroups(
            name=NAME,
            meter=self._meter,
            goodput=useful / (cluster.gpus * self._scenario.seconds),
            groups=self._groups,
            dropped_share=self._dropped / max(self._training.steps, 1.0),
        )

    def _at(self, at: float, what: Failure | int | None) -> None:
        self._numbers += 1
        heapq.heappush(self._queue, (at, self._numbers, what))

    def _pass_time(self, until: float) -> None:
        training = self._training
        if training.doing is not Doing.TRAINING and self._resume_at <= until:
            self._spend(max(self._now, self._resume_at))
            training.doing = Doing.TRAINING if self._living() else Doing.WAITING
        before, missing = training.steps, 1 - self._living() / self._groups
        self._spend(until)
        self._dropped += (training.steps - before) * missing

    def _spend(self, until: float) -> None:
        if until > self._now:
            self._training.advance(self._now, until - self._now, self._census())
            self._now = until

    def _living(self) -> int:
        return self._groups - sum(until > self._now for until in self._out_until.values())

    def _fail(self, failure: Failure) -> None:
        """The group is out; the others discard the step in flight and go on."""
        census = self._census()
        self._away.update(failure.nodes if failure.kind.takes_node else ())
        for node, back_at in zip(failure.nodes, failure.back_at, strict=False):
            self._at(back_at, node)
        seats = [seat for seat, node in self._holder.items() if node in failure.nodes]
        if not seats:
            return
        self._training.stop(Doing.STUCK, census, self._now)
        notice = HEARTBEAT_TIMEOUT_SECONDS if failure.kind.silent else 0.0
        self._pause(notice)
        for seat in seats:
            self._out_until[seat // self._nodes_per_group] = math.inf
        self._fill_seats()

    def _fill_seats(self) -> None:
        """Nodes that are up take empty seats; a group whose seats are full starts, and is healed."""
        cluster = self._scenario.cluster
        idle = [
            node
            for node in range(cluster.all_nodes)
            if node not in self._away and node not in self._holder.values()
        ]
        for seat, node in self._holder.items():
            if node in self._away and idle:
                self._holder[seat] = idle.pop(0)
        for group, until in tuple(self._out_until.items()):
            first = group * self._nodes_per_group
            seats = range(first, min(first + self._nodes_per_group, cluster.nodes))
            if math.isinf(until) and not any(self._holder[seat] in self._away for seat in seats):
                training = self._scenario.training
                state = training.dense_gigabytes + training.expert_gigabytes
                healed = self._now + self._costs.trainer_start_seconds.value + self._costs.send(state)
                self._out_until[group] = healed
                self._at(healed, None)

    def _adapt(self) -> None:
        """A step is as long as ever and counts for fewer samples; who comes back costs a new quorum."""
        healed = [group for group, until in self._out_until.items() if until <= self._now]
        for group in healed:
            del self._out_until[group]
        if healed and self._training.doing is Doing.TRAINING:
            self._training.doing = Doing.REGROUPING
            self._pause(0.0)
        training = self._scenario.training
        useful = training.step_seconds * self._scenario.cluster.gpus * self._living() / self._groups
        quorum = self._costs.torchft_seconds_per_step.value
        self._training.speed = Speed(
            step_seconds=training.step_seconds + quorum, protection_seconds=quorum, useful_gpu_seconds=useful
        )

    def _pause(self, notice: float) -> None:
        """Until the quorum is decided and the groups are connected: one rank of each meets its like."""
        reconfigure = self._costs.torchft_reconfigure_seconds.value + self._costs.regroup(self._groups)
        self._resume_at = max(self._resume_at, self._now + notice + reconfigure)

    def _census(self) -> Census:
        cluster = self._scenario.cluster
        sound = sum(node not in self._away for node in self._holder.values())
        members, away = sound * cluster.gpus_per_node, len(self._away) * cluster.gpus_per_node
        return Census(members=members, seating=0, idle=cluster.all_gpus - members - away, away=away)
