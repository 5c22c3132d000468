"""One scenario from file to figures: failures drawn, played, compared, and what is not known said with it.

The only module of this package that the command line knows. Next: `play.py`, `report.py`, `picture.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from simulation.planning import report
from simulation.planning.baselines import restart_everybody
from simulation.planning.failures import draw
from simulation.planning.picture import draw_svg
from simulation.planning.play import BINS, CannotStart, Game
from simulation.planning.replica_groups import leave_out_groups
from simulation.planning.report import Report
from simulation.planning.scenario_file import Plan, ScenarioError, load
from simulation.planning.spares import spares_needed

__all__ = ["CannotStart", "Plan", "ScenarioError", "load", "picture_of", "simulate"]

Progress = Callable[[int, float, int], None]
"""Called with the number of the run (from 0), the share of it that is played, and its incidents so far."""

MODEL_NOTES = (
    "the decisions are those of the real core",
    "the cluster is coarse: nodes and processes fail whole, no message is lost, and the controller is always there",
    "a step in flight at a failure is always redone, never completed from gradients that survivors hold",
    "in a quiet stretch only the last checkpoint is played, the stall of the others is added up",
)


def simulate(plan: Plan, runs: int, progress: Progress) -> Report:
    """Play a scenario with `runs` seeds in a row; the report is of the first, with the spread over all."""
    reports = []
    for run in range(runs):
        scenario = replace(plan.scenario, seed=plan.scenario.seed + run)
        failures = draw(scenario, plan.folder, scenario.seed)
        game = Game(scenario, plan.costs, failures)
        played = game.play(partial(progress, run))
        baseline = restart_everybody(scenario, plan.costs, failures, BINS)
        spares = spares_needed(scenario, plan.folder, scenario.seed)
        groups = leave_out_groups(scenario, plan.costs, failures, BINS)
        reports.append(report.of_game(played, failures, spares, baseline, groups))
    first = reports[0]
    if runs > 1:
        first["runs"] = report.over_runs(reports)
    first["notes"] = [*MODEL_NOTES, *plan.costs.notes()]
    return first


def picture_of(found: Report) -> str:
    """An SVG picture of a report."""
    return draw_svg(found)
