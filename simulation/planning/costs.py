"""What things cost in seconds, and where each figure was measured.

The figures are in `costs.yaml` beside this module, or in a file of the same form that a scenario names. Here they are
read, and carried to the size of a cluster. Next: `play.py`, which spends them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any

from orchestrator.core.problems import Problem
from orchestrator.core.spec_mapping import SpecError, read

PACKAGED = Path(__file__).with_name("costs.yaml")
MEASURED_RANKS = 4
"""At which the vote was measured."""


class Source(Enum):
    MEASURED = "measured"
    EXTRAPOLATED = "extrapolated"
    PUBLISHED = "published"
    ASSUMED = "assumed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One figure with its origin."""

    value: float
    unit: str
    source: Source
    where: str
    scales: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """All figures by name."""

    crash_notice_seconds: Cost
    regroup_base_seconds: Cost
    regroup_seconds_per_rank: Cost
    vote_seconds_per_step: Cost
    report_seconds_per_step: Cost
    compare_gigabytes_per_second: Cost
    stage_gigabytes_per_second: Cost
    write_gigabytes_per_second: Cost
    read_gigabytes_per_second: Cost
    hold_gigabytes_per_second: Cost
    recall_gigabytes_per_second: Cost
    link_gigabytes_per_second: Cost
    trainer_start_seconds: Cost
    node_start_seconds: Cost
    restart_all_seconds: Cost
    torchft_reconfigure_seconds: Cost
    torchft_seconds_per_step: Cost

    def regroup(self, ranks: int) -> float:
        """Building groups among `ranks` living processes and shaking hands."""
        return self.regroup_base_seconds.value + self.regroup_seconds_per_rank.value * ranks

    def protection(self, ranks: int, gigabytes: float, compare_every: int) -> float:
        """What fault tolerance adds to a step on average: the vote, the report, replicas compared now and then."""
        rounds = max(1.0, math.log(max(ranks, 2), MEASURED_RANKS))
        vote = self.vote_seconds_per_step.value * rounds + self.report_seconds_per_step.value
        comparing = gigabytes / self.compare_gigabytes_per_second.value
        return vote + (comparing / compare_every if compare_every else 0.0)

    def stage(self, gigabytes: float) -> float:
        """Copying so much of one GPU's state to its host."""
        return gigabytes / self.stage_gigabytes_per_second.value

    def write(self, gigabytes: float) -> float:
        """One node's part of a checkpoint, until it is durable."""
        return gigabytes / self.write_gigabytes_per_second.value

    def read(self, gigabytes: float) -> float:
        """One node's part of a restore."""
        return gigabytes / self.read_gigabytes_per_second.value

    def hold(self, gigabytes: float) -> float:
        """One GPU's part of a snapshot, until a buddy holds it too."""
        return gigabytes / self.hold_gigabytes_per_second.value

    def recall(self, gigabytes: float) -> float:
        """One GPU's part of a restore from host memory."""
        return gigabytes / self.recall_gigabytes_per_second.value

    def send(self, gigabytes: float) -> float:
        """So much from or to one GPU over the network."""
        return gigabytes / self.link_gigabytes_per_second.value

    def notes(self) -> tuple[str, ...]:
        """What is not measured, in sentences; nothing that is used without saying so."""
        lines = []
        for source in (Source.EXTRAPOLATED, Source.ASSUMED, Source.PUBLISHED):
            for each in fields(self):
                cost: Cost = getattr(self, each.name)
                if cost.source is source:
                    figure = f"{each.name} = {cost.value:g} {cost.unit}"
                    lines.append(f"{source.value}: {figure} ({cost.where}; {cost.scales})")
        return tuple(lines)


def costs_from(mapping: dict[str, Any], path: Path) -> Costs:
    """Costs from the mapping of a file. Raises SpecError with every problem."""
    costs = read(Costs, mapping)
    wrong = [
        Problem(
            field=f"{path}: {each.name}.value", value=value, remedy="give more than 0, and a finite number"
        )
        for each in fields(costs)
        if not _sound(each.name, value := getattr(costs, each.name).value)
    ]
    if wrong:
        raise SpecError(tuple(wrong))
    return costs


def _sound(name: str, value: float) -> bool:
    may_be_zero = name in (
        "regroup_base_seconds",
        "vote_seconds_per_step",
        "report_seconds_per_step",
        "crash_notice_seconds",
    )
    return math.isfinite(value) and (value > 0 or (may_be_zero and value == 0))
