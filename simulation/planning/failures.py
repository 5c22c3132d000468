"""What fails when: drawn from a seed or read from a trace, before anything is played.

A failure depends on the hardware alone: which node, when, for how long it is away. So the same list can be played with
two replicas, with three, and by a baseline, and the difference is theirs. A node that is away cannot fail again; its
failure hits the next one that is up. Next: `play.py`.
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path

from orchestrator.core.problems import Problem
from simulation.planning.scenario import (
    SECONDS_PER_HOUR,
    ClusterPlan,
    Distribution,
    FailureKinds,
    FailurePlan,
    RepairTimes,
    Scenario,
)

TRACE_COLUMNS = ("at_hours", "kind", "node", "repair_hours")


class FailureKind(Enum):
    NODE_CRASH = "node_crash"
    NODE_SILENT = "node_silent"
    PROCESS_CRASH = "process_crash"
    PROCESS_HANG = "process_hang"
    RACK_CRASH = "rack_crash"

    @property
    def takes_node(self) -> bool:
        """The node itself is away until it is repaired."""
        return self not in (FailureKind.PROCESS_CRASH, FailureKind.PROCESS_HANG)

    @property
    def silent(self) -> bool:
        """Nobody's connection breaks."""
        return self in (FailureKind.NODE_SILENT, FailureKind.PROCESS_HANG)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    at: float
    """Seconds since training began."""
    kind: FailureKind
    nodes: tuple[int, ...]
    """Numbers from 0; more than one for a rack."""
    device: int
    """Of a process."""
    back_at: tuple[float, ...]
    """When each of the nodes is back; when a process failed, nothing."""


class TraceError(Exception):
    """A trace that cannot be played."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def draw(scenario: Scenario, folder: Path, seed: int) -> tuple[Failure, ...]:
    """All failures of a scenario in their order. `folder` is where a relative trace lies. Raises TraceError."""
    plan = scenario.failures
    dice = random.Random(f"failures of {seed}")
    if plan.trace:
        wishes = _read_trace(folder / plan.trace, scenario)
    else:
        wishes = [_wish(scenario, at, dice) for at in _moments(plan, scenario.seconds, dice)]
    return _on_hardware(wishes, scenario.cluster)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """A failure before it is known which nodes are up."""

    at: float
    kind: FailureKind
    node: int
    device: int
    repair_seconds: float


def _moments(plan: FailurePlan, seconds: float, dice: random.Random) -> Iterator[float]:
    """When things fail: a Poisson process given its count, or a renewal process with the given mean."""
    if plan.count:
        yield from sorted(dice.uniform(0.0, seconds) for _ in range(plan.count))
        return
    if not plan.mtbf_hours:
        return
    mean, at = plan.mtbf_hours * SECONDS_PER_HOUR, 0.0
    scale = mean / math.gamma(1.0 + 1.0 / plan.weibull_shape)
    while True:
        if plan.distribution is Distribution.WEIBULL:
            at += dice.weibullvariate(scale, plan.weibull_shape)
        else:
            at += dice.expovariate(1.0 / mean)
        if at >= seconds:
            return
        yield at


def _wish(scenario: Scenario, at: float, dice: random.Random) -> _Wish:
    """One failure. Always the same number of draws, so that scenarios stay comparable when one thing is changed."""
    names = [each.name for each in fields(FailureKinds)]
    weights = [getattr(scenario.failures.kinds, name) for name in names]
    kind = FailureKind(dice.choices(names, weights)[0])
    place, device, luck = dice.random(), dice.random(), dice.random()
    hours = scenario.failures.repair_hours
    if scenario.failures.repair_times is RepairTimes.EXPONENTIAL:
        hours *= -math.log(1.0 - luck)
    return _Wish(
        at=at,
        kind=kind,
        node=int(place * scenario.cluster.all_nodes),
        device=int(device * scenario.cluster.gpus_per_node),
        repair_seconds=hours * SECONDS_PER_HOUR,
    )


def _on_hardware(wishes: Sequence[_Wish], cluster: ClusterPlan) -> tuple[Failure, ...]:
    """Wishes on the nodes that are up. When none is, nothing can fail."""
    away_until = [0.0] * cluster.all_nodes
    found = []
    for wish in sorted(wishes, key=lambda each: each.at):
        up = [node for node, until in enumerate(away_until) if until <= wish.at]
        if not up:
            continue
        first = next((node for node in up if node >= wish.node), up[0])
        hit = [first]
        if wish.kind is FailureKind.RACK_CRASH:
            rack = first // cluster.nodes_per_rack
            hit = [node for node in up if node // cluster.nodes_per_rack == rack]
        back = wish.at + wish.repair_seconds
        if wish.kind.takes_node:
            for node in hit:
                away_until[node] = back
        found.append(
            Failure(
                at=wish.at,
                kind=wish.kind,
                nodes=tuple(hit),
                device=wish.device,
                back_at=(back,) * len(hit) if wish.kind.takes_node else (),
            )
        )
    return tuple(found)


def _read_trace(path: Path, scenario: Scenario) -> list[_Wish]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        remedy = f"cannot be read ({error}): give a CSV file with the columns {', '.join(TRACE_COLUMNS)}"
        raise TraceError(Problem(field="failures.trace", value=str(path), remedy=remedy)) from error
    return [_row(row, line, path, scenario) for line, row in enumerate(rows, start=2)]


def _row(row: dict[str, str], line: int, path: Path, scenario: Scenario) -> _Wish:
    """One line of a trace. Nodes count from 1, as in `node-1`. Raises TraceError."""

    def refuse(column: str, remedy: str) -> TraceError:
        value = f"{path}, line {line}, {column} = {row.get(column)!r}"
        return TraceError(Problem(field="failures.trace", value=value, remedy=remedy))

    numbers = {}
    for column, most in (
        ("at_hours", scenario.seconds / SECONDS_PER_HOUR),
        ("node", scenario.cluster.all_nodes),
        ("repair_hours", math.inf),
    ):
        least = 1 if column == "node" else 0
        try:
            numbers[column] = float(row.get(column) or "")
        except ValueError:
            raise refuse(column, "give a number") from None
        if not least <= numbers[column] <= most or math.isinf(numbers[column]):
            raise refuse(column, f"give a number from {least} to {most:g}")
    try:
        kind = FailureKind((row.get("kind") or "").strip())
    except ValueError:
        raise refuse("kind", f"choose one of {', '.join(each.value for each in FailureKind)}") from None
    return _Wish(
        at=numbers["at_hours"] * SECONDS_PER_HOUR,
        kind=kind,
        node=int(numbers["node"]) - 1,
        device=0,
        repair_seconds=numbers["repair_hours"] * SECONDS_PER_HOUR,
    )
