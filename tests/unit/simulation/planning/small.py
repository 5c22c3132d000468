"""A small cluster to play with: seconds of virtual months, a fraction of a second of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simulation.planning import simulate
from simulation.planning.failures import Failure, draw
from simulation.planning.play import Game, Played
from simulation.planning.scenario_file import Plan, load

SCENARIO = """
name: small
days: 4
cluster: {gpus: 32, gpus_per_node: 4, spare_nodes: 2, nodes_per_rack: 2, experts: 8, replicas: 2}
failures: {count: 20, repair_hours: 2}
"""


def plan(folder: Path, *overrides: str, text: str = SCENARIO) -> Plan:
    """The small scenario with what a test changes."""
    file = folder / "scenario.yaml"
    file.write_text(text)
    return load(str(file), overrides)


def play(folder: Path, *overrides: str, failures: tuple[Failure, ...] | None = None) -> Played:
    """One game of it."""
    found = plan(folder, *overrides)
    drawn = draw(found.scenario, folder, found.scenario.seed) if failures is None else failures
    return Game(found.scenario, found.costs, drawn).play()


def report(folder: Path, *overrides: str, runs: int = 1) -> dict[str, Any]:
    """All that `understudy simulate` says of it."""
    return simulate.simulate(plan(folder, *overrides), runs, lambda run, share, incidents: None)
