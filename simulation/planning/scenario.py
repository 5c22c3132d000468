"""A scenario: the cluster, the training, its failures and its prices, as a planner writes them down.

Values with their defaults, and what they must satisfy; nothing is read or played here. Next: `scenario_file.py` reads
one, `failures.py` draws its failures, `play.py` plays it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum

from orchestrator.core.ids import NodeId
from orchestrator.core.problems import Problem
from orchestrator.core.spec import CheckpointMode, SnapshotSpec, TimeoutSpec

HOURS_PER_DAY = 24
SECONDS_PER_HOUR = 3600.0
MOST_FAILURES = 100_000
"""More than this is a mistake in a unit, not a plan."""


class Distribution(Enum):
    EXPONENTIAL = "exponential"
    WEIBULL = "weibull"


class RepairTimes(Enum):
    FIXED = "fixed"
    EXPONENTIAL = "exponential"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPlan:
    gpus: int = 1024
    """That train; spares come on top."""
    gpus_per_node: int = 8
    spare_nodes: int = 2
    nodes_per_rack: int = 16
    experts: int = 16
    replicas: int = 2

    def rack_of(self, node: NodeId) -> str:
        """Nodes are numbered rack by rack."""
        return f"rack-{(int(node.rpartition('-')[2]) - 1) // self.nodes_per_rack}"

    @property
    def nodes(self) -> int:
        """Nodes with seats."""
        return self.gpus // self.gpus_per_node

    @property
    def all_nodes(self) -> int:
        return self.nodes + self.spare_nodes

    @property
    def all_gpus(self) -> int:
        return self.all_nodes * self.gpus_per_node


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    step_seconds: float = 6.0
    """One step with every seat taken and nothing in its way."""
    microbatches_per_gpu: int = 8
    """Of a step. With fewer seats some GPUs compute one more, and all wait for them."""
    dense_gigabytes: float = 18.0
    """Weights and both moments of all that is not an expert; every GPU holds it."""
    expert_gigabytes: float = 12.0
    """The same of one expert."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointPlan:
    interval: CheckpointMode = CheckpointMode.FIXED
    interval_seconds: float = 900.0
    """Of `fixed`; of `auto` the longest that the formula may ask for."""
    keep: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureKinds:
    """How often each kind is, relative to the others."""

    node_crash: float = 0.7
    """A node dies and its connections break: noticed at once."""
    node_silent: float = 0.3
    """A node freezes or loses power: noticed when its lease has run out."""
    process_crash: float = 0.0
    """One trainer process dies; its node is sound and starts it again."""
    process_hang: float = 0.0
    """One trainer process is stuck; its agent notices after the hang limit and starts it again."""
    rack_crash: float = 0.0
    """All nodes of a rack die at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailurePlan:
    """Exactly one of `count`, `mtbf_hours` and `trace` says when things fail."""

    count: int = 0
    """So many, at random moments of the whole time."""
    mtbf_hours: float = 0.0
    """Mean time between two failures anywhere in the cluster."""
    distribution: Distribution = Distribution.EXPONENTIAL
    weibull_shape: float = 0.7
    """Below 1, failures come in bursts (Schroeder and Gibson 2010 found 0.7 to 0.8)."""
    trace: str = ""
    """A CSV file with the columns at_hours, kind, node and repair_hours."""
    kinds: FailureKinds = field(default_factory=FailureKinds)
    repair_hours: float = 12.0
    """From the failure of a node until it is back, as a spare."""
    repair_times: RepairTimes = RepairTimes.EXPONENTIAL


@dataclass(frozen=True, slots=True, kw_only=True)
class PricePlan:
    gpu_hour: float = 2.0
    currency: str = "USD"


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalPlan:
    goodput: float = 0.995
    missing_seats_share: float = 0.01
    """Spares are enough when seats stay empty for want of a node in at most this share of the time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselinePlan:
    """What the same failures would cost somebody who restarts everybody from the last checkpoint."""

    collective_timeout_seconds: float = 600.0
    """A silent node is noticed when a collective gives up: ten minutes, the default of NCCL's watchdog in PyTorch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    name: str
    days: float = 35.0
    seed: int = 1
    cluster: ClusterPlan = field(default_factory=ClusterPlan)
    training: TrainingPlan = field(default_factory=TrainingPlan)
    checkpoint: CheckpointPlan = field(default_factory=CheckpointPlan)
    snapshot: SnapshotSpec = field(default_factory=SnapshotSpec)
    """In host memory, as in a job."""
    failures: FailurePlan = field(default_factory=FailurePlan)
    timeouts: TimeoutSpec = field(default_factory=TimeoutSpec)
    prices: PricePlan = field(default_factory=PricePlan)
    goals: GoalPlan = field(default_factory=GoalPlan)
    baseline: BaselinePlan = field(default_factory=BaselinePlan)
    costs: str = ""
    """A file like the packaged `costs.yaml`, for clusters that were measured by others; empty for the packaged one."""

    @property
    def seconds(self) -> float:
        return self.days * HOURS_PER_DAY * SECONDS_PER_HOUR


_MAY_BE_ZERO = frozenset(
    {
        "seed",
        "cluster.spare_nodes",
        "training.dense_gigabytes",
        "training.expert_gigabytes",
        "timeouts.takeover_seconds",
        "failures.count",
        "failures.mtbf_hours",
        "failures.kinds.node_crash",
        "failures.kinds.node_silent",
        "failures.kinds.process_crash",
        "failures.kinds.process_hang",
        "failures.kinds.rack_crash",
        "prices.gpu_hour",
        "goals.goodput",
        "goals.missing_seats_share",
    }
)


def problems(scenario: Scenario) -> tuple[Problem, ...]:
    """All that is wrong with a scenario; empty for one that can be played."""
    found = tuple(_numbers(scenario, ""))
    return found or tuple(_relations(scenario))


def _numbers(value: object, prefix: str) -> Iterator[Problem]:
    assert is_dataclass(value), value
    for each in fields(value):
        name, inner = f"{prefix}{each.name}", getattr(value, each.name)
        if is_dataclass(inner):
            yield from _numbers(inner, f"{name}.")
        elif isinstance(inner, int | float) and not isinstance(inner, bool):
            if not math.isfinite(inner):
                yield Problem(field=name, value=inner, remedy="give a finite number")
            elif inner < 0 or (inner == 0 and name not in _MAY_BE_ZERO):
                least = "0 or more" if name in _MAY_BE_ZERO else "more than 0"
                yield Problem(field=name, value=inner, remedy=f"give {least}")


def _relations(scenario: Scenario) -> Iterator[Problem]:
    yield from _cluster(scenario.cluster)
    yield from _failures(scenario)
    for name in ("goodput", "missing_seats_share"):
        share = getattr(scenario.goals, name)
        if share > 1:
            yield Problem(field=f"goals.{name}", value=share, remedy="give a share from 0 to 1")
    if scenario.training.dense_gigabytes + scenario.training.expert_gigabytes <= 0:
        field_name = "training.dense_gigabytes"
        yield Problem(field=field_name, value=0, remedy="a model has some state: give more than 0")


def _cluster(cluster: ClusterPlan) -> Iterator[Problem]:
    if cluster.gpus % cluster.gpus_per_node:
        near = max(1, round(cluster.gpus / cluster.gpus_per_node)) * cluster.gpus_per_node
        remedy = (
            f"must be a multiple of cluster.gpus_per_node ({cluster.gpus_per_node}): {near} is the nearest"
        )
        yield Problem(field="cluster.gpus", value=cluster.gpus, remedy=remedy)
    elif cluster.replicas > cluster.nodes:
        remedy = f"replicas of an expert stand on different nodes, and {cluster.nodes} train: set it to that or less"
        yield Problem(field="cluster.replicas", value=cluster.replicas, remedy=remedy)


def _failures(scenario: Scenario) -> Iterator[Problem]:
    plan = scenario.failures
    given = [name for name in ("count", "mtbf_hours", "trace") if getattr(plan, name)]
    if len(given) > 1:
        remedy = f"failures.{given[0]} is given too: give one of the two, and 0 or '' for the other"
        yield Problem(field=f"failures.{given[1]}", value=getattr(plan, given[1]), remedy=remedy)
    if plan.mtbf_hours and scenario.days * HOURS_PER_DAY / plan.mtbf_hours > MOST_FAILURES:
        remedy = f"that is more than {MOST_FAILURES} failures: it is the mean of the whole cluster, in hours"
        yield Problem(field="failures.mtbf_hours", value=plan.mtbf_hours, remedy=remedy)
    if plan.count > MOST_FAILURES:
        remedy = f"give at most {MOST_FAILURES}"
        yield Problem(field="failures.count", value=plan.count, remedy=remedy)
    if given and not plan.trace and not any(getattr(plan.kinds, each.name) for each in fields(plan.kinds)):
        remedy = "give at least one kind a share, for example failures.kinds.node_crash=1"
        yield Problem(field="failures.kinds", value="all 0", remedy=remedy)
