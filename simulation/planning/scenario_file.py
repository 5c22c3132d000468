"""Scenario files: YAML from disk, overrides from the command line, one Scenario with its costs or every problem.

Next: `scenario.py`, the values; `costs.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.core import spec_rules
from orchestrator.core.problems import Problem
from orchestrator.core.spec_mapping import SpecError, read
from orchestrator.jobfile import JobFileError, override, read_mapping
from simulation.planning import scenario as scenarios
from simulation.planning.costs import PACKAGED, Costs, costs_from
from simulation.planning.failures import TraceError, draw
from simulation.planning.job import job_of
from simulation.planning.scenario import Scenario


class ScenarioError(Exception):
    """A scenario that cannot be played. `problems` names each field, what it holds and what to do about it."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that a game needs: the scenario, what things cost, and where its traces lie."""

    scenario: Scenario
    costs: Costs
    folder: Path


def load(path: str, overrides: Sequence[str] = (), seed: int | None = None) -> Plan:
    """Read a scenario, apply `KEY=VALUE` overrides, check everything. Raises ScenarioError with every problem."""
    try:
        mapping = read_mapping(path, "scenario file")
        wrong = tuple(problem for text in overrides for problem in override(mapping, text))
        if wrong:
            raise ScenarioError(wrong)
        scenario = read(Scenario, mapping)
        if seed is not None:
            scenario = replace(scenario, seed=seed)
        found = scenarios.problems(scenario) or _timeouts(scenario)
        if found:
            raise ScenarioError(found)
        plan = Plan(scenario=scenario, costs=_costs(scenario, Path(path).parent), folder=Path(path).parent)
        draw(scenario, plan.folder, scenario.seed)
    except (JobFileError, SpecError) as error:
        raise ScenarioError(error.problems) from error
    except TraceError as error:
        raise ScenarioError((error.problem,)) from error
    return plan


def _timeouts(scenario: Scenario) -> tuple[Problem, ...]:
    """The rules of a real job about its time-outs."""
    found = spec_rules.problems(job_of(scenario))
    return tuple(each for each in found if each.field.startswith("timeouts."))


def _costs(scenario: Scenario, folder: Path) -> Costs:
    path = folder / scenario.costs if scenario.costs else PACKAGED
    return costs_from(read_mapping(str(path), "costs"), path)
