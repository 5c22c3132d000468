"""Metrics of a job for Prometheus, read from the core's state when they are asked for. Names are stable.

A controller that stands by has only `understudy_leader 0`; one whose thread does not answer leaves the rest out rather
than telling what is old. Times are seconds. Next: `web.py`, which serves them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as NoAnswer
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from orchestrator.controller.runner import RunnerBusy, RunnerStopped
from orchestrator.core import incidents, roster
from orchestrator.core.checkpoints import newest
from orchestrator.core.state import CheckpointState, ClusterState, Incident, JobState, NodeState

log = logging.getLogger(__name__)

T = TypeVar("T")
Inspect = Callable[[Callable[[ClusterState], list[Metric]]], Future[list[Metric]]]

ANSWER_SECONDS = 2.0
BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper ends of the histogram of phases, in seconds."""


@dataclass(slots=True, eq=False)
class Metrics(Collector):
    """A collector of one controller; `inspect` is there once it leads."""

    inspect: Inspect | None = None

    def collect(self) -> Iterable[Metric]:
        """All metrics as they are now."""
        leads = GaugeMetricFamily("understudy_leader", "1 where this controller is in charge")
        leads.add_metric([], 1.0 if self.inspect else 0.0)
        yield leads
        if self.inspect is None:
            return
        try:
            yield from self.inspect(lambda state: list(of_state(state))).result(ANSWER_SECONDS)
        except (NoAnswer, CancelledError, RunnerStopped, RunnerBusy) as error:
            log.warning("no metrics this time: %r", error)


def of_state(state: ClusterState) -> Iterator[Metric]:
    """The metrics of a job; none before there is one."""
    job = state.job
    if job is None:
        return
    yield _gauge("understudy_step", "The last committed step", state.committed)
    yield _gauge("understudy_steps", "Steps that the job is to make", job.spec.steps)
    losses = state.memory.losses
    if losses:
        yield _gauge("understudy_loss", "Loss of the last committed step", losses[max(losses)])
    yield _by("understudy_job_state", "1 for the state that the job is in", "state", _states(job.state))
    yield _gauge("understudy_generation", "The generation in force", _generation(state))
    yield _gauge(
        "understudy_progress_timestamp_seconds", "The last sign of progress", state.memory.progress_at
    )
    yield from _of_nodes(state)
    yield from _of_replicas(state)
    yield from _of_incidents(incidents.in_order(state))
    yield from _of_checkpoints(state)


def _of_nodes(state: ClusterState) -> Iterator[Metric]:
    assert state.job is not None
    cluster, generation = state.job.spec.cluster, state.generation
    counted = Counter(node.state.value for node in state.nodes.values())
    numbers = {each.value: float(counted[each.value]) for each in NodeState}
    yield _by("understudy_nodes", "Nodes by state", "state", numbers)
    yield _gauge("understudy_seats", "Trainers that the job wants", roster.seats(cluster))
    members = len(generation.members) if generation else 0
    yield _gauge("understudy_members", "Trainers that have a seat", members)
    yield _gauge("understudy_spares_wanted", "Spare nodes that the job wants", cluster.spares)
    kept_out = sum(1 for each in state.health.values() if each.quarantined_until is not None)
    yield _gauge("understudy_nodes_quarantined", "Nodes that are kept out for now", kept_out)
    memory = state.memory
    yield _gauge("understudy_stragglers", "Members that are slow beside their peers", len(memory.stragglers))
    slowest = min(memory.scores.values(), default=1.0)
    yield _gauge("understudy_score_least", "Speed of the slowest member beside its peers, 0 to 1", slowest)


def _of_replicas(state: ClusterState) -> Iterator[Metric]:
    assert state.job is not None
    cluster, generation = state.job.spec.cluster, state.generation
    wanted = min(cluster.replicas, cluster.nodes)
    copies = []
    if generation is not None and generation.members:
        nodes = roster.nodes_by_rank(generation)
        copies = [len({nodes[rank] for rank in ranks}) for ranks in generation.placement]
    yield _gauge("understudy_expert_replicas_wanted", "Copies that each expert is to have", wanted)
    yield _gauge(
        "understudy_expert_replicas_least", "Fewest copies that an expert has", min(copies, default=0)
    )
    thin = sum(1 for each in copies if each < wanted)
    yield _gauge("understudy_experts_degraded", "Experts with fewer copies than wanted", thin)


def _of_incidents(records: list[Incident]) -> Iterator[Metric]:
    kinds = Counter(each.kind.value for each in records)
    total = CounterMetricFamily("understudy_incidents", "Incidents by kind", labels=["kind"])
    for kind, number in sorted(kinds.items()):
        total.add_metric([kind], float(number))
    yield total
    yield _gauge(
        "understudy_incidents_open", "Incidents that are not over", sum(not each.closed for each in records)
    )
    lost = sum(each.steps_lost for each in records)
    redone = sum(each.steps_redone for each in records)
    yield CounterMetricFamily(
        "understudy_steps_lost", "Committed steps that were given up", value=float(lost)
    )
    yield CounterMetricFamily(
        "understudy_steps_redone", "Steps that were computed again", value=float(redone)
    )
    phases = HistogramMetricFamily(
        "understudy_recovery_seconds", "From the first sign of a failure to each phase", labels=["phase"]
    )
    failures = [each for each in records if each.kind not in incidents.PLANNED]
    for phase, times in (
        ("detected", [_since(each, each.detected_at) for each in failures]),
        ("regrouped", [_since(each, each.regrouped_at) for each in failures]),
        ("first-commit", [_since(each, each.first_commit_at) for each in failures]),
        ("redundant", [_since(each, each.restored_at) for each in failures]),
    ):
        known = [each for each in times if each is not None]
        buckets = [(str(end), float(sum(each <= end for each in known))) for end in BUCKETS]
        phases.add_metric([phase], [*buckets, ("+Inf", float(len(known)))], sum_value=sum(known))
    yield phases


def _of_checkpoints(state: ClusterState) -> Iterator[Metric]:
    kept = newest(state)
    if kept is not None:
        yield _gauge("understudy_checkpoint_step", "Step of the newest sealed checkpoint", kept.step)
        sealed = kept.sealed_at or 0.0
        yield _gauge(
            "understudy_checkpoint_timestamp_seconds", "When the newest checkpoint was sealed", sealed
        )
        yield _gauge("understudy_checkpoint_bytes", "Size of the newest checkpoint", kept.bytes)
    failed = sum(1 for each in state.checkpoints.values() if each.state is CheckpointState.FAILED)
    yield CounterMetricFamily("understudy_checkpoints_failed", "Checkpoints that failed", value=float(failed))


def _states(current: JobState) -> dict[str, float]:
    return {each.value: 1.0 if each is current else 0.0 for each in JobState}


def _generation(state: ClusterState) -> int:
    return int(state.generation.number) if state.generation else 0


def _since(record: Incident, at: float | None) -> float | None:
    return None if at is None else max(0.0, at - record.first_sign_at)


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(name, words, value=float(value))


def _by(name: str, words: str, label: str, values: dict[str, float]) -> Metric:
    family = GaugeMetricFamily(name, words, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
