"""`understudy simulate`: months of failures in seconds, through the real decision core, for who plans a cluster.

The only door from the command line to `simulation` (a contract of `.importlinter` says so), and it opens only when the
command runs. Next: `simulation/planning/`, which plays; `simulation_view.py`, which lays the figures out.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from orchestrator.cli.errors import CliError, ExitCode, JobRefused
from orchestrator.cli.options import PATH, output_option
from orchestrator.cli.render import Output, show_one
from orchestrator.cli.simulation_view import tables

MOST_RUNS = 1000


@click.command(short_help="Play months of failures in seconds: goodput, losses, spares needed.")
@click.argument("scenario", type=click.Path())
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a field of the scenario, for example --set cluster.replicas=3. Repeatable.",
)
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help="Short for --set seed=N.")
@click.option(
    "--runs",
    type=click.IntRange(min=1, max=MOST_RUNS),
    default=1,
    show_default=True,
    metavar="K",
    help="Play K seeds in a row and show how far they are apart.",
)
@click.option("--svg", type=PATH, metavar="FILE", help="Write a picture: goodput and capacity over time.")
@output_option
def simulate(
    scenario: str, overrides: tuple[str, ...], seed: int | None, runs: int, svg: Path | None, output: str
) -> None:
    """Play a cluster's failures through the real decision core, and say what they cost.

    Nothing is started: the cluster is a model, time is a number, and what each thing costs comes from a file of
    measured figures (`costs` of the scenario). The result compares with a restart of everybody from the last
    checkpoint on the same failures. The same seed gives the same result.

    \b
    examples:
      understudy simulate examples/scenarios/1024-gpus-127-failures.yaml
      understudy simulate SCENARIO.yaml --set cluster.spare_nodes=0 --set cluster.replicas=3
      understudy simulate SCENARIO.yaml --set failures.count=0 --set failures.mtbf_hours=2.5
      understudy simulate SCENARIO.yaml --set failures.count=0 --set failures.trace=mine.csv
      understudy simulate SCENARIO.yaml --set checkpoint.interval=auto --svg run.svg
      understudy simulate SCENARIO.yaml --seed 7 --runs 5 -o json | jq '.goodput, .runs.goodput'

    \b
    fields of -o json, among others:
      goodput, steps, steps_lost, steps_redone, failures{kind}, incidents, incident_groups[], gpu_hours{total, useful,
      detection, regroup, ...}, money{total, useful, lost{}}, spares{needed, given, missing_seats_share}, baseline{name,
      goodput, closed_form_goodput, steps_lost, gpu_hours{}}, replica_groups{goodput, dropped_samples_share},
      timeline[], marks[], runs{} (with --runs), notes[]
    """
    from simulation.planning import simulate as planning

    try:
        plan = planning.load(scenario, overrides, seed)
    except planning.ScenarioError as refused:
        raise JobRefused(scenario, refused.problems) from refused
    with _Progress(runs) as progress:
        try:
            found = planning.simulate(plan, runs, progress.show)
        except planning.CannotStart as error:
            raise CliError(
                f"{scenario}: the job of this scenario cannot start: {error}",
                remedy="look at cluster.*, failures.* and timeouts.start_seconds",
            ) from error
    if svg is not None:
        _write(svg, planning.picture_of(found))
    console = Console(highlight=False)
    if Output(output) is Output.TABLE:
        for text in tables(found, console.width if console.is_terminal else None):
            console.print(text, soft_wrap=True)
    else:
        show_one(console, found, Output(output))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CliError(
            f"--svg: {path}: {error.strerror or error}",
            remedy="name a file in a folder that exists and may be written to",
            exit_code=ExitCode.BAD_INPUT,
        ) from error


class _Progress:
    """One line on a terminal's standard error, gone at the end; nothing anywhere else."""

    def __init__(self, runs: int) -> None:
        self._runs = runs
        self._shown = -1
        self._speaks = sys.stderr.isatty()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._speaks and self._shown >= 0:
            click.echo("\r\033[K", nl=False, err=True)

    def show(self, run: int, share: float, incidents: int) -> None:
        """Called often; writes when a percent has passed."""
        percent = int(share * 100)
        if not self._speaks or percent == self._shown:
            return
        self._shown = percent
        which = f"run {run + 1} of {self._runs}: " if self._runs > 1 else ""
        click.echo(f"\r\033[K{which}{percent} % played, {incidents} incidents", nl=False, err=True)
